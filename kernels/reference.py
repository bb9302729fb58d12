"""Every stage in plain PyTorch: the oracle of the tests, and the CPU path.

The functions here take arguments that `kernels` has checked, and write into `out`. They run on any
device. Sizes that differ from frame to frame make them look at the boxes' values, so on CUDA the
face stages of this file wait for the device.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .spec import (
    B_U,
    CROP,
    FEATURE_WINDOW,
    G_U,
    G_V,
    HOP,
    MARGIN,
    MASK_COLUMNS,
    MASK_ROWS,
    MEL_BANDS,
    MEL_RATE,
    MEL_WINDOW,
    R_V,
    RGB_Y,
    ROI,
    SAMPLE_RATE,
    U_RGB,
    V_RGB,
    WINDOW,
    Y_RGB,
    YUV_SHIFT,
    mel_rows,
)

INNER = slice(MARGIN, MARGIN + ROI)  # where the ROI lies in the face crop
MEL_BLOCK = 2048  # mel rows computed at once, so that memory does not grow with the speech


# --- audio ---------------------------------------------------------------------------------------


@lru_cache
def mel_constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """The periodic Hann window (800,) and the mel filters (401, 80), float64."""
    from torchaudio.functional import melscale_fbanks

    filters = melscale_fbanks(
        n_freqs=WINDOW // 2 + 1,
        f_min=55.0,
        f_max=7600.0,
        n_mels=MEL_BANDS,
        sample_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    hann = torch.hann_window(WINDOW, periodic=True, dtype=torch.float64)
    return hann.to(device), filters.double().to(device)


def log_mel(pcm: Tensor, lengths: Tensor | None, out: Tensor) -> Tensor:
    if lengths is None:
        lengths = torch.tensor([pcm.shape[1]] * len(pcm))
    for speech, samples, mel in zip(pcm, lengths.tolist(), out, strict=True):
        rows = mel_rows(samples)
        _log_mel(speech[:samples], mel[:rows])
        mel[rows:] = -4  # what silence is
    return out


def _log_mel(pcm: Tensor, out: Tensor) -> None:
    """(S,) -> (T, 80), T = 1 + S // 200."""
    # float64 throughout: beside a loud tone, float32 rounding noise alone would lift
    # the quiet bands by more than the tolerance.
    hann, filters = mel_constants(pcm.device)
    scale = 1 / 32768 if pcm.dtype == torch.int16 else 1.0
    samples, rows = pcm.numel(), out.shape[0]
    pad = WINDOW // 2
    for first in range(0, rows, MEL_BLOCK):
        last = min(first + MEL_BLOCK, rows)
        begin = first * HOP - pad  # in samples, before the signal for the first rows
        end = (last - 1) * HOP - pad + WINDOW
        # one sample more on the left: what the first one's pre-emphasis looks back to
        x = pcm[max(begin - 1, 0) : min(end, samples)].double() * scale
        x = F.pad(x, (max(1 - begin, 0), max(end - samples, 0)))
        y = x[1:] - 0.97 * x[:-1]
        if end > samples:
            y[samples - begin :] = 0  # pre-emphasis comes first, then the padding with zeros
        spectrum = torch.fft.rfft(y.unfold(0, WINDOW, HOP) * hann).abs()
        decibels = 20 * torch.log10((spectrum @ filters).clamp_(min=1e-5)) - 20
        out[first:last] = (8 * (decibels + 100) / 100 - 4).clamp_(-4, 4)


def mel_windows(mel: Tensor, fps: float, start: int, out: Tensor) -> Tensor:
    frame = torch.arange(start, start + out.shape[0], device=mel.device, dtype=torch.float64)
    row = (MEL_RATE * frame / fps).floor().long().clamp_(max=mel.shape[0] - MEL_WINDOW)
    rows = row[:, None] + torch.arange(MEL_WINDOW, device=mel.device)
    out[:, 0] = mel[rows].transpose(1, 2)
    return out


