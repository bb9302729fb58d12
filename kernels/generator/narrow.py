"""A whole inverted residual of up to 64 channels in one kernel."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_no_overlap, check_tensor
from ..spec import MASK_COLUMNS, MASK_ROWS
from .polyphase import (
    MOST,
    OUTSIDE,
    add_relu,
    interleave,
    last_three,
    load_taps,
    relu,
    repeat,
    three,
)
from .upsample import between, column_places, mix, row_places
from .weights import Block, Head

SUMS = tl.constexpr(tl.float16)  # of the products that expand

_MASK_TOP, _MASK_BOTTOM = (tl.constexpr(row) for row in MASK_ROWS)
_MASK_LEFT, _MASK_RIGHT = (tl.constexpr(column) for column in MASK_COLUMNS)


@triton.jit
def load_planes(x, row, column, C: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr):
    """Load (C, groups) of a planar input, of whose six planes only the first three are read."""
    channel = tl.arange(0, C)[:, None]
    plane = tl.where(channel < 3, channel, channel - 3)
    masked = (row >= _MASK_TOP) & (row < _MASK_BOTTOM)
    masked = masked & (column >= _MASK_LEFT) & (column < _MASK_RIGHT)
    live = (channel < 3) | ((channel < 6) & (masked[None, :] == 0))
    at = (plane * H + row) * WIDTH + column[None, :]
    return tl.load(x + at, mask=live, other=0).to(tl.float16)


@triton.jit
def load_lower(lower, upper_row, lower_row, share, column, LOW: tl.constexpr, LOW_WIDTH: tl.constexpr):
    """Load (groups, LOW) of the smaller image, between two of its rows."""
    column = tl.minimum(tl.maximum(column, 0), LOW_WIDTH - 1)
    at = column[:, None] * LOW + tl.arange(0, LOW)[None, :]
    return between(tl.load(lower + upper_row + at), tl.load(lower + lower_row + at), share)


@triton.jit
def add_row(
    row, images, columns, product, taps, halves, begun,
    BOTTOM: tl.constexpr, MIDDLE: tl.constexpr, TOP: tl.constexpr,
    C: tl.constexpr, LOW: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr,
    W: tl.constexpr, STRIDE: tl.constexpr, PLANAR: tl.constexpr, RAGGED: tl.constexpr,
    ASM: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Expand a row, and add it to the sums of the rows that it is the bottom, middle, top of.

    Returns the finished sums, those with their bottom row missing, those with two missing.
    """
    x, lower = images
    start, caps, base, weights = columns
    expand, expand_lower, bias = product
    LAST: tl.constexpr = W * STRIDE + (2 - STRIDE)  # the column of the last tensor
    EDGE: tl.constexpr = STRIDE == 1  # whether that may lie outside

    inside = (row >= 0) & (row < H)
    bias = tl.where(inside, bias, OUTSIDE).to(SUMS)
    row = tl.minimum(tl.maximum(row, 0), H - 1)
    if LOW:
        upper_row, lower_row, share = row_places(row, H // 2, H)
        upper_row, lower_row = upper_row * (WIDTH // 2 * LOW), lower_row * (WIDTH // 2 * LOW)
        near = load_lower(lower, upper_row, lower_row, share, base, LOW, WIDTH // 2)
        middle = load_lower(lower, upper_row, lower_row, share, base + 1, LOW, WIDTH // 2)
        far = middle
    finished, halved, started = (), (), ()
    for k in tl.static_range(LAST + 1):
        column = start + k
        if k == 0:
            column = tl.maximum(column, 0)
        if RAGGED or (EDGE and k == LAST):
            column = tl.minimum(column, WIDTH - 1)
        if PLANAR:
            tile = load_planes(x, row, column, C, H, WIDTH)
        else:
            at = column[:, None] * C + tl.arange(0, C)[None, :]
            tile = tl.trans(tl.load(x + row * (WIDTH * C) + at))
        total = tl.broadcast_to(bias, (bias.shape[0], start.shape[0]))
        total = tl.dot(expand, tile, total, out_dtype=SUMS)
        if LOW:
            if k == 1:
                far = load_lower(lower, upper_row, lower_row, share, base + 2, LOW, WIDTH // 2)
            elif k % 2:
                near, middle = middle, far
                column = base + (k // 2 + 2)
                far = load_lower(lower, upper_row, lower_row, share, column, LOW, WIDTH // 2)
            tile = tl.trans(mix(near, middle, far, weights[k]))
            total = tl.dot(expand_lower, tile, total, out_dtype=SUMS)
        e2 = relu(total).to(tl.float16)
        if k == 0:
            e2 = tl.minimum(e2, caps[0])
        if EDGE and k == LAST:
            e2 = tl.minimum(e2, caps[1])
        if k >= 2 and k % STRIDE == 0:
            if BOTTOM:
                finished = finished + (last_three(taps[0], e0, e1, e2, halves[(k - 2) // STRIDE], ASM),)  # noqa
            if MIDDLE:
                halved = halved + (three(taps[0], 1, e0, e1, e2, begun[(k - 2) // STRIDE]),)  # noqa
            if TOP:
                total = tl.broadcast_to(taps[1], e2.shape)
                started = started + (three(taps[0], 0, e0, e1, e2, total),)  # noqa
        if k >= 1:
            e0 = e1
        e1 = e2
    return finished, halved, started


@triton.jit
def finish_row(
    finished, row, live, images, out, project, project_bias, head, strip,
    C: tl.constexpr, O: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    P: tl.constexpr, W: tl.constexpr, RESIDUAL: tl.constexpr, HEAD: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """Project a row of finished sums, and store it."""
    column = strip * (P * W) + tl.arange(0, P * W)
    if RAGGED:
        live = live & (column < WIDTH)
    d = interleave(finished, W)
    if HEAD:
        # Of the same pixels; rows that are not live are clamped to some that exist.
        at = tl.minimum(tl.maximum(row, 0), HEIGHT - 1) * (WIDTH * C)
        at += tl.minimum(column, WIDTH - 1)[:, None] * C + tl.arange(0, C)[None, :]
        y = tl.dot(tl.trans(d), project, project_bias)
        if RESIDUAL:
            y = tl.dot(tl.load(images[0] + at), head, y)
        y = 1 / (1 + tl.exp(-y))
        channel = tl.arange(0, O)[None, :]
        at = (channel * HEIGHT + row) * WIDTH + column[:, None]
        y = y.to(out.dtype.element_ty)
        if RAGGED:
            live = live[:, None]
        tl.store(out + at, y, mask=live & (channel < 3))
    else:
        total = tl.broadcast_to(project_bias, (O, P * W))
        at = row * (WIDTH * O) + column[:, None] * O + tl.arange(0, O)[None, :]
        if RAGGED:
            live = live[:, None]
        else:
            live = live & (column[:, None] >= 0)
        if RESIDUAL:
            total += tl.trans(tl.load(images[0] + at, mask=live, other=0)).to(tl.float32)
        y = tl.dot(project, d, total)
        tl.store(out + at, tl.trans(y.to(tl.float16)), mask=live)


@triton.jit
def _narrow(
    x, lower, out, expand, expand_lower, expand_bias, taps, tap_bias, project, project_bias, head,
    C: tl.constexpr, LOW: tl.constexpr, E: tl.constexpr, O: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
    STRIDE: tl.constexpr, RESIDUAL: tl.constexpr, PLANAR: tl.constexpr, HEAD: tl.constexpr,
    ASM: tl.constexpr, SUMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Make ROWS rows of a strip of P * W columns: project(relu(depthwise(relu(expand(x))))) [+ x].

    The strip slides down its rows. Each expanded value is made once a row and used for nine sums,
    all in registers.
    """
    HEIGHT: tl.constexpr = H // STRIDE
    ACROSS: tl.constexpr = WIDTH // STRIDE
    STRIPS: tl.constexpr = (ACROSS + P * W - 1) // (P * W)
    BANDS: tl.constexpr = (HEIGHT + ROWS - 1) // ROWS
    RAGGED: tl.constexpr = ACROSS % (P * W) != 0
    PLANES: tl.constexpr = 6 if PLANAR else C
    program = tl.program_id(0)
    strip, band = program % STRIPS, program // STRIPS % BANDS
    image = (program // (STRIPS * BANDS)).to(tl.int64)
    images = (x + image * (H * WIDTH * PLANES), lower + image * (H * WIDTH // 4 * LOW))
    out += image * (HEIGHT * ACROSS * (3 if HEAD else O))

    channel = tl.arange(0, E)
    depth = tl.arange(0, C)
    product = (
        tl.load(expand + channel[:, None] * C + depth[None, :]),
        tl.load(expand_lower + channel[:, None] * LOW + tl.arange(0, LOW)[None, :]) if LOW else 0,
        tl.load(expand_bias + channel)[:, None],
    )
    taps = (load_taps(taps, channel, E), tl.load(tap_bias + channel)[:, None])
    made = tl.arange(0, O)
    if HEAD:
        project = tl.load(project + channel[:, None] * O + made[None, :])
        project_bias = tl.broadcast_to(tl.load(project_bias + made)[None, :], (P * W, O))
        head = tl.load(head + depth[:, None] * O + made[None, :])
    else:
        project = tl.load(project + made[:, None] * E + channel[None, :])
        project_bias = tl.load(project_bias + made)[:, None]

    start = (strip * P + tl.arange(0, P)) * (W * STRIDE) - 1
    left = tl.where(start < 0, 0.0, MOST).to(tl.float16)[None, :]
    right = tl.where(start + (W + 1) >= WIDTH, 0.0, MOST).to(tl.float16)[None, :]
    if LOW:
        base, weights = column_places(start, WIDTH // 2, WIDTH, W + 2)
    else:
        base, weights = start, ()
    columns = (start, (left, right), base, weights)

    first = band * ROWS
    end = tl.minimum(first + ROWS, HEIGHT)
    none = tl.zeros((E, P), tl.float16)
    if STRIDE == 1:
        halves, begun = repeat(none, W), repeat(none, W)
        for row in tl.range(first - 1, end + 1, num_stages=STAGES):
            finished, halves, begun = add_row(
                row, images, columns, product, taps, halves, begun, True, True, True,
                C, LOW, H, WIDTH, W, STRIDE, PLANAR, RAGGED, ASM, SUMS,
            )  # fmt: skip
            finish_row(
                finished, row - 1, row > first, images, out, project, project_bias, head, strip,
                C, O, HEIGHT, ACROSS, P, W, RESIDUAL, HEAD, RAGGED,
            )  # fmt: skip
    else:
        _, _, begun = add_row(
            2 * first - 1, images, columns, product, taps, (), (), False, False, True,
            C, LOW, H, WIDTH, W, STRIDE, PLANAR, RAGGED, ASM, SUMS,
        )  # fmt: skip
        for row in tl.range(first, end, num_stages=STAGES):
            _, halves, _ = add_row(
                2 * row, images, columns, product, taps, (), begun, False, True, False,
                C, LOW, H, WIDTH, W, STRIDE, PLANAR, RAGGED, ASM, SUMS,
            )  # fmt: skip
            finished, _, begun = add_row(
                2 * row + 1, images, columns, product, taps, halves, (), True, False, True,
                C, LOW, H, WIDTH, W, STRIDE, PLANAR, RAGGED, ASM, SUMS,
            )  # fmt: skip
            finish_row(
                finished, row, True, images, out, project, project_bias, head, strip,
                C, O, HEIGHT, ACROSS, P, W, RESIDUAL, HEAD, RAGGED,
            )  # fmt: skip


@dataclass(frozen=True)
class Narrow:
    """A block as `narrow` takes it, on its device."""

    channels: int  # of x
    lower: int  # that come from the smaller image
    outputs: int
    stride: int
    residual: bool
    planar: bool
    head: bool
    tensors: tuple[Tensor, ...]  # of the kernel, from `expand` on
    padded: tuple[int, int, int]  # channels of x, expanded channels and outputs in the kernel
    tile: tuple[int, int, int]  # P, W and warps


def _tile(block: Block, lower: int, planar: bool, head: bool) -> tuple[int, int, int]:
    """Choose groups of a strip, columns of a group, and warps."""
    channels = block.expand.shape[1]
    if planar:
        return 8, 8, 1
    if block.stride == 2:
        return 8, 4, 2
    return 8, 8, {16: 2, 32: 2, 64: 4}[channels]


def pack_narrow(
    block: Block,
    device: torch.device,
    *,
    lower: int = 0,
    planar: bool = False,
    head: Head | None = None,
) -> Narrow:
    """Lay out a block's weights for `narrow`.

    Args:
        block: of 16, 32 or 64 channels, or of the generator's 6 planes. Stride 2 excludes `lower`
            and `head`.
        device: where it will run.
        lower: how many channels come from the smaller image. They are the first ones.
        planar: x is the generator's input.
        head: a 1x1 convolution and sigmoid to apply to the result.

    Raises:
        ValueError: the kernel does not support the block.
    """
    expanded, channels = block.expand.shape
    outputs = block.project.shape[0]
    if planar != (channels == 6) or channels not in (6, 16, 32, 64):
        raise ValueError(f"the block has {channels} channels; expected 16, 32 or 64, or 6 planes")
    if lower not in (0, channels // 2):
        raise ValueError(f"lower is {lower}; expected 0 or {channels // 2}")
    if block.stride not in (1, 2) or (block.stride == 2 and (lower or planar or head)):
        raise ValueError("a block of stride 2 has neither a smaller image, nor planes, nor a head")
    if block.residual and (lower or planar or channels != outputs):
        raise ValueError("a residual block has one input of as many channels as its output")
    own = channels - lower
    wide, high = max(own, 16), max(expanded, 16)
    made = 8 if head else outputs

    def put(tensor: Tensor, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        whole = torch.zeros(shape, dtype=torch.float32)
        whole[tuple(slice(size) for size in tensor.shape)] = tensor
        return whole.to(dtype).to(device)

    project, bias = block.project.double(), block.project_bias.double()
    last = torch.zeros(0)
    if head:
        # The head is linear up to its sigmoid: head(project(d) + x) = (head project) d + head x.
        weight = head.weight.double()
        project, bias = weight @ project, weight @ bias + head.bias.double()
        last = put(head.weight.t(), channels, made)
    tensors = (
        put(block.expand[:, lower:], high, wide),
        put(block.expand[:, :lower], high, lower),
        put(block.expand_bias, high, dtype=torch.float32),
        put(block.depthwise.flatten(1).t(), 9, high),
        put(block.depthwise_bias, high),
        put(project.t(), high, made) if head else put(project, made, high),
        put(bias, made, dtype=torch.float32),
        last.to(device),
    )
    return Narrow(
        own, lower, outputs, block.stride, block.residual, planar, head is not None, tensors,
        (wide, high, made), _tile(block, lower, planar, head is not None),
    )  # fmt: skip


def band_rows(n: int, height: int) -> int:
    """Return how many rows a program makes, of n images.

    Each program expands two more rows, so programs make more rows once the batch alone fills the
    GPU.
    """
    return 32 if n >= 8 else 16 if n >= 3 else 8


def narrow(x: Tensor, packed: Narrow, out: Tensor, lower: Tensor | None = None) -> Tensor:
    """Run an inverted residual of few channels.

    Args:
        x: (n, h, w, c) float16; if planar (n, 6, h, w) float16 or float32, whose planes 3-5 are
            planes 0-2 with the mouth set to 0, see `kernels.spec`: they are not read. All tensors
            are contiguous. h and w are even, and w is a multiple of 8 and at least 16.
        packed: from `pack_narrow`.
        out: (n, h / stride, w / stride, o) float16; with a head (n, 3, h, w) float16 or float32.
        lower: (n, h / 2, w / 2, k) float16, enlarged bilinearly with aligned corners. Its channels
            come before those of x.

    Raises:
        ValueError: a tensor has another shape, dtype, device or layout.
    """
    half, n = (torch.float16,), x.shape[0]
    either = (torch.float16, torch.float32)
    height, width = x.shape[2:] if packed.planar else x.shape[1:3]
    step = packed.stride
    if height % 2 or width % 8 or width < 16 or height < 2:
        raise ValueError(
            f"x is {height} x {width}; expected an even height, and a width that is a multiple of "
            "8 from 16 on"
        )
    if packed.planar:
        check_tensor("x", x, (n, 6, height, width), either)
    else:
        check_tensor("x", x, (n, height, width, packed.channels), half)
    if packed.head:
        check_tensor("out", out, (n, 3, height, width), either, x.device)
    else:
        shape = (n, height // step, width // step, packed.outputs)
        check_tensor("out", out, shape, half, x.device)
    if (lower is None) != (packed.lower == 0):
        raise ValueError(f"lower is {'missing' if packed.lower else 'not expected'}")
    if lower is not None:
        shape = (n, height // 2, width // 2, packed.lower)
        check_tensor("lower", lower, shape, half, x.device)
    for name, tensor in (("x", x), ("out", out), ("lower", lower)):
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; expected a contiguous tensor")
    check_no_overlap(out, "x", x)
    if lower is not None:
        check_no_overlap(out, "lower", lower)
    rows = band_rows(n, height // step)
    groups, columns, warps = packed.tile
    strips = triton.cdiv(width // step, groups * columns)
    wide, high, made = packed.padded
    _narrow[(n * strips * triton.cdiv(height // step, rows),)](
        x, x if lower is None else lower, out, *packed.tensors,
        C=wide, LOW=packed.lower, E=high, O=made, H=height, WIDTH=width,
        ROWS=rows, P=groups, W=columns, STRIDE=step, RESIDUAL=packed.residual,
        PLANAR=packed.planar, HEAD=packed.head, ASM=not triton.knobs.runtime.interpret,
        SUMS=SUMS, STAGES=2, num_warps=warps,
    )  # fmt: skip
    return out
