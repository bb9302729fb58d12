"""The stages of the pipeline, one function each.

Each function looks at where its tensors are and picks its implementation, Triton on CUDA and
plain PyTorch on a CPU; callers never choose. (With TRITON_INTERPRET=1 in the environment, CPU
tensors take the Triton kernels: that is how they are tested without a GPU.) Every one takes
`out=` to write into, and raises `ValueError` with the offending value before anything is
computed. Indices and boxes may live on the device: their values are not looked at here, so a
caller who takes them from outside checks them first (`engine.Avatar` does).

On a GPU a first call compiles and uploads tables. From then on nothing waits for the device, with
`out=` nothing is allocated (unless an input other than the frames has to be made contiguous
first), and CUDA graphs can hold every stage. What compiles anew: other dtypes, modes, formats and
alignments, a width of frames with another power of two in it, and a batch or a speech of another
class of size (`face_input`: 1 to 3, 4 to 15, 16 and more; `log_mel`: 512 rows in all, and more).
"""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import reference
from .checks import apart, byte_shape, check, check_faces, item_count, one_of, writable
from .spec import (
    CROP,
    FEATURE,
    FEATURE_WINDOW,
    FPS,
    HOP,
    MAX_SIDE,
    MEL_BANDS,
    MEL_WINDOW,
    MIN_SAMPLES,
    ROI,
    SAMPLE_RATE,
    frame_count,
    mel_rows,
    mel_window_count,
)

if find_spec("triton"):
    # These names of files are names of functions too: the functions below take them over.
    from triton import knobs

    from . import color, composite, face_input, log_mel, resize, windows

    _fused = SimpleNamespace(
        log_mel=log_mel.log_mel,
        mel_windows=windows.mel_windows,
        feature_windows=windows.feature_windows,
        face_input=face_input.face_input,
        composite=composite.composite,
        resize=resize.resize,
        convert_color=color.convert_color,
    )
    _interpreted = knobs.runtime.interpret
else:  # no Triton for this platform: PyTorch does everything, on any device
    _fused, _interpreted = reference, False

