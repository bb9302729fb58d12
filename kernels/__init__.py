"""The stages of the pipeline, one function each.

Each function looks at where its tensors are and picks its implementation; callers never choose.
Every one takes `out=` to write into, and raises `ValueError` with the offending value before
anything is computed. Indices and boxes may live on the device: their values are not looked at
here, so a caller who takes them from outside checks them first (`engine.Avatar` does).
"""

import torch
from torch import Tensor

from . import reference
from .spec import (
    CROP,
    FEATURE,
    FEATURE_WINDOW,
    FPS,
    HOP,
    MEL_BANDS,
    MEL_WINDOW,
    MIN_SAMPLES,
    ROI,
    SAMPLE_RATE,
    frame_count,
    mel_rows,
    mel_window_count,
)

__all__ = [
    "COLOR_FORMATS",
    "COMPOSITE_MODES",
    "CROP",
    "FEATURE",
    "FPS",
    "HOP",
    "MEL_BANDS",
    "MEL_WINDOW",
    "MIN_SAMPLES",
    "RESIZE_MODES",
    "ROI",
    "SAMPLE_RATE",
    "composite",
    "convert_color",
    "face_input",
    "feature_windows",
    "frame_count",
    "log_mel",
    "mel_rows",
    "mel_window_count",
    "mel_windows",
    "resize",
]

COMPOSITE_MODES = ("crop", "direct")
RESIZE_MODES = ("bilinear", "bicubic", "direct")
COLOR_FORMATS = ("rgb", "bgr", "rgba", "planar_bgr")
MAX_SIDE = 8192  # of an image, pixels: what the integer sampling positions are made for


def log_mel(pcm: Tensor, *, out: Tensor | None = None) -> Tensor:
    """PCM to normalised mel.

    Pre-emphasis 0.97, STFT (800 samples every 200, periodic Hann, 400 zeros on both sides),
    magnitude, 80 Slaney mel filters from 55 to 7600 Hz, 20 log10(max(1e-5, m)) - 20, then
    clip(8 (d + 100) / 100 - 4, -4, 4): the features Wav2Lip introduced, `librosa.stft` and
    `librosa.filters.mel` with those arguments.

    Args:
        pcm: (S,) float32 in [-1, 1], or int16, at 16 kHz.
        out: (1 + S // 200, 80) float32 to write into.

    Returns:
        (T, 80) float32 in [-4, 4], T = 1 + S // 200. Samples that are not finite make the rows
        that see them not finite either.
    """
    _check("pcm", pcm, ("S",), (torch.float32, torch.int16))
    if pcm.numel() == 0:
        raise ValueError("pcm has 0 samples, at least 1 is needed")
    shape = (mel_rows(pcm.numel()), MEL_BANDS)
    return reference.log_mel(pcm, _out(out, shape, torch.float32, pcm.device))


