"""Every stage in plain PyTorch: the oracle of the tests, and the CPU path.

These functions take arguments that `kernels` has checked, write into `out` and return it. They run
on any device. The face stages read the boxes' values to size their tensors, so on CUDA they wait
for the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .mel_filters import window_and_filters
from .spec import (
    B_U,
    CROP_SIZE,
    FEATURES_PER_FRAME,
    G_U,
    G_V,
    HOP_LENGTH,
    MARGIN,
    MASK_COLUMNS,
    MASK_ROWS,
    MEL_RATE,
    MEL_WINDOW_ROWS,
    R_V,
    RGB_Y,
    ROI_SIZE,
    U_RGB,
    V_RGB,
    WIN_LENGTH,
    Y_RGB,
    YUV_FORMATS,
    YUV_SHIFT,
    ByteFormat,
    ColorFormat,
    CompositeMode,
    ResizeMode,
    mel_rows,
)

INNER = slice(MARGIN, MARGIN + ROI_SIZE)  # the ROI's rows and columns of the face crop
MEL_BLOCK = 2048  # mel rows computed at once, which bounds the memory used for a long speech


# --- audio ---------------------------------------------------------------------------------------


def log_mel(pcm: Tensor, lengths: Tensor | None, out: Tensor) -> Tensor:
    if lengths is None:
        lengths = torch.tensor([pcm.shape[1]] * len(pcm))
    for speech, samples, mel in zip(pcm, lengths.tolist(), out, strict=True):
        rows = mel_rows(samples)
        _log_mel(speech[:samples], mel[:rows])
        mel[rows:] = -4  # as for silence
    return out


def _log_mel(pcm: Tensor, out: Tensor) -> None:
    """Compute the mel of one speech: (S,) -> (T, 80), T = 1 + S // 200."""
    # In float64: beside a loud tone, float32 rounding noise alone would lift the quiet bands by
    # more than the tolerance.
    hann, filters = window_and_filters(pcm.device)
    scale = 1 / 32768 if pcm.dtype == torch.int16 else 1.0
    samples, rows = pcm.numel(), out.shape[0]
    pad = WIN_LENGTH // 2
    for first in range(0, rows, MEL_BLOCK):
        last = min(first + MEL_BLOCK, rows)
        begin = first * HOP_LENGTH - pad  # in samples; negative for the first rows
        end = (last - 1) * HOP_LENGTH - pad + WIN_LENGTH
        # One more sample on the left, for the pre-emphasis of the first one.
        x = pcm[max(begin - 1, 0) : min(end, samples)].double() * scale
        x = F.pad(x, (max(1 - begin, 0), max(end - samples, 0)))
        y = x[1:] - 0.97 * x[:-1]
        if end > samples:
            y[samples - begin :] = 0  # the zero padding is not pre-emphasised
        spectrum = torch.fft.rfft(y.unfold(0, WIN_LENGTH, HOP_LENGTH) * hann).abs()
        decibels = 20 * torch.log10((spectrum @ filters).clamp_(min=1e-5)) - 20
        out[first:last] = (8 * (decibels + 100) / 100 - 4).clamp_(-4, 4)


def mel_windows(mel: Tensor, fps: float, start: int, dropped: int, out: Tensor) -> Tensor:
    frame = torch.arange(start, start + out.shape[0], device=mel.device, dtype=torch.float64)
    last = dropped + mel.shape[0] - MEL_WINDOW_ROWS
    row = (MEL_RATE * frame / fps).floor().long().clamp_(max=last) - dropped
    rows = row[:, None] + torch.arange(MEL_WINDOW_ROWS, device=mel.device)
    out[:, 0] = mel[rows].transpose(1, 2)
    return out


def feature_windows(features: Tensor, start: int, out: Tensor) -> Tensor:
    n, m, half = out.shape[0], features.shape[0], FEATURES_PER_FRAME // 2
    frame = torch.arange(start, start + n, device=features.device)
    row = frame[:, None] + torch.arange(-half, half, device=features.device)
    inside = (row >= 0) & (row < m + 2)
    # Row r of P = E[0], E[0], E[1], ..., E[M-1], E[M-1] is E[r - 1], clamped.
    windows = features[(row - 1).clamp_(0, m - 1)]
    windows = torch.where(inside[..., None], windows, 0)
    return out.copy_(windows.view(out.shape))


