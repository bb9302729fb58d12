"""Inverted residuals of many channels as two kernels: expand; depthwise and project.

Images are (n, h, w, c), contiguous, float16. The expanded image goes through memory, so a block
reads and writes it once each, but nothing is computed twice that matters.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tile, choose, processors, step
from .upsample import between, row_places
from .weights import Block

# From those that load least for each result to those that are most.
EXPAND_TILES = (
    Tile(128, 128, 64, 8, 3), Tile(128, 64, 64, 4, 3), Tile(64, 64, 64, 4, 4),
    Tile(32, 64, 64, 4, 5), Tile(16, 32, 128, 4, 5),
)  # fmt: skip
MIXING_STEP = 32  # channels of an enlarged image at a time, which take four times the registers
PROJECT_TILES = (
    Tile(128, 128, 32, 8), Tile(128, 64, 64, 8), Tile(128, 32, 64, 8), Tile(64, 64, 64, 4),
    Tile(64, 32, 64, 4), Tile(32, 64, 128, 8), Tile(32, 32, 128, 8), Tile(16, 32, 256, 8),
)  # fmt: skip
# The depthwise convolution takes as long as a product with this many output channels.
DEPTHWISE_CHANNELS = 150


@dataclass(frozen=True)
class Wide:
    """A block's weights on a device, float16; biases of products float32."""

    expand: Tensor  # (E, C)
    expand_bias: Tensor  # (E,)
    taps: Tensor  # (10, E): the depthwise convolution's nine, row by row, and its bias
    project: Tensor  # (O, E)
    project_bias: Tensor  # (O,)
    stride: int
    residual: bool
    lower: int  # of the C channels, the first that come from a smaller image
    beside: int  # the last that come from a second image


@triton.jit
def _add_product(total, x, weight, C: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr):
    """Add x (BM, C) @ weight (BN, C) transposed, given pointers to the first BK of C."""
    for i in tl.range(0, C, BK, num_stages=STAGES):
        total = tl.dot(tl.load(x + i), tl.trans(tl.load(weight + i)), total)
    return total


