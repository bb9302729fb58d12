"""Images -> images of another size."""

import triton
import triton.language as tl
from torch import Tensor

from ..spec import ResizeMode
from .pixel_formats import access_width
from .sampling import clamp_to_edge, cubic_weight, floor_quotient, half_pixel, to_level

TILE_ROWS = 8
TILE_BYTES = 256


@triton.jit(do_not_specialize=["source_height", "source_width", "height", "width", "row_bytes"])
def _resize(
    images, out, source_height, source_width, height, width, row_bytes,
    CHANNELS: tl.constexpr, MODE: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Resize (n, h, w, c) to (n, height, width, c): ROWS rows by BYTES bytes of an image each."""
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
            start = clamp_to_edge(top + i, source_height) * source_width
            for j in tl.static_range(2):
                at = start + clamp_to_edge(left + j, source_width)
                level = tl.load(images + at * CHANNELS, mask=live, other=0).to(tl.int32)
                line += level * (right if j else width - right)
            total += line.to(tl.int64) * (down if i else height - down)
        level = floor_quotient(total, height.to(tl.int64) * width)
    else:
        TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
        top, y = half_pixel(row, source_height, height)
        left, x = half_pixel(pixel, source_width, width)
        value = tl.zeros((ROWS, BYTES), tl.float32)
        for i in range(TAPS):  # not unrolled: sixteen levels at once need too many registers
            line = tl.zeros((ROWS, BYTES), tl.float32)
            start = clamp_to_edge(top + i - (TAPS // 2 - 1), source_height) * source_width
            for j in tl.static_range(TAPS):
                at = start + clamp_to_edge(left + j - (TAPS // 2 - 1), source_width)
                level = tl.load(images + at * CHANNELS, mask=live, other=0).to(tl.float32)
                line += level * (cubic_weight(x, j) if TAPS == 4 else (x if j else 1 - x))
            value += line * (cubic_weight(y, i) if TAPS == 4 else tl.where(i == 0, 1 - y, y))
        level = to_level(value)
    out += image * height * row_bytes
    tl.store(out + row.to(tl.int64) * row_bytes + byte, level.to(tl.uint8), mask=live)


def resize(images: Tensor, mode: ResizeMode, out: Tensor) -> Tensor:
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
