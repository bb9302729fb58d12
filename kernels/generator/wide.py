"""Inverted residuals of many channels as two kernels: expand; depthwise and project.

Images are (n, h, w, c), contiguous, float16. The expanded image goes through memory. With many
output channels, which several programs share, the depthwise convolution would be computed once by
each of them; there it is a kernel of its own, between two products.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..work import Work
from .plan import SEPARATE
from .product import product
from .tiles import Tile, choose, common_step, processors, usual
from .weights import Block

PROJECT_TILES = (
    Tile(128, 32, 64, 8, 2), Tile(64, 128, 64, 8, 2), Tile(64, 64, 64, 4, 3),
    Tile(64, 64, 128, 8, 2), Tile(64, 32, 64, 4, 4), Tile(32, 64, 128, 8, 2, registers=96),
)  # fmt: skip
OVERHEAD = 190  # of the depthwise convolution beside a product, see `tiles.choose`
# What a program makes where the depthwise convolution is a kernel of its own.
PATCHES, CHANNELS = 16, 64


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

    @property
    def separate(self) -> bool:
        """Whether the depthwise convolution is a kernel of its own."""
        return len(self.project) >= SEPARATE


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
def _load_taps(taps, channels):
    """Load the nine taps, (1, BK) each."""
    found = ()
    for tap in tl.static_range(9):
        found = found + (tl.load(taps + tap * channels)[None, :],)  # noqa: RUF005
    return found


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
    weight = _load_taps(taps, C)
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


@triton.jit
def _place(patch, H: tl.constexpr, W: tl.constexpr, STRIDE: tl.constexpr):
    """Return image, row and column of the first of the 2 x 2 output pixels of a patch."""
    DOWN: tl.constexpr = (H + 2 * STRIDE - 1) // (2 * STRIDE)
    ACROSS: tl.constexpr = (W + 2 * STRIDE - 1) // (2 * STRIDE)
    image = (patch // (DOWN * ACROSS)).to(tl.int64)
    return image, patch // ACROSS % DOWN * 2, patch % ACROSS * 2


@triton.jit
def _sources(expanded, patch, k, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
             STRIDE: tl.constexpr):  # fmt: skip
    """Return pointers to the first pixels that patches see, and the places of these pixels."""
    image, top, left = _place(patch, H, W, STRIDE)
    top, left = top * STRIDE - 1, left * STRIDE - 1
    source = image * (H * W * C) + (top * W + left) * C
    return expanded + source[:, None] + k[None, :], (top, left)


@triton.jit
def _add_patches(total, sums, weight):
    """Add the pixels of patches, patch by patch, @ weight transposed."""
    rows = tl.join(tl.join(sums[0], sums[1]), tl.join(sums[2], sums[3])).permute(0, 3, 2, 1)
    rows = rows.reshape(rows.shape[0] * 4, rows.shape[3])
    return tl.dot(rows, tl.trans(tl.load(weight)), total)


@triton.jit(do_not_specialize=["patches"])
def _depthwise_project(
    expanded, taps, weights, bias, residual, out, patches,
    C: tl.constexpr, OUT: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    STRIDE: tl.constexpr, RESIDUAL: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Compute bias + weights (OUT, C) relu(depthwise) of BM pixels and BN of the OUT channels.

    `expanded` is (n, H, W, C). The BM pixels are patches of 2 x 2.
    """
    program = tl.program_id(0)
    first = program // (OUT // BN) * (BM // 4)
    column = program % (OUT // BN) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    patch = tl.minimum(first + tl.arange(0, BM // 4), patches - 1)
    source, places = _sources(expanded, patch, k, C, H, W, STRIDE)
    weight = weights + column[:, None] * C + k[None, :]
    total = tl.zeros((BM, BN), tl.float32)
    for i in tl.range(0, C, BK, num_stages=1):
        sums = _depthwise(source + i, taps + i + k, places, C, H, W, STRIDE, ASM)
        total = _add_patches(total, sums, weight + i)
    total += tl.load(bias + column)[None, :]

    HEIGHT: tl.constexpr = (H + STRIDE - 1) // STRIDE  # of the result
    WIDTH: tl.constexpr = (W + STRIDE - 1) // STRIDE
    pixel = tl.arange(0, BM)
    patch = first + pixel // 4
    image, y, x = _place(patch, H, W, STRIDE)
    y, x = y + pixel // 2 % 2, x + pixel % 2
    at = (image * (HEIGHT * WIDTH) + y * WIDTH + x)[:, None] * OUT + column[None, :]
    live = ((patch < patches) & (y < HEIGHT) & (x < WIDTH))[:, None]
    if RESIDUAL:
        total += tl.load(residual + at, mask=live, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(tl.float16), mask=live)


@triton.jit(do_not_specialize=["patches"])
def _depthwise_only(
    expanded, taps, out, patches, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    STRIDE: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Compute relu(depthwise) of BP patches of 2 x 2 pixels and BK of the C channels.

    `expanded` is (n, H, W, C).
    """
    HEIGHT: tl.constexpr = (H + STRIDE - 1) // STRIDE  # of the result
    WIDTH: tl.constexpr = (W + STRIDE - 1) // STRIDE
    program = tl.program_id(0)
    patch = program // (C // BK) * BP + tl.arange(0, BP)
    k = program % (C // BK) * BK + tl.arange(0, BK)
    seen = tl.minimum(patch, patches - 1)
    source, places = _sources(expanded, seen, k, C, H, W, STRIDE)
    sums = _depthwise(source, taps + k, places, C, H, W, STRIDE, ASM)
    image, y, x = _place(patch, H, W, STRIDE)
    at = (image * (HEIGHT * WIDTH) + y * WIDTH + x)[:, None] * C + k[None, :]
    for i in tl.static_range(4):
        live = (patch < patches) & (y + i // 2 < HEIGHT) & (x + i % 2 < WIDTH)
        tl.store(out + at + (i // 2 * WIDTH + i % 2) * C, sums[i], mask=live[:, None])


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
    return product(
        x, packed.expand, packed.expand_bias, expanded, relu=True, lower=lower, beside=beside
    )


def depthwise_project(
    expanded: Tensor, packed: Wide, out: Tensor, residual: Tensor | None = None,
    convolved: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute a block's output of its expanded image: depthwise convolution, ReLU, 1x1 convolution.

    Args:
        expanded: (n, h, w, E) float16, contiguous, as all images.
        out: (n, h / stride, w / stride, O), rounded up.
        residual: as `out`: what a residual block adds, its input. It may be `out` itself.
        convolved: scratch memory of a block that is `separate`, (n, h / stride, w / stride, E);
            allocated if None.
    """
    n, height, width, channels = expanded.shape
    made = out.shape[3]
    if packed.separate:
        if convolved is None:
            convolved = expanded.new_empty(*out.shape[:3], channels)
        depthwise(expanded, packed, convolved)
        return product(convolved, packed.project, packed.project_bias, out, residual=residual)
    patches = _patches(out)
    tile = project_tile(n, patches // n, made, channels, processors(out.device))
    _depthwise_project[(tile.programs(4 * patches, made),)](
        expanded, packed.taps, packed.project, packed.project_bias,
        out if residual is None else residual, out, patches,
        C=channels, OUT=made, H=height, W=width, STRIDE=packed.stride,
        RESIDUAL=residual is not None, BM=tile.pixels, BN=tile.channels,
        BK=common_step(tile.step, channels), ASM=not triton.knobs.runtime.interpret,
        num_warps=tile.warps, num_stages=1, maxnreg=tile.registers,
    )  # fmt: skip
    return out


def depthwise(expanded: Tensor, packed: Wide, convolved: Tensor) -> Tensor:
    """Compute the depthwise convolution and ReLU of a block alone, see `depthwise_project`."""
    _, height, width, channels = expanded.shape
    patches, step = _patches(convolved), common_step(CHANNELS, channels)
    _depthwise_only[(triton.cdiv(patches, PATCHES) * (channels // step),)](
        expanded, packed.taps, convolved, patches, C=channels, H=height, W=width,
        STRIDE=packed.stride, BP=PATCHES, BK=step, ASM=not triton.knobs.runtime.interpret,
        num_warps=4,
    )  # fmt: skip
    return convolved


def _patches(out: Tensor) -> int:
    """Return how many patches of 2 x 2 pixels make up images."""
    n, height, width, _ = out.shape
    return n * -(-height // 2) * -(-width // 2)


def project_tile(n: int, patches: int, made: int, channels: int, processors: int) -> Tile:
    """Return the tile of a launch of the kernel that convolves and projects n images."""
    return choose(PROJECT_TILES, 4 * usual(n) * patches, made, channels, OVERHEAD, processors)


def depthwise_project_work(
    n: int, side: int, channels: int, made: int, processors: int, *, stride: int, residual: bool
) -> Work:
    """Return the work of a block that is not `separate`, after its expand."""
    pixels = n * (side // stride) ** 2
    tile = project_tile(n, (side // stride) ** 2 // 4, made, channels, processors)
    programs = tile.programs(pixels, made)
    steps = programs * (channels // common_step(tile.step, channels))
    read = n * side**2 * channels + channels * made + (pixels * made if residual else 0)
    return Work(
        runs={"_depthwise_project": programs, "_depthwise": steps},
        moved=2 * (read + pixels * made), made=2 * pixels * made, items=n,
    )  # fmt: skip


def depthwise_work(n: int, side: int, channels: int, *, stride: int) -> Work:
    """Return the work of the depthwise convolution alone."""
    pixels = n * (side // stride) ** 2
    programs = triton.cdiv(pixels // 4, PATCHES) * (channels // common_step(CHANNELS, channels))
    return Work(
        runs={"_depthwise_only": programs}, moved=2 * channels * (n * side**2 + pixels),
        made=2 * channels * pixels, items=n,
    )  # fmt: skip