def ring_feature_windows(features: Tensor, frames: Tensor, sources: Tensor, out: Tensor) -> Tensor:
    half = FEATURES_PER_FRAME // 2
    row = frames[:, None] + torch.arange(-half, half, device=features.device)
    # Row r of P = E[0], E[0], E[1], ... is E[r - 1], clamped at the beginning only.
    windows = features[sources[:, None], (row - 1).clamp_(min=0) % features.shape[1]]
    windows = torch.where((row >= 0)[..., None], windows, 0)
    return out.copy_(windows.view(out.shape))


# --- sampling ------------------------------------------------------------------------------------


def _source(dst: Tensor, source: Tensor, target: Tensor, reach: range) -> tuple[Tensor, Tensor]:
    """Locate target pixels in the source: src = (dst + 0.5) * source / target - 0.5.

    The integer and the fractional part of src are separated in integer arithmetic, so that every
    implementation gets the same weights to the last bit.

    Args:
        dst: (n, k) int64, pixels of the target.
        source: (n, 1) int64, source sizes.
        target: (n, 1) int64, target sizes.
        reach: offsets from floor(src) of the pixels wanted.

    Returns:
        The pixels at those offsets, (n, k, len(reach)) int64, clamped to the source; and
        src - floor(src), (n, k) float64.
    """
    numerator = (2 * dst + 1) * source - target
    whole = numerator.div(2 * target, rounding_mode="floor")
    part = (numerator - whole * 2 * target).double() / (2 * target)
    taps = whole[..., None] + torch.arange(reach.start, reach.stop, device=dst.device)
    return torch.minimum(taps.clamp_(min=0), (source - 1)[..., None]), part