__all__ = [
    "COLOR_FORMATS",
    "COMPOSITE_FORMATS",
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
COMPOSITE_FORMATS = ("rgb", "bgr", "rgba", "nv12")
COLOR_FORMATS = (*COMPOSITE_FORMATS, "planar_bgr")


def log_mel(pcm: Tensor, lengths: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """PCM to normalised mel.

    Pre-emphasis 0.97, STFT (800 samples every 200, periodic Hann, 400 zeros on both sides),
    magnitude, 80 Slaney mel filters from 55 to 7600 Hz, 20 log10(max(1e-5, m)) - 20, then
    clip(8 (d + 100) / 100 - 4, -4, 4): the features Wav2Lip introduced, `librosa.stft` and
    `librosa.filters.mel` with those arguments.

    On a CPU it is computed in float64. On a GPU in float32: within 1e-4 of that on speech and
    noise; in bands 60 dB and more below a loud pure tone, rounding noise can reach 1e-3.

    Args:
        pcm: (S,) float32 in [-1, 1], or int16, at 16 kHz; or (B, S), a batch of speeches.
        lengths: (B,) int64, how many samples of each speech of a batch count, 1 to S; all where
            it is None. The values may live on the device and are not looked at here.
        out: what is returned, to write into.

    Returns:
        (T, 80) float32 in [-4, 4], T = 1 + S // 200, or (B, T, 80). Rows after a speech's own
        1 + length // 200 are -4. Samples that are not finite make the rows that see them NaN.
    """
    batch = isinstance(pcm, Tensor) and pcm.dim() == 2
    check("pcm", pcm, ("B", "S") if batch else ("S",), (torch.float32, torch.int16))
    if pcm.shape[-1] == 0:
        raise ValueError("pcm has 0 samples, at least 1 is needed")
    if lengths is not None:
        if not batch:
            raise ValueError(f"lengths are of a batch of speeches, pcm is one: {(*pcm.shape,)}")
        check("lengths", lengths, (pcm.shape[0],), (torch.int64,), pcm.device)
    rows = mel_rows(pcm.shape[-1])
    out = writable(out, (*pcm.shape[:-1], rows, MEL_BANDS), torch.float32, pcm.device)
    if out.numel():
        whole = (pcm, out) if batch else (pcm[None], out[None])
        _run("log_mel", whole[0], lengths, whole[1])
    return out


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
    check("mel", mel, ("T", MEL_BANDS), (torch.float32,))
    if not fps > 0:
        raise ValueError(f"fps is {fps}, it must be above 0")
    count = item_count("mel windows", start, count, mel_window_count(mel.shape[0], fps))
    shape = (count, 1, MEL_BANDS, MEL_WINDOW)
    out = writable(out, shape, torch.float32, mel.device)
    return _run("mel_windows", mel, float(fps), start, out) if count else out


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
    check("features", features, ("M", FEATURE), (torch.float32, torch.float16))
    if features.shape[0] == 0:
        raise ValueError("features has 0 rows, at least 1 is needed")
    count = item_count("video frames", start, count, frame_count(features.shape[0]))
    shape = (count, FEATURE * FEATURE_WINDOW // 256, 16, 16)
    out = writable(out, shape, features.dtype, features.device)
    return _run("feature_windows", features, start, out) if count else out


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
        frames: (F, H, W, 3) uint8 RGB. Frames and their rows may be apart, as in a part of a
            larger picture; the pixels of a row may not.
        boxes: (F, 4) int32 or int64, x0, y0, x1, y1 in pixels, end-exclusive, at least 1 x 1
            and at most 2**20 from the frame. What lies outside the frame repeats the frame's edge.
        index: (n,) int64, which frame (and box) for each of the n inputs; any order, repeats too.
        dtype: float32 or float16, of the input made.
        out: the pair below to write into; its first decides the dtype.

    Returns:
        ((n, 6, 320, 320) dtype in [0, 1], (n, 328, 328, 3) uint8 RGB face crops).
    """
    check_faces(frames, boxes, index)
    n = index.shape[0]
    inputs, crops = (None, None) if out is None else out
    dtype = dtype if inputs is None else inputs.dtype
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype is {dtype}, it must be torch.float32 or torch.float16")
    inputs = writable(inputs, (n, 6, ROI, ROI), dtype, frames.device)
    crops = writable(crops, (n, CROP, CROP, 3), torch.uint8, frames.device)
    if n == 0:
        return inputs, crops
    return _run("face_input", frames, boxes, index, inputs, crops)


def composite(
    frames: Tensor,
    boxes: Tensor,
    index: Tensor,
    crops: Tensor,
    generated: Tensor,
    *,
    mode: str = "crop",
    format: str = "rgb",
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
        format: of the finished frames, as in `convert_color`: "rgb", "bgr", "rgba" or "nv12".
        out: what is returned, to write into. It may be `frames` itself, where `index` is 0, 1,
            ..., F - 1 and the format "rgb": then the ROIs are pasted in place. It shares no
            memory with it otherwise.

    Returns:
        (n, H, W, 3) uint8 RGB, the finished frames; BGR, (n, H, W, 4) RGBA or
        (n, H * 3 / 2, W) NV12, H and W being even then, where the format says so.
    """
    check_faces(frames, boxes, index)
    n = index.shape[0]
    check("crops", crops, (n, CROP, CROP, 3), (torch.uint8,), frames.device)
    floats = (torch.float32, torch.float16)
    check("generated", generated, (n, 3, ROI, ROI), floats, frames.device)
    one_of("mode", mode, COMPOSITE_MODES)
    one_of("format", format, COMPOSITE_FORMATS)
    out = writable(out, byte_shape(format, n, *frames.shape[1:3]), torch.uint8, frames.device)
    if n == 0:
        return out
    if not (format == "rgb" and out.data_ptr() == frames.data_ptr() and n == frames.shape[0]):
        apart(out, "frames", frames)
    elif not frames.is_contiguous():
        raise ValueError(
            f"frames has the strides {frames.stride()}, contiguous they must be in place"
        )
    return _run("composite", frames, boxes, index, crops, generated, mode, format, out)


def resize(
    images: Tensor, size: tuple[int, int], *, mode: str = "bilinear", out: Tensor | None = None
) -> Tensor:
    """Resize a batch of images of one size, without antialiasing.

    Args:
        images: (n, h, w, c) uint8, 1 <= h, w <= 8192, 1 <= c <= 16.
        size: (height, width) of the result, each 1 to 8192.
        mode: "bicubic" (a = -0.75) and "bilinear", with half-pixel centres, edges repeated,
            rounded half to even (OpenCV's INTER_CUBIC and INTER_LINEAR); "direct", bilinear at
            dst * source / size, truncated.
        out: (n, height, width, c) uint8 to write into.

    Returns:
        (n, height, width, c) uint8.
    """
    check("images", images, ("n", "h", "w", "c"), (torch.uint8,))
    for what, side in zip(
        ("height", "width", "target height", "target width"),
        (*images.shape[1:3], *size),
        strict=True,
    ):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{what} is {side}, it must be 1 to {MAX_SIDE}")
    if not 1 <= images.shape[3] <= 16:
        raise ValueError(f"images have {images.shape[3]} channels, they must be 1 to 16")
    one_of("mode", mode, RESIZE_MODES)
    shape = (images.shape[0], *size, images.shape[3])
    out = writable(out, shape, torch.uint8, images.device)
    apart(out, "images", images)
    return _run("resize", images, mode, out) if out.numel() else out


def convert_color(images: Tensor, source: str, target: str, *, out: Tensor | None = None) -> Tensor:
    """Convert between colour orders and layouts.

    Args:
        images: (n, H, W, 3) uint8 for "rgb" and "bgr", (n, H, W, 4) uint8 for "rgba",
            (n, H * 3 / 2, W) uint8 for "nv12", H and W even: H rows of Y, then H / 2 of U and V
            in turns, BT.709 in limited range; (n, 3, H, W) float32 or float16 in [0, 1] for
            "planar_bgr". Floats become bytes as floor(clip(255 v, 0, 255)), NaN as 0; bytes
            become floats over 255. The U and V of 2 x 2 pixels are made of their mean, and serve
            all four.
        source, target: one of those formats. An alpha channel that the source lacks is 255.
        out: what is returned, to write into.

    Returns:
        The images in the target's layout; "planar_bgr" as float32 unless `out` is float16.
    """
    one_of("source", source, COLOR_FORMATS)
    one_of("target", target, COLOR_FORMATS)
    if source == "planar_bgr":
        check("images", images, ("n", 3, "H", "W"), (torch.float32, torch.float16))
        n, _, height, width = images.shape
    elif source == "nv12":
        check("images", images, ("n", "H * 3 / 2", "W"), (torch.uint8,))
        n, rows, width = images.shape
        height = rows * 2 // 3
        if rows % 3 or width % 2:
            raise ValueError(
                f"images has the shape {(*images.shape,)}, nv12 has 3 rows for 2 of pixels "
                "and an even width"
            )
    else:
        check("images", images, ("n", "H", "W", 4 if source == "rgba" else 3), (torch.uint8,))
        n, height, width, _ = images.shape
    if target == "planar_bgr":
        half = out is not None and out.dtype == torch.float16
        shape, dtype = (n, 3, height, width), torch.float16 if half else torch.float32
    else:
        shape, dtype = byte_shape(target, n, height, width), torch.uint8
    out = writable(out, shape, dtype, images.device)
    apart(out, "images", images)
    return _run("convert_color", images, source, target, out) if out.numel() else out


def _run(name: str, tensor: Tensor, *others: Any) -> Any:
    """Run a stage where its first tensor is."""
    if not tensor.is_cuda:
        return getattr(_fused if _interpreted else reference, name)(tensor, *others)
    with torch.cuda.device(tensor.device):  # Triton launches on the current one
        return getattr(_fused, name)(tensor, *others)