def feature_windows(features: Tensor, start: int, out: Tensor) -> Tensor:
    n, m, half = out.shape[0], features.shape[0], FEATURE_WINDOW // 2
    frame = torch.arange(start, start + n, device=features.device)
    row = frame[:, None] + torch.arange(-half, half, device=features.device)
    inside = (row >= 0) & (row < m + 2)
    # the padded sequence is E[0], E[0], E[1], ..., E[M-1], E[M-1]
    windows = features[(row - 1).clamp_(0, m - 1)]
    windows = torch.where(inside[..., None], windows, 0)
    return out.copy_(windows.view(out.shape))


# --- sampling ------------------------------------------------------------------------------------


def _source(
    dst: Tensor, source: Tensor, target: Tensor, reach: range
) -> tuple[Tensor, Tensor, Tensor]:
    """Where target pixels lie in the source: src = (dst + 0.5) * source / target - 0.5.

    dst: (n, k) int64 pixels of the target; source, target: (n, 1) int64 sizes. Returns the pixels
    in `reach` of floor(src), (n, k, len(reach)), kept inside the source, and src - floor(src) as
    (n, k) float64. Whole and broken part are split in integers, so that every implementation gets
    the same weights to the last bit.
    """
    numerator = (2 * dst + 1) * source - target
    whole = numerator.div(2 * target, rounding_mode="floor")
    part = (numerator - whole * 2 * target).double() / (2 * target)
    taps = whole[..., None] + torch.arange(reach.start, reach.stop, device=dst.device)
    return torch.minimum(taps.clamp_(min=0), (source - 1)[..., None]), part