def _bicubic(dst: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return taps (n, k, 4) int64 and weights (n, k, 4) float32 of target pixels, see `_source`.

    The weights are those of Keys, Cubic convolution interpolation (1981), with a = -0.75.
    """
    taps, x = _source(dst, source, target, range(-1, 3))
    a = -0.75

    def near(d: Tensor) -> Tensor:  # |d| <= 1
        return ((a + 2) * d - (a + 3)) * d * d + 1

    def far(d: Tensor) -> Tensor:  # 1 < |d| < 2
        return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a

    return taps, torch.stack([far(x + 1), near(x), near(1 - x), far(2 - x)], dim=-1).float()


def _bilinear(dst: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return taps (n, k, 2) int64 and weights (n, k, 2) float32, see `_source`."""
    taps, x = _source(dst, source, target, range(0, 2))
    return taps, torch.stack([1 - x, x], dim=-1).float()


def _weigh(planes: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of the rows of planes: (n, c, h, w) float32, (n, k, t) -> (n, c, k, w).

    Each target row is a bag of t source rows, so a resize in one direction is an `embedding_bag`.
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
    """Resize (n, c, h, w) with the taps and weights of rows and columns -> (n, c, W, H) float32.

    The result is rounded to levels. It stays transposed, because transposing a picture costs as
    much as resizing it and some callers can avoid that.
    """
    transposed = _weigh(planes.float(), *rows).transpose(2, 3)
    return _weigh(transposed, *columns).round_().clamp_(0, 255)


def _direct(planes: Tensor, row: Tensor, column: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Sample bilinearly at src = dst * source / target, clamped to the edge, and truncate.

    Computed in exact integers: in floating point, a flat grey would lose a level in some places.

    Args:
        planes: (n, c, h, w) whole numbers of any dtype.
        row: (n, k) int64, rows of the targets.
        column: (n, l) int64, columns of the targets.
        height: (n, 1) int64, heights of the targets.
        width: (n, 1) int64, widths of the targets.

    Returns:
        (n, c, l, k) int64, transposed as by `_resample`.
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

    def blend_columns(y: Tensor) -> Tensor:
        a, b = planes[image, channel, y, left], planes[image, channel, y, right]
        return a.long() * (width - across) + b.long() * across

    total = blend_columns(top) * (height - down) + blend_columns(bottom) * down
    return total // (height * width)


def resize(images: Tensor, mode: ResizeMode, out: Tensor) -> Tensor:
    n, h, w, _ = images.shape

    def size(value: int) -> Tensor:
        return torch.full((n, 1), value, device=images.device)

    height, width = map(size, out.shape[1:3])
    row, column = (torch.arange(s, device=images.device).expand(n, -1) for s in out.shape[1:3])
    planes = images.permute(0, 3, 1, 2)
    if mode == "direct":
        transposed = _direct(planes, row, column, height, width)
    else:
        taps = _bicubic if mode == "bicubic" else _bilinear
        transposed = _resample(planes, taps(row, size(h), height), taps(column, size(w), width))
    return out.copy_(transposed.permute(0, 3, 2, 1))


# --- colour --------------------------------------------------------------------------------------


def _levels(values: Tensor, out: Tensor) -> Tensor:
    """Write floor(clip(255 v, 0, 255)) into a float32 `out`, with 0 for NaN."""
    torch.mul(values.float(), 255, out=out)
    return out.nan_to_num_(nan=0.0, posinf=255.0, neginf=0.0).clamp_(0, 255).floor_()


def _chroma(images: Tensor, format: ColorFormat) -> Tensor:
    """View U and V of contiguous (n, H * 3 / 2, W) images: (n, H / 2, W / 2, 2)."""
    n, rows, width = images.shape
    height = rows * 2 // 3
    chroma = images[:, height:]
    if format == "i420":
        return chroma.view(n, 2, height // 2, width // 2).permute(0, 2, 3, 1)
    return chroma.view(n, height // 2, width // 2, 2)


def _to_yuv(rgb: Tensor, format: ColorFormat, out: Tensor) -> None:
    """Convert (n, H, W, 3) to (n, H * 3 / 2, W): Y, then U and V of 2 x 2 pixels."""
    n, height, width, _ = rgb.shape
    half = 1 << (YUV_SHIFT - 1)
    whole = rgb.int()
    luma = sum(weight * whole[..., channel] for channel, weight in enumerate(Y_RGB))
    out[:, :height] = (luma + half >> YUV_SHIFT) + 16
    sums = whole.view(n, height // 2, 2, width // 2, 2, 3).sum(dim=(2, 4), dtype=torch.int32)
    chroma = _chroma(out, format)
    for place, weights in enumerate((U_RGB, V_RGB)):
        value = sum(weight * sums[..., channel] for channel, weight in enumerate(weights))
        chroma[..., place] = (value + 4 * half >> YUV_SHIFT + 2) + 128


def _from_yuv(images: Tensor, format: ColorFormat) -> Tensor:
    """Convert (n, H * 3 / 2, W) to (n, H, W, 3); 2 x 2 pixels share one U and V."""
    n, rows, width = images.shape
    height = rows * 2 // 3
    luma = RGB_Y * (images[:, :height].int() - 16) + (1 << (YUV_SHIFT - 1))
    chroma = _chroma(images, format).int()[:, :, None, :, None] - 128
    chroma = chroma.expand(-1, -1, 2, -1, 2, -1).reshape(n, height, width, 2)
    u, v = chroma.unbind(-1)
    rgb = torch.stack([luma + R_V * v, luma + G_U * u + G_V * v, luma + B_U * u], dim=-1)
    return (rgb >> YUV_SHIFT).clamp_(0, 255).byte()


def convert_color(images: Tensor, source: ColorFormat, target: ColorFormat, out: Tensor) -> Tensor:
    if source in YUV_FORMATS:
        images = images.contiguous()
    if source in YUV_FORMATS and target in YUV_FORMATS:
        height = images.shape[1] * 2 // 3
        out[:, :height] = images[:, :height]
        _chroma(out, target).copy_(_chroma(images, source))
        return out
    if source in YUV_FORMATS:
        rgb = _from_yuv(images, source)
    elif source == "planar_bgr":
        rgb = _levels(images, torch.empty_like(images, dtype=torch.float32)).byte()
        rgb = rgb.flip(1).permute(0, 2, 3, 1)
    else:
        rgb = images.flip(3) if source == "bgr" else images[..., :3]
    if target in YUV_FORMATS:
        _to_yuv(rgb, target, out)
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
    pixel = torch.arange(max(int(height.max()), int(width.max()), CROP_SIZE), device=frames.device)

    # The boxes of a batch differ in size. All cuts have the size of the largest one; the taps stay
    # inside each one's own box.
    y = (pixel[: int(height.max())] + y0).clamp_(0, frames.shape[1] - 1)
    x = (pixel[: int(width.max())] + x0).clamp_(0, frames.shape[2] - 1)
    cut = frames[index.view(n, 1, 1), y[:, :, None], x[:, None, :]]
    full, dst = torch.full_like(width, CROP_SIZE), pixel[:CROP_SIZE].expand(n, -1)
    transposed = cut.permute(0, 3, 2, 1).contiguous()  # `_resample` transposes it back
    face = _resample(transposed, _bicubic(dst, width, full), _bicubic(dst, height, full))

    torch.stack(face.byte().unbind(1), dim=-1, out=crops)
    for channel, plane in enumerate(face[:, :, INNER, INNER].unbind(1)[::-1]):  # B, G, R
        torch.div(plane, 255, out=inputs[:, channel])
    inputs[:, 3:] = inputs[:, :3]
    inputs[:, 3:, slice(*MASK_ROWS), slice(*MASK_COLUMNS)] = 0
    return inputs, crops


def composite(
    frames: Tensor, boxes: Tensor, index: Tensor, crops: Tensor, generated: Tensor,
    mode: CompositeMode, format: ByteFormat, out: Tensor, masks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    if format != "rgb":
        rgb = frames.new_empty(len(index), *frames.shape[1:])
        composite(frames, boxes, index, crops, generated, mode, "rgb", rgb, masks)
        return convert_color(rgb, "rgb", format, out)
    if out.data_ptr() != frames.data_ptr():
        torch.index_select(frames, 0, index, out=out)
    x0, y0, x1, y1 = boxes[index].long()[..., None].unbind(1)
    top, left = (-y0).clamp_(min=0), (-x0).clamp_(min=0)  # the visible part, from the box's corner
    bottom = torch.minimum(y1, y1.new_tensor(frames.shape[1])) - y0
    right = torch.minimum(x1, x1.new_tensor(frames.shape[2])) - x0
    visible = ((bottom > top) & (right > left)).flatten()
    if not visible.all():
        crops, generated = crops[visible], generated[visible]
        x0, y0, x1, y1, top, left, bottom, right = (
            side[visible] for side in (x0, y0, x1, y1, top, left, bottom, right)
        )
    n = len(x0)
    if n == 0:
        return out

    # The boxes of a batch differ in size. All patches have the size of the largest one; smaller
    # ones repeat their last row and column, which are then written to the same place repeatedly.
    pixel = torch.arange(int(max((bottom - top).max(), (right - left).max())), device=out.device)
    row = torch.minimum(pixel[: int((bottom - top).max())] + top, bottom - 1)
    column = torch.minimum(pixel[: int((right - left).max())] + left, right - 1)
    face = torch.empty(n, 3, CROP_SIZE, CROP_SIZE, device=out.device)
    mouth = face[:, :, INNER, INNER]
    for channel, plane in enumerate(generated.unbind(1)[::-1]):  # R, G, B
        _levels(plane, out=mouth[:, channel])
    if mode == "crop":
        margin = crops.permute(0, 3, 1, 2)
        for edge in (slice(0, MARGIN), slice(CROP_SIZE - MARGIN, CROP_SIZE)):
            face[:, :, edge] = margin[:, :, edge]
            face[:, :, INNER, edge] = margin[:, :, INNER, edge]
        full = torch.full_like(x0, CROP_SIZE)
        patch = _resample(face, _bicubic(row, full, y1 - y0), _bicubic(column, full, x1 - x0))
    else:
        patch = _direct(mouth, row, column, y1 - y0, x1 - x0)

    line = (visible.nonzero() * frames.shape[1] + y0 + row) * frames.shape[2]
    at = line[:, None, :] + (x0 + column)[:, :, None]
    pixels, levels = out.view(-1, 3), torch.stack(patch.byte().unbind(1), dim=-1)
    if masks is not None:
        kept = _kept(masks, index[visible], y0 + row, x0 + column)
        levels = torch.where(kept[..., None], pixels[at], levels)
    pixels[at] = levels
    return out


def _kept(masks: Tensor, number: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return the masks' pixels, as bool: rows (n, k) and columns (n, l) of n masks -> (n, l, k)."""
    lanes = 1 if masks.dtype == torch.bool else 8  # pixels in a byte
    found = masks[number[:, None, None], row[:, None, :], column[:, :, None] // lanes]
    return (found.byte() >> (column[:, :, None] % lanes)) % 2 == 1
