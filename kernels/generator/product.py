"""1x1 convolutions of images as products of matrices.

Images are (n, h, w, c), contiguous, float16: a row of the matrix for each pixel.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..work import Work
from .tiles import Tile, choose, common_step, processors, usual
from .upsample import between, row_places

TILES = (
    Tile(128, 128, 64, 8, 2, 3), Tile(128, 64, 64, 4, 3, 3), Tile(64, 64, 64, 4, 3, 4),
    Tile(32, 64, 64, 4, 3, 5), Tile(64, 32, 64, 4, 3, 4),
)  # fmt: skip
OVERHEAD = 32  # of the loads, see `tiles.choose`
LOWER_STEP = 32  # channels of a smaller image at a time, which take four times the registers


@triton.jit
def _add_product(total, x, weight, C: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr):
    """Add x (BM, C) @ weight (BN, C) transposed, given pointers to the first BK of C."""
    for i in tl.range(0, C, BK, num_stages=STAGES):
        total = tl.dot(tl.load(x + i), tl.trans(tl.load(weight + i)), total)
    return total


@triton.jit
def _add_enlarged_product(
    total, pixel, lower, weight, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    """Add pixels of `lower`, (images, H / 2, W / 2, C), enlarged to (H, W), @ weight transposed."""
    k = tl.arange(0, BK)[None, :]
    top, bottom, down = row_places(pixel // W % H, H // 2, H)
    left, right, over = row_places(pixel % W, W // 2, W)
    down, over = down[:, None], over[:, None]
    start = lower + (pixel // (H * W)).to(tl.int64)[:, None] * (H // 2 * (W // 2) * C) + k
    for i in tl.range(0, C, BK, num_stages=1):
        upper_row = between(
            tl.load(start + ((top * (W // 2) + left) * C + i)[:, None]),
            tl.load(start + ((top * (W // 2) + right) * C + i)[:, None]), over,
        )  # fmt: skip
        lower_row = between(
            tl.load(start + ((bottom * (W // 2) + left) * C + i)[:, None]),
            tl.load(start + ((bottom * (W // 2) + right) * C + i)[:, None]), over,
        )  # fmt: skip
        mixed = between(upper_row, lower_row, down)
        total = tl.dot(mixed, tl.trans(tl.load(weight + k + i)), total)
    return total


@triton.jit(do_not_specialize=["images"])
def _product(
    x, other, weights, bias, residual, out, images,
    C: tl.constexpr, LOWER: tl.constexpr, BESIDE: tl.constexpr, OUT: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, RELU: tl.constexpr, RESIDUAL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute bias + weights (OUT, ...) channels of BM pixels and BN of the OUT channels.

    `x` is (images, H, W, C). Before its channels come the LOWER ones of `other`, (images, H / 2,
    W / 2, LOWER), enlarged; or behind them the BESIDE ones of `other`, (images, H, W, BESIDE).
    """
    program = tl.program_id(0)
    row = program // (OUT // BN) * BM + tl.arange(0, BM)
    column = program % (OUT // BN) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)[None, :]
    rows = images * (H * W)
    pixel = tl.minimum(row, rows - 1)
    at = pixel.to(tl.int64)[:, None]
    weight = weights + column[:, None] * (LOWER + C + BESIDE)
    total = tl.zeros((BM, BN), tl.float32)
    if LOWER:
        total = _add_enlarged_product(total, pixel, other, weight, LOWER, H, W, BL)
    weight += LOWER + k
    total = _add_product(total, x + at * C + k, weight, C, BK, STAGES)
    if BESIDE:
        total = _add_product(total, other + at * BESIDE + k, weight + C, BESIDE, BK, STAGES)
    total += tl.load(bias + column)[None, :]
    at = row.to(tl.int64)[:, None] * OUT + column[None, :]
    live = (row < rows)[:, None]
    if RELU:
        total = tl.maximum(total, 0.0)
    if RESIDUAL:
        total += tl.load(residual + at, mask=live, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(tl.float16), mask=live)


def product(
    x: Tensor, weights: Tensor, bias: Tensor, out: Tensor, *, relu: bool = False,
    residual: Tensor | None = None, lower: Tensor | None = None, beside: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute a 1x1 convolution with bias.

    Args:
        x: (n, h, w, c).
        weights: (O, C) float16, where C is c and the channels of lower or beside.
        bias: (O,) float32.
        out: (n, h, w, O).
        relu: applied to the result.
        residual: as `out`, added to the result. It may be `out` itself.
        lower: (n, h / 2, w / 2, c'); enlarged to twice its size, bilinearly with aligned corners,
            its channels come before those of x. Not with `beside`.
        beside: (n, h, w, c'); its channels come behind those of x.
    """
    n, height, width, channels = x.shape
    made, inputs = weights.shape
    first = 0 if lower is None else lower.shape[3]
    last = 0 if beside is None else beside.shape[3]
    other = lower if lower is not None else beside if beside is not None else x
    pixels = n * height * width
    tile = product_tile(n, height * width, made, inputs, processors(x.device))
    _product[(tile.programs(pixels, made),)](
        x, other, weights, bias, out if residual is None else residual, out, n,
        C=channels, LOWER=first, BESIDE=last, OUT=made, H=height, W=width, RELU=relu,
        RESIDUAL=residual is not None, BM=tile.pixels, BN=tile.channels,
        BK=common_step(tile.step, channels, last), BL=common_step(LOWER_STEP, first),
        STAGES=tile.stages, num_warps=tile.warps,
    )  # fmt: skip
    return out


def product_tile(n: int, pixels: int, made: int, inputs: int, processors: int) -> Tile:
    """Return the tile of a launch of `product` with n images."""
    return choose(TILES, usual(n) * pixels, made, inputs, OVERHEAD, processors)


def product_work(
    n: int, side: int, channels: int, made: int, processors: int, *, residual: bool = False,
    lower: int = 0, beside: int = 0,
) -> Work:  # fmt: skip
    """Return the work of a launch of `product` with n images of side x side pixels."""
    pixels, inputs = n * side**2, channels + lower + beside
    tile = product_tile(n, side**2, made, inputs, processors)
    programs = tile.programs(pixels, made)
    step = common_step(tile.step, channels, beside)
    runs = {"_product": programs, "_add_product": programs * ((channels + beside) // step)}
    if lower:
        runs["_add_enlarged_product"] = programs * (lower // common_step(LOWER_STEP, lower))
    read = pixels * (channels + beside + lower // 4 + (made if residual else 0)) + made * inputs
    written = pixels * made
    return Work(runs=runs, moved=2 * (read + written), made=2 * written, items=n)
