"""Stand-alone resize, and the sampling that the fused stages share."""

import triton
import triton.language as tl
from torch import Tensor

from .color import access_width

TILE_ROWS = 8
TILE_BYTES = 256


@triton.jit
def half_pixel(dst, source, target):
    """Where target pixels lie in the source: src = (dst + 0.5) * source / target - 0.5.

    int32 pixels and sizes -> floor(src) int32, src - floor(src) float32. Split in integers, as in
    `reference`, so that equal weights come out equal; shifted by one pixel, so that nothing
    negative is divided.
    """
    numerator = (2 * dst + 1) * source + target
    whole = numerator // (2 * target)
    part = (numerator - whole * 2 * target).to(tl.float32)
    return whole - 1, tl.div_rn(part, (part * 0 + 2 * target).to(tl.float32))


@triton.jit
def cubic_weight(x, tap):
    """Weight of the pixel at floor(src) - 1 + tap, x = src - floor(src), for a = -0.75.

    Keys, Cubic convolution interpolation (1981), multiplied out so that nothing cancels. The
    weights mirror each other, so `tap` may be known only at run time.
    """
    x = tl.where(tap < 2, x, 1 - x)
    near = (1.25 * x - 2.25) * x * x + 1
    far = -0.75 * x * (1 - x) * (1 - x)
    return tl.where((tap == 1) | (tap == 2), near, far)


@triton.jit
def inside(pixel, size):
    """Pixels outside repeat the edge."""
    return tl.minimum(tl.maximum(pixel, 0), size - 1)


@triton.jit
def to_level(value):
    """Rounded half to even and clipped to 0 .. 255, float32 -> float32.

    Adding and taking away 1.5 * 2**23 leaves no room for a fraction: the addition rounds.
    """
    rounded = (value + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(rounded, 0.0), 255.0)


@triton.jit
def truncated_share(total, parts):
    """total // parts (int64, 0 .. 255, exact) -> int32: guessed in float32, 1 off at most."""
    quotient = (total.to(tl.float32) / parts.to(tl.float32)).to(tl.int64)
    rest = total - quotient * parts
    return (quotient - (rest < 0) + (rest >= parts)).to(tl.int32)


@triton.jit(do_not_specialize=["source_height", "source_width", "height", "width", "row_bytes"])
def _resize(
    images, out, source_height, source_width, height, width, row_bytes,
    CHANNELS: tl.constexpr, MODE: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """(n, h, w, c) -> (n, height, width, c), a tile of rows and of bytes of a row each."""
    row_bytes = row_bytes * WIDTH
    across, down = tl.cdiv(row_bytes, BYTES), tl.cdiv(height, ROWS)
    tile = tl.program_id(0)
    image = (tile // (across * down)).to(tl.int64)
    row = (tile // across % down * ROWS + tl.arange(0, ROWS))[:, None]
    byte = (tile % across * BYTES + tl.arange(0, BYTES))[None, :]
    live = (row < height) & (byte < row_bytes)
    pixel, channel = byte // CHANNELS, byte % CHANNELS
    images += image * source_height * source_width * CHANNELS + channel

    if MODE == "direct":
        top, left = row * source_height // height, pixel * source_width // width
        down, right = row * source_height % height, pixel * source_width % width
        total = tl.zeros((ROWS, BYTES), tl.int64)
        for i in tl.static_range(2):
            line = tl.zeros((ROWS, BYTES), tl.int32)
            start = inside(top + i, source_height) * source_width
            for j in tl.static_range(2):
                at = start + inside(left + j, source_width)
                level = tl.load(images + at * CHANNELS, mask=live, other=0).to(tl.int32)
                line += level * (right if j else width - right)
            total += line.to(tl.int64) * (down if i else height - down)
        level = truncated_share(total, height.to(tl.int64) * width)
    else:
        TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
        top, y = half_pixel(row, source_height, height)
        left, x = half_pixel(pixel, source_width, width)
        value = tl.zeros((ROWS, BYTES), tl.float32)
        for i in range(TAPS):  # not unrolled: sixteen levels at once are too many registers
            line = tl.zeros((ROWS, BYTES), tl.float32)
            start = inside(top + i - (TAPS // 2 - 1), source_height) * source_width
            for j in tl.static_range(TAPS):
                at = start + inside(left + j - (TAPS // 2 - 1), source_width)
                level = tl.load(images + at * CHANNELS, mask=live, other=0).to(tl.float32)
                line += level * (cubic_weight(x, j) if TAPS == 4 else (x if j else 1 - x))
            value += line * (cubic_weight(y, i) if TAPS == 4 else tl.where(i == 0, 1 - y, y))
        level = to_level(value)
    out += image * height * row_bytes
    tl.store(out + row.to(tl.int64) * row_bytes + byte, level.to(tl.uint8), mask=live)


def resize(images: Tensor, mode: str, out: Tensor) -> Tensor:
    images = images.contiguous()
    n, height, width, channels = out.shape
    row_bytes = width * channels
    wide = access_width(row_bytes)
    tiles = triton.cdiv(row_bytes, TILE_BYTES) * triton.cdiv(height, TILE_ROWS)
    _resize[(n * tiles,)](
        images, out, images.shape[1], images.shape[2], height, width, row_bytes // wide,
        CHANNELS=channels, MODE=mode, WIDTH=wide, ROWS=TILE_ROWS, BYTES=TILE_BYTES,
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return out