def mel_windows(
    mel: Tensor,
    *,
    fps: float = FPS,
    start: int = 0,
    count: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The audio encoder's inputs for windows `start` to `start + count` (exclusive) of a mel.

    Window f begins at mel row int(80 f / fps), and at T - 16 where it would run past the end.

    Args:
        mel: (T, 80) float32, T >= 16.
        fps: video frames a second.
        start: first window.
        count: how many; all the rest by default. `mel_window_count(T, fps)` are there in all.
        out: (count, 1, 80, 16) float32 to write into.

    Returns:
        (count, 1, 80, 16) float32.
    """
    _check("mel", mel, ("T", MEL_BANDS), (torch.float32,))
    if not fps > 0:
        raise ValueError(f"fps is {fps}, it must be above 0")
    count = _range("mel windows", start, count, mel_window_count(mel.shape[0], fps))
    shape = (count, 1, MEL_BANDS, MEL_WINDOW)
    out = _out(out, shape, torch.float32, mel.device)
    return reference.mel_windows(mel, float(fps), start, out)


def feature_windows(
    features: Tensor, *, start: int = 0, count: int | None = None, out: Tensor | None = None
) -> Tensor:
    """The generator's audio inputs for video frames `start` to `start + count` (exclusive).

    With P = E[0], E[0], E[1], ..., E[M-1], E[M-1], frame i sees rows i - 8 to i + 7 of P, rows
    outside P being zeros: 16 x 512 numbers, taken row by row as (32, 16, 16).

    Args:
        features: (M, 512) float32 or float16, M >= 1: E above. Rows from
            `start + count + 6` on are not read.
        start: first video frame.
        count: how many; all the rest by default. M + 2 are there in all.
        out: (count, 32, 16, 16) of the features' dtype to write into.

    Returns:
        (count, 32, 16, 16) of the features' dtype.
    """
    _check("features", features, ("M", FEATURE), (torch.float32, torch.float16))
    if features.shape[0] == 0:
        raise ValueError("features has 0 rows, at least 1 is needed")
    count = _range("video frames", start, count, frame_count(features.shape[0]))
    shape = (count, FEATURE * FEATURE_WINDOW // 256, 16, 16)
    out = _out(out, shape, features.dtype, features.device)
    return reference.feature_windows(features, start, out)


def face_input(
    frames: Tensor,
    boxes: Tensor,
    index: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cut the faces out of frames and make the generator's picture input of them.

    The face box is resized to 328 x 328 (bicubic, a = -0.75, half-pixel centres, edges repeated,
    not antialiased, rounded half to even: `cv2.INTER_CUBIC`); the inner 320 x 320 over 255, as
    planes B, G, R, are channels 0-2, and the same with the face blacked out are channels 3-5.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
        boxes: (F, 4) int32 or int64, x0, y0, x1, y1 in pixels, end-exclusive, at least 1 x 1.
            What lies outside the frame repeats the frame's edge.
        index: (n,) int64, which frame (and box) for each of the n inputs; any order, repeats too.
        dtype: float32 or float16, of the input made.
        out: the pair below to write into; its first decides the dtype.

    Returns:
        ((n, 6, 320, 320) dtype in [0, 1], (n, 328, 328, 3) uint8 RGB face crops).
    """
    _check_faces(frames, boxes, index)
    n = index.shape[0]
    inputs, crops = (None, None) if out is None else out
    dtype = dtype if inputs is None else inputs.dtype
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype is {dtype}, it must be torch.float32 or torch.float16")
    inputs = _out(inputs, (n, 6, ROI, ROI), dtype, frames.device)
    crops = _out(crops, (n, CROP, CROP, 3), torch.uint8, frames.device)
    if n == 0:
        return inputs, crops
    return reference.face_input(frames, boxes, index, inputs, crops)


def composite(
    frames: Tensor,
    boxes: Tensor,
    index: Tensor,
    crops: Tensor,
    generated: Tensor,
    *,
    mode: str = "crop",
    out: Tensor | None = None,
) -> Tensor:
    """Paste generated ROIs back into their frames.

    The generator's output becomes U = floor(clip(255 G, 0, 255)), NaN counting as 0. Mode "crop"
    puts U into the middle of the face crop and the crop, resized (bicubic as in `face_input`),
    into the face box. Mode "direct" pastes U alone over the whole box, sampled bilinearly at
    dst * 320 / size and truncated. Pixels outside the box, or of a box outside the frame, are
    left as they are.

    Args:
        frames, boxes, index: as in `face_input`.
        crops: (n, 328, 328, 3) uint8 RGB, as `face_input` made them.
        generated: (n, 3, 320, 320) float32 or float16, planes B, G, R in [0, 1].
        mode: "crop" or "direct".
        out: (n, H, W, 3) uint8 to write into. It may be `frames` itself, where `index` is 0, 1,
            ..., F - 1: then the ROIs are pasted in place. It shares no memory with it otherwise.

    Returns:
        (n, H, W, 3) uint8 RGB, the finished frames.
    """
    _check_faces(frames, boxes, index)
    n = index.shape[0]
    _check("crops", crops, (n, CROP, CROP, 3), (torch.uint8,), frames.device)
    floats = (torch.float32, torch.float16)
    _check("generated", generated, (n, 3, ROI, ROI), floats, frames.device)
    _one_of("mode", mode, COMPOSITE_MODES)
    out = _out(out, (n, *frames.shape[1:]), torch.uint8, frames.device)
    if n == 0:
        return out
    return reference.composite(frames, boxes, index, crops, generated, mode, out)


def resize(
    images: Tensor, size: tuple[int, int], *, mode: str = "bilinear", out: Tensor | None = None
) -> Tensor:
    """Resize a batch of images of one size, without antialiasing.

    Args:
        images: (n, h, w, c) uint8, 1 <= h, w <= 8192.
        size: (height, width) of the result, each 1 to 8192.
        mode: "bicubic" (a = -0.75) and "bilinear", with half-pixel centres, edges repeated,
            rounded half to even (OpenCV's INTER_CUBIC and INTER_LINEAR); "direct", bilinear at
            dst * source / size, truncated.
        out: (n, height, width, c) uint8 to write into.

    Returns:
        (n, height, width, c) uint8.
    """
    _check("images", images, ("n", "h", "w", "c"), (torch.uint8,))
    for what, side in zip(
        ("height", "width", "target height", "target width"),
        (*images.shape[1:3], *size),
        strict=True,
    ):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{what} is {side}, it must be 1 to {MAX_SIDE}")
    _one_of("mode", mode, RESIZE_MODES)
    shape = (images.shape[0], *size, images.shape[3])
    out = _out(out, shape, torch.uint8, images.device)
    return out if images.shape[0] == 0 else reference.resize(images, mode, out)


def convert_color(images: Tensor, source: str, target: str, *, out: Tensor | None = None) -> Tensor:
    """Convert between colour orders and layouts.

    Args:
        images: (n, H, W, 3) uint8 for "rgb" and "bgr", (n, H, W, 4) uint8 for "rgba",
            (n, 3, H, W) float32 or float16 in [0, 1] for "planar_bgr". Floats become bytes as
            floor(clip(255 v, 0, 255)), NaN as 0; bytes become floats over 255.
        source, target: one of those formats. An alpha channel that the source lacks is 255.
        out: what is returned, to write into.

    Returns:
        The images in the target's layout; "planar_bgr" as float32 unless `out` is float16.
    """
    _one_of("source", source, COLOR_FORMATS)
    _one_of("target", target, COLOR_FORMATS)
    if source == "planar_bgr":
        _check("images", images, ("n", 3, "H", "W"), (torch.float32, torch.float16))
        n, _, height, width = images.shape
    else:
        channels = 4 if source == "rgba" else 3
        _check("images", images, ("n", "H", "W", channels), (torch.uint8,))
        n, height, width, _ = images.shape
    if target == "planar_bgr":
        half = out is not None and out.dtype == torch.float16
        shape, dtype = (n, 3, height, width), torch.float16 if half else torch.float32
    else:
        shape, dtype = (n, height, width, 4 if target == "rgba" else 3), torch.uint8
    return reference.convert_color(images, source, target, _out(out, shape, dtype, images.device))


def _check(
    name: str,
    tensor: Tensor,
    shape: tuple[int | str, ...],
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    """Shape (names match any size), dtype and device of an argument."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, it must be a torch tensor")
    got = tuple(tensor.shape)
    fits = len(got) == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(got, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} has the shape {got}, it must be ({wanted})")
    if tensor.dtype not in dtypes:
        raise ValueError(
            f"{name} is {tensor.dtype}, it must be {' or '.join(str(dtype) for dtype in dtypes)}"
        )
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, it must be on {device}")


def _check_faces(frames: Tensor, boxes: Tensor, index: Tensor) -> None:
    _check("frames", frames, ("F", "H", "W", 3), (torch.uint8,))
    for what, side in zip(("height", "width"), frames.shape[1:3], strict=True):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"frames have the {what} {side}, it must be 1 to {MAX_SIDE}")
    integers = (torch.int32, torch.int64)
    _check("boxes", boxes, (frames.shape[0], 4), integers, frames.device)
    _check("index", index, ("n",), (torch.int64,), frames.device)


def _out(
    out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    _check("out", out, shape, (dtype,), device)
    if not out.is_contiguous():
        raise ValueError(f"out has the strides {out.stride()}, it must be contiguous")
    return out


def _range(what: str, start: int, count: int | None, total: int) -> int:
    """The number of items in [start, start + count), or to the end where count is None."""
    count = total - start if count is None else count
    if start < 0 or count < 0 or start + count > total:
        raise ValueError(f"{what} {start} to {start + count} asked for, there are {total}")
    return count


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, it must be one of {', '.join(allowed)}")