@triton.jit(do_not_specialize=["images"])
def _expand(
    x, other, weights, bias, out, images,
    C: tl.constexpr, LOWER: tl.constexpr, BESIDE: tl.constexpr, E: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Compute relu(bias + weights (E, ...) channels) of BM pixels and BN of the E channels.

    `x` is (images, H, W, C). Before its channels come the LOWER ones of `other`, (images, H / 2,
    W / 2, LOWER), enlarged; or behind them the BESIDE ones of `other`, (images, H, W, BESIDE).
    """
    program = tl.program_id(0)
    row = program // (E // BN) * BM + tl.arange(0, BM)
    column = program % (E // BN) * BN + tl.arange(0, BN)
    k, low = tl.arange(0, BK)[None, :], tl.arange(0, BL)[None, :]
    rows = images * (H * W)
    pixel = tl.minimum(row, rows - 1)
    at = pixel.to(tl.int64)[:, None]
    weight = weights + column[:, None] * (LOWER + C + BESIDE)
    total = tl.zeros((BM, BN), tl.float32)
    if LOWER:
        top, bottom, down = row_places(pixel // W % H, H // 2, H)
        left, right, over = row_places(pixel % W, W // 2, W)
        down, over = down[:, None], over[:, None]
        image = (pixel // (H * W)).to(tl.int64) * (H // 2 * (W // 2) * LOWER)
        start = other + image[:, None] + low
        for i in tl.range(0, LOWER, BL, num_stages=1):
            upper = between(
                tl.load(start + ((top * (W // 2) + left) * LOWER + i)[:, None]),
                tl.load(start + ((top * (W // 2) + right) * LOWER + i)[:, None]), over,
            )  # fmt: skip
            lower = between(
                tl.load(start + ((bottom * (W // 2) + left) * LOWER + i)[:, None]),
                tl.load(start + ((bottom * (W // 2) + right) * LOWER + i)[:, None]), over,
            )  # fmt: skip
            mixed = between(upper, lower, down)
            total = tl.dot(mixed, tl.trans(tl.load(weight + low + i)), total)
    weight += LOWER + k
    total = _add_product(total, x + at * C + k, weight, C, BK, STAGES)
    if BESIDE:
        total = _add_product(total, other + at * BESIDE + k, weight + C, BESIDE, BK, STAGES)
    value = tl.maximum(total + tl.load(bias + column)[None, :], 0.0).to(tl.float16)
    to = out + row.to(tl.int64)[:, None] * E + column[None, :]
    tl.store(to, value, mask=(row < rows)[:, None])


@triton.jit
def _relu(x, ASM: tl.constexpr):
    """Return max(x, 0) of float16.

    With ASM, a pair at a time: then the compiler keeps pairs of channels in a register, instead of
    pairs of pixels, for which it would have to shuffle all that it loads.
    """
    if ASM:
        x = tl.inline_asm_elementwise(
            "max.f16x2 $0, $1, $2;", "=r,r,r", [x, tl.zeros_like(x)],
            dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        x = tl.maximum(x, tl.full([], 0, tl.float16))
    return x


@triton.jit
def _load(
    pointer, row, column, H: tl.constexpr, W: tl.constexpr, ABOVE: tl.constexpr,
    BELOW: tl.constexpr, BEFORE: tl.constexpr, BEHIND: tl.constexpr,
):  # fmt: skip
    """Load channels of pixels (row, column), 0 for those outside of the image.

    The flags say on which sides of it a pixel may be.
    """
    inside = row == row
    if ABOVE:
        inside &= row >= 0
    if BELOW:
        inside &= row < H
    if BEFORE:
        inside &= column >= 0
    if BEHIND:
        inside &= column < W
    if ABOVE or BELOW or BEFORE or BEHIND:
        value = tl.load(pointer, mask=inside[:, None], other=0.0)
    else:
        value = tl.load(pointer)
    return value


@triton.jit
def _depthwise(
    expanded, taps, places, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    STRIDE: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Convolve BK of the C channels, with ReLU: four (patches, BK), for the pixels of 2 x 2.

    Each value is loaded once, and goes to all the sums that need it.
    """
    top, left = places
    STEP: tl.constexpr = 2 * STRIDE
    LAST_TOP: tl.constexpr = (H + STEP - 1) // STEP * STEP - STEP - 1
    LAST_LEFT: tl.constexpr = (W + STEP - 1) // STEP * STEP - STEP - 1
    weight = ()
    for i in tl.static_range(9):
        weight = weight + (tl.load(taps + i * C)[None, :],)  # noqa: RUF005
    sum0 = tl.load(taps + 9 * C)[None, :]
    sum1, sum2, sum3 = sum0, sum0, sum0
    for i in tl.static_range(3 + STRIDE):
        for j in tl.static_range(3 + STRIDE):
            value = _load(
                expanded + (i * W + j) * C, top + i, left + j, H, W,
                i == 0, LAST_TOP + i >= H, j == 0, LAST_LEFT + j >= W,
            )  # fmt: skip
            if i < 3 and j < 3:
                sum0 = tl.fma(value, weight[3 * i + j], sum0)
            if i < 3 and j >= STRIDE:
                sum1 = tl.fma(value, weight[3 * i + j - STRIDE], sum1)
            if i >= STRIDE and j < 3:
                sum2 = tl.fma(value, weight[3 * (i - STRIDE) + j], sum2)
            if i >= STRIDE and j >= STRIDE:
                sum3 = tl.fma(value, weight[3 * (i - STRIDE) + j - STRIDE], sum3)
    return _relu(sum0, ASM), _relu(sum1, ASM), _relu(sum2, ASM), _relu(sum3, ASM)


@triton.jit(do_not_specialize=["images"])
def _depthwise_project(
    expanded, taps, weights, bias, residual, out, images,
    C: tl.constexpr, OUT: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    STRIDE: tl.constexpr, RESIDUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Compute bias + weights (O, C) relu(depthwise) of BM pixels and BN of the O channels.

    `expanded` is (images, H, W, C). The BM pixels are patches of 2 x 2.
    """
    HEIGHT: tl.constexpr = (H + STRIDE - 1) // STRIDE  # of the result
    WIDTH: tl.constexpr = (W + STRIDE - 1) // STRIDE
    DOWN: tl.constexpr = (HEIGHT + 1) // 2
    ACROSS: tl.constexpr = (WIDTH + 1) // 2
    program = tl.program_id(0)
    first = program // (OUT // BN) * (BM // 4)
    column = program % (OUT // BN) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    last = images * (DOWN * ACROSS) - 1
    patch = tl.minimum(first + tl.arange(0, BM // 4), last)
    top = patch // ACROSS % DOWN * (2 * STRIDE) - 1
    left = patch % ACROSS * (2 * STRIDE) - 1
    image = (patch // (DOWN * ACROSS)).to(tl.int64)
    source = expanded + (image * (H * W * C) + (top * W + left) * C)[:, None] + k[None, :]
    weight = weights + column[:, None] * C + k[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for i in tl.range(0, C, BK, num_stages=1):
        sums = _depthwise(source + i, taps + i + k, (top, left), C, H, W, STRIDE, ASM)
        rows = tl.join(tl.join(sums[0], sums[1]), tl.join(sums[2], sums[3]))
        value = rows.permute(0, 3, 2, 1).reshape(BM, BK)
        total = tl.dot(value, tl.trans(tl.load(weight + i)), total)
    total += tl.load(bias + column)[None, :]

    pixel = tl.arange(0, BM)
    patch = first + pixel // 4
    y = patch // ACROSS % DOWN * 2 + pixel // 2 % 2
    x = patch % ACROSS * 2 + pixel % 2
    at = (patch // (DOWN * ACROSS)).to(tl.int64) * (HEIGHT * WIDTH) + y * WIDTH + x
    at = at[:, None] * OUT + column[None, :]
    live = ((patch <= last) & (y < HEIGHT) & (x < WIDTH))[:, None]
    if RESIDUAL:
        total += tl.load(residual + at, mask=live, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(tl.float16), mask=live)


def pack_wide(block: Block, device: torch.device, *, lower: int = 0, beside: int = 0) -> Wide:
    """Put a block's weights on a device, as the kernels read them.

    Args:
        lower: how many of the input's channels are those of a smaller image, enlarged; the first.
        beside: how many are those of a second image; the last.

    Raises:
        ValueError: a number of channels that tensor cores cannot take in whole steps.
    """
    expanded, inputs = block.expand.shape
    parts = {"lower": lower, "beside": beside, "input": inputs - lower - beside}
    for what, channels in (*parts.items(), ("expanded", expanded), ("output", len(block.project))):
        least = 0 if what in ("lower", "beside") else 32
        if channels < least or channels % 32:
            raise ValueError(f"the block has {channels} {what} channels; expected a multiple of 32")
    taps = torch.cat((block.depthwise.reshape(expanded, 9).t(), block.depthwise_bias[None]))
    half, single = torch.float16, torch.float32
    return Wide(
        block.expand.to(device, half).contiguous(), block.expand_bias.to(device, single),
        taps.to(device, half).contiguous(), block.project.to(device, half).contiguous(),
        block.project_bias.to(device, single), block.stride, block.residual, lower, beside,
    )  # fmt: skip


def expand(
    x: Tensor, packed: Wide, expanded: Tensor, lower: Tensor | None = None,
    beside: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute a block's expanded image: 1x1 convolution and ReLU.

    Args:
        x: (n, h, w, c) float16, contiguous, as all images.
        expanded: (n, h, w, E).
        lower: (n, h / 2, w / 2, packed.lower); enlarged, its channels come before those of x.
        beside: (n, h, w, packed.beside); its channels come behind those of x.
    """
    n, height, width, channels = x.shape
    made, other = expanded.shape[3], x if lower is None else lower
    tile = choose(EXPAND_TILES, n * height * width, made, 32, processors(x.device))
    _expand[(tile.programs(n * height * width, made),)](
        x, other if beside is None else beside, packed.expand, packed.expand_bias, expanded, n,
        C=channels, LOWER=packed.lower, BESIDE=packed.beside, E=made, H=height, W=width,
        BM=tile.pixels, BN=tile.channels, BK=step(tile.step, channels, packed.beside),
        BL=step(MIXING_STEP, packed.lower), STAGES=tile.stages,
        num_warps=tile.warps,
    )  # fmt: skip
    return expanded


def depthwise_project(
    expanded: Tensor, packed: Wide, out: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Compute a block's output of its expanded image: depthwise convolution, ReLU, 1x1 convolution.

    Args:
        expanded: (n, h, w, E) float16, contiguous, as all images.
        out: (n, h / stride, w / stride, O), rounded up.
        residual: as `out`: what a residual block adds, its input. It may be `out` itself.
    """
    n, height, width, channels = expanded.shape
    made = out.shape[3]
    patches = n * triton.cdiv(out.shape[1], 2) * triton.cdiv(out.shape[2], 2)
    tile = choose(PROJECT_TILES, 4 * patches, made, DEPTHWISE_CHANNELS, processors(out.device))
    _depthwise_project[(tile.programs(4 * patches, made),)](
        expanded, packed.taps, packed.project, packed.project_bias,
        out if residual is None else residual, out, n,
        C=channels, OUT=made, H=height, W=width, STRIDE=packed.stride,
        RESIDUAL=residual is not None, BM=tile.pixels, BN=tile.channels,
        BK=step(tile.step, channels), ASM=not triton.knobs.runtime.interpret,
        num_warps=tile.warps, num_stages=1,
    )  # fmt: skip
    return out
