"""3x3 convolutions of all channels, with bias and ReLU, as one product of matrices.

Images are (n, h, w, c), contiguous, float16. The matrix of a product has a row for each output
pixel, of the nine pixels that it sees; it is not made, but loaded pixel by pixel from the image.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..work import Work
from .tiles import Tile, choose, common_step, processors, usual
from .weights import Dense

DENSE_TILES = (
    Tile(128, 128, 64, 8, 2, 3), Tile(128, 64, 64, 4, 3, 3), Tile(64, 64, 64, 4, 3, 4),
    Tile(32, 64, 64, 4, 3, 5),
)  # fmt: skip
OVERHEAD = 32  # of a tile, see `tiles.choose`


@dataclass(frozen=True)
class PackedDense:
    """A convolution's weights on a device."""

    weight: Tensor  # (O, 9, C) float16
    bias: Tensor  # (O,) float32
    stride: int
    padding: int


@triton.jit
def _add_tap(total, x, inside, weight):
    """Add x (BM, BK) @ weight (BN, BK) transposed; pixels that are not inside are 0."""
    return tl.dot(tl.load(x, mask=inside, other=0.0), tl.trans(tl.load(weight)), total)


@triton.jit(do_not_specialize=["images"])
def _dense(
    x, weights, bias, out, images,
    C: tl.constexpr, OUT: tl.constexpr, H: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr,
    PADDING: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Compute relu(bias + sum over 3 x 3 and C of weights (O, 9, C) x) of BM pixels and BN of the O
    channels."""
    HEIGHT: tl.constexpr = (H + 2 * PADDING - 3) // STRIDE + 1  # of the result
    WIDTH: tl.constexpr = (W + 2 * PADDING - 3) // STRIDE + 1
    STEPS: tl.constexpr = C // BK
    program = tl.program_id(0)
    row = program // (OUT // BN) * BM + tl.arange(0, BM)
    column = program % (OUT // BN) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)[None, :]
    rows = images * (HEIGHT * WIDTH)
    pixel = tl.minimum(row, rows - 1)
    top = pixel // WIDTH % HEIGHT * STRIDE - PADDING
    left = pixel % WIDTH * STRIDE - PADDING
    image = (pixel // (HEIGHT * WIDTH)).to(tl.int64) * (H * W * C)
    start = x + (image + (top * W + left) * C)[:, None] + k
    weight = weights + column[:, None] * (9 * C) + k
    total = tl.zeros((BM, BN), tl.float32)
    for i in tl.range(0, 9 * STEPS, num_stages=STAGES):
        tap, at = i // STEPS, i % STEPS * BK
        y, z = tap // 3, tap % 3
        inside = (top + y >= 0) & (top + y < H) & (left + z >= 0) & (left + z < W)
        seen = start + ((y * W + z) * C + at)
        total = _add_tap(total, seen, inside[:, None], weight + i * BK)
    value = tl.maximum(total + tl.load(bias + column)[None, :], 0.0).to(tl.float16)
    to = out + row.to(tl.int64)[:, None] * OUT + column[None, :]
    tl.store(to, value, mask=(row < rows)[:, None])


def pack_dense(weights: Dense, device: torch.device) -> PackedDense:
    """Put a convolution's weights on a device, as the kernel reads them.

    Raises:
        ValueError: a number of channels that tensor cores cannot take in whole steps.
    """
    outputs, inputs = weights.weight.shape[:2]
    for what, channels in (("input", inputs), ("output", outputs)):
        if channels % 32:
            raise ValueError(
                f"the convolution has {channels} {what} channels; expected a multiple of 32"
            )
    by_pixel = weights.weight.permute(0, 2, 3, 1).reshape(outputs, 9, inputs)
    return PackedDense(
        by_pixel.to(device, torch.float16).contiguous(),
        weights.bias.to(device, torch.float32), weights.stride, weights.padding,
    )  # fmt: skip


def dense(x: Tensor, packed: PackedDense, out: Tensor) -> Tensor:
    """Compute a 3x3 convolution and ReLU.

    Args:
        x: (n, h, w, c) float16, contiguous, as all images.
        out: (n, (h + 2 padding - 3) // stride + 1, the same of w, O).
    """
    n, height, width, channels = x.shape
    pixels, made = n * out.shape[1] * out.shape[2], out.shape[3]
    tile = dense_tile(n, pixels // n, made, channels, processors(x.device))
    _dense[(tile.programs(pixels, made),)](
        x, packed.weight, packed.bias, out, n,
        C=channels, OUT=made, H=height, W=width, STRIDE=packed.stride, PADDING=packed.padding,
        BM=tile.pixels, BN=tile.channels, BK=common_step(tile.step, channels), STAGES=tile.stages,
        num_warps=tile.warps,
    )  # fmt: skip
    return out


def dense_tile(n: int, pixels: int, made: int, channels: int, processors: int) -> Tile:
    """Return the tile of a launch of `dense` with n images."""
    return choose(DENSE_TILES, usual(n) * pixels, made, 9 * channels, OVERHEAD, processors)


def dense_work(n: int, side: int, channels: int, out_side: int, made: int, processors: int) -> Work:
    """Return the work of n images of side x side pixels."""
    pixels = n * out_side**2
    tile = dense_tile(n, out_side**2, made, channels, processors)
    programs = tile.programs(pixels, made)
    steps = 9 * channels // common_step(tile.step, channels)
    read, written = n * side**2 * channels + 9 * channels * made, pixels * made
    return Work(
        runs={"_dense": programs, "_add_tap": programs * steps},
        moved=2 * (read + written), made=2 * written, items=n,
    )  # fmt: skip