def _bicubic(dst: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Taps (n, k, 4) int64 and weights (n, k, 4) float32 of target pixels `dst`, see `_source`."""
    taps, x = _source(dst, source, target, range(-1, 3))
    a = -0.75
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1  # noqa: E731  |d| <= 1
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a  # noqa: E731  1 < |d| < 2
    return taps, torch.stack([far(x + 1), near(x), near(1 - x), far(2 - x)], dim=-1).float()


def _bilinear(dst: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Taps (n, k, 2) int64 and weights (n, k, 2) float32, see `_source`."""
    taps, x = _source(dst, source, target, range(0, 2))
    return taps, torch.stack([1 - x, x], dim=-1).float()


def _weigh(planes: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of the rows of planes: (n, c, h, w) float32, (n, k, t) -> (n, c, k, w).

    A resize in one direction is `embedding_bag`: each target row is a small bag of source rows.
    """
    n, c, h, w = planes.shape
    plane = torch.arange(n * c, device=planes.device).view(n, c, 1, 1)
    bags = taps[:, None] + plane * h
    sums = F.embedding_bag(
        bags.view(-1, taps.shape[2]),
        planes.reshape(n * c * h, w),
        per_sample_weights=weights[:, None].expand(bags.shape).reshape(-1, taps.shape[2]),
        mode="sum",
    )
    return sums.view(n, c, -1, w)


def _resample(
    planes: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> Tensor:
    """Resize (n, c, h, w) with the taps and weights of rows and columns -> (n, c, W, H).

    Rounded to levels, float32, and transposed: turning the picture costs as much as resizing it,
    so where that is done is left to the caller.
    """
    turned = _weigh(planes.float(), *rows).transpose(2, 3)
    return _weigh(turned, *columns).round_().clamp_(0, 255)


def _direct(planes: Tensor, row: Tensor, column: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Bilinear at src = dst * source / target, edge clamped, truncated, in exact integers.

    planes: (n, c, h, w) of whole numbers; row, column: (n, k), (n, l) int64 pixels of targets
    that are `height`, `width` (n, 1) large. Returns (n, c, l, k) int64, transposed as by
    `_resample`. In floating point, truncation would cost a flat grey a level here and there.
    """
    n, c, h, w = planes.shape
    image = torch.arange(n, device=planes.device).view(n, 1, 1, 1)
    channel = torch.arange(c, device=planes.device).view(c, 1, 1)

    def split(dst: Tensor, source: int, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low = (dst * source // target).clamp_(max=source - 1)
        return low, (low + 1).clamp_(max=source - 1), dst * source % target

    top, bottom, down = (along[:, None, None, :] for along in split(row, h, height))
    left, right, across = (along[:, None, :, None] for along in split(column, w, width))
    height, width = height[..., None, None], width[..., None, None]

    def between(y: Tensor) -> Tensor:
        a, b = planes[image, channel, y, left], planes[image, channel, y, right]
        return a.long() * (width - across) + b.long() * across

    return (between(top) * (height - down) + between(bottom) * down) // (height * width)


def resize(images: Tensor, mode: str, out: Tensor) -> Tensor:
    n, h, w, _ = images.shape
    size = lambda value: torch.full((n, 1), value, device=images.device)  # noqa: E731
    height, width = map(size, out.shape[1:3])
    row, column = (torch.arange(s, device=images.device).expand(n, -1) for s in out.shape[1:3])
    planes = images.permute(0, 3, 1, 2)
    if mode == "direct":
        turned = _direct(planes, row, column, height, width)
    else:
        taps = _bicubic if mode == "bicubic" else _bilinear
        turned = _resample(planes, taps(row, size(h), height), taps(column, size(w), width))
    return out.copy_(turned.permute(0, 3, 2, 1))


# --- colour --------------------------------------------------------------------------------------


def _levels(values: Tensor, out: Tensor) -> Tensor:
    """floor(clip(255 v, 0, 255)) as float32, NaN counting as 0."""
    torch.mul(values.float(), 255, out=out)
    return out.nan_to_num_(nan=0.0, posinf=255.0, neginf=0.0).clamp_(0, 255).floor_()


def _to_nv12(rgb: Tensor, out: Tensor) -> None:
    """(n, H, W, 3) -> (n, H * 3 / 2, W): Y, then U and V in turns, of 2 x 2 pixels each."""
    n, height, width, _ = rgb.shape
    half = 1 << (YUV_SHIFT - 1)
    whole = rgb.int()
    luma = sum(weight * whole[..., channel] for channel, weight in enumerate(Y_RGB))
    out[:, :height] = (luma + half >> YUV_SHIFT) + 16
    sums = whole.view(n, height // 2, 2, width // 2, 2, 3).sum(dim=(2, 4), dtype=torch.int32)
    chroma = out[:, height:].view(n, height // 2, width // 2, 2)
    for place, weights in enumerate((U_RGB, V_RGB)):
        value = sum(weight * sums[..., channel] for channel, weight in enumerate(weights))
        chroma[..., place] = (value + 4 * half >> YUV_SHIFT + 2) + 128


def _from_nv12(images: Tensor) -> Tensor:
    """(n, H * 3 / 2, W) -> (n, H, W, 3), the colour of a pixel being that of its 2 x 2."""
    n, rows, width = images.shape
    height = rows * 2 // 3
    luma = RGB_Y * (images[:, :height].int() - 16) + (1 << (YUV_SHIFT - 1))
    chroma = images[:, height:].int().view(n, height // 2, 1, width // 2, 1, 2) - 128
    chroma = chroma.expand(-1, -1, 2, -1, 2, -1).reshape(n, height, width, 2)
    u, v = chroma.unbind(-1)
    rgb = torch.stack([luma + R_V * v, luma + G_U * u + G_V * v, luma + B_U * u], dim=-1)
    return (rgb >> YUV_SHIFT).clamp_(0, 255).byte()


def convert_color(images: Tensor, source: str, target: str, out: Tensor) -> Tensor:
    if source == target == "nv12":
        return out.copy_(images)
    if source == "nv12":
        rgb = _from_nv12(images)
    elif source == "planar_bgr":
        rgb = _levels(images, torch.empty_like(images, dtype=torch.float32)).byte()
        rgb = rgb.flip(1).permute(0, 2, 3, 1)
    else:
        rgb = images.flip(3) if source == "bgr" else images[..., :3]
    if target == "nv12":
        _to_nv12(rgb, out)
        return out
    if target == "planar_bgr":
        return out.copy_(rgb.flip(3).permute(0, 3, 1, 2).float() / 255)
    out[..., :3] = rgb.flip(3) if target == "bgr" else rgb
    if target == "rgba":
        out[..., 3] = images[..., 3] if source == "rgba" else 255
    return out


# --- faces ---------------------------------------------------------------------------------------


def face_input(
    frames: Tensor, boxes: Tensor, index: Tensor, inputs: Tensor, crops: Tensor
) -> tuple[Tensor, Tensor]:
    n = index.shape[0]
    x0, y0, x1, y1 = boxes[index].long()[..., None].unbind(1)
    height, width = y1 - y0, x1 - x0
    pixel = torch.arange(max(int(height.max()), int(width.max()), CROP), device=frames.device)

    # Boxes of a batch differ in size: all are cut at the largest one's, and only the taps,
    # which stay inside each one's own box, know the true size.
    y = (pixel[: int(height.max())] + y0).clamp_(0, frames.shape[1] - 1)
    x = (pixel[: int(width.max())] + x0).clamp_(0, frames.shape[2] - 1)
    cut = frames[index.view(n, 1, 1), y[:, :, None], x[:, None, :]]
    full, dst = torch.full_like(width, CROP), pixel[:CROP].expand(n, -1)
    # lying on its side, for `_resample` to turn upright
    turned = cut.permute(0, 3, 2, 1).contiguous()
    face = _resample(turned, _bicubic(dst, width, full), _bicubic(dst, height, full))

    torch.stack(face.byte().unbind(1), dim=-1, out=crops)
    for blue_green_red, plane in enumerate(face[:, :, INNER, INNER].unbind(1)[::-1]):
        torch.div(plane, 255, out=inputs[:, blue_green_red])
    inputs[:, 3:] = inputs[:, :3]
    inputs[:, 3:, slice(*MASK_ROWS), slice(*MASK_COLUMNS)] = 0
    return inputs, crops


def composite(
    frames: Tensor,
    boxes: Tensor,
    index: Tensor,
    crops: Tensor,
    generated: Tensor,
    mode: str,
    format: str,
    out: Tensor,
) -> Tensor:
    if format != "rgb":
        rgb = frames.new_empty(len(index), *frames.shape[1:])
        composite(frames, boxes, index, crops, generated, mode, "rgb", rgb)
        return convert_color(rgb, "rgb", format, out)
    if out.data_ptr() != frames.data_ptr():
        torch.index_select(frames, 0, index, out=out)
    x0, y0, x1, y1 = boxes[index].long()[..., None].unbind(1)
    top, left = (-y0).clamp_(min=0), (-x0).clamp_(min=0)  # what can be seen of each box
    bottom = torch.minimum(y1, y1.new_tensor(frames.shape[1])) - y0
    right = torch.minimum(x1, x1.new_tensor(frames.shape[2])) - x0
    seen = ((bottom > top) & (right > left)).flatten()
    if not seen.all():
        crops, generated = crops[seen], generated[seen]
        x0, y0, x1, y1, top, left, bottom, right = (
            side[seen] for side in (x0, y0, x1, y1, top, left, bottom, right)
        )
    n = len(x0)
    if n == 0:
        return out

    # Boxes of a batch differ in size: all are made as large as the largest one, with their last
    # row and column repeated, which are then written to one place more than once.
    pixel = torch.arange(int(max((bottom - top).max(), (right - left).max())), device=out.device)
    row = torch.minimum(pixel[: int((bottom - top).max())] + top, bottom - 1)
    column = torch.minimum(pixel[: int((right - left).max())] + left, right - 1)
    face = torch.empty(n, 3, CROP, CROP, device=out.device)
    mouth = face[:, :, INNER, INNER]
    for red_green_blue, plane in enumerate(generated.unbind(1)[::-1]):
        _levels(plane, out=mouth[:, red_green_blue])
    if mode == "crop":
        margin = crops.permute(0, 3, 1, 2)
        for edge in (slice(0, MARGIN), slice(CROP - MARGIN, CROP)):
            face[:, :, edge] = margin[:, :, edge]
            face[:, :, INNER, edge] = margin[:, :, INNER, edge]
        full = torch.full_like(x0, CROP)
        patch = _resample(face, _bicubic(row, full, y1 - y0), _bicubic(column, full, x1 - x0))
    else:
        patch = _direct(mouth, row, column, y1 - y0, x1 - x0)

    line = (seen.nonzero() * frames.shape[1] + y0 + row) * frames.shape[2]
    at = line[:, None, :] + (x0 + column)[:, :, None]
    out.view(-1, 3)[at] = torch.stack(patch.byte().unbind(1), dim=-1)
    return out
