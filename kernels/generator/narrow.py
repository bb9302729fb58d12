"""A whole inverted residual of up to 64 channels in one kernel."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_no_overlap, check_tensor
from ..work import Work
from .narrow_rows import add_row, make_row
from .polyphase import load_taps, repeat
from .tiles import processors
from .upsample import column_place
from .weights import Block, Head

WARPS = 8  # of a multiprocessor, of the blocks with the most registers
SUMS = tl.constexpr(tl.float16)  # of the products that expand: float32 needs more registers


@triton.jit(do_not_specialize=["rows"])
def _narrow(
    x, lower, out, expand, expand_lower, expand_bias, taps, taps_bias, project, project_bias, head,
    rows,
    C: tl.constexpr, LOW: tl.constexpr, E: tl.constexpr, OUT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr,
    P: tl.constexpr, W: tl.constexpr, S: tl.constexpr,
    STRIDE: tl.constexpr, RESIDUAL: tl.constexpr, PLANAR: tl.constexpr, HEAD: tl.constexpr,
    ASM: tl.constexpr, SUMS: tl.constexpr, HOIST: tl.constexpr,
):  # fmt: skip
    """Make `rows` rows of a strip of P * W columns of one image: project(d) + project_bias, with

        e[y, x] = relu(expand (up(lower), x)[y, x] + expand_bias), 0 outside the image
        d[y, x] = relu(sum over i, j of taps[i, j] e[s y + i - 1, s x + j - 1] + taps_bias)

    of stride s, plus x in a residual block, and with a head sigmoid(head of that). The strip slides
    down its rows. Each expanded value is made once a row, in registers, and added to nine sums.
    The channels are divided among S warps.
    """
    HEIGHT: tl.constexpr = H // STRIDE
    ACROSS: tl.constexpr = WIDTH // STRIDE
    STRIPS: tl.constexpr = (ACROSS + P * W - 1) // (P * W)
    RAGGED: tl.constexpr = ACROSS % (P * W) != 0
    program, bands = tl.program_id(0), tl.cdiv(HEIGHT, rows)
    strip, band = program % STRIPS, program // STRIPS % bands
    image = (program // (STRIPS * bands)).to(tl.int64)
    images = (
        x + image * (H * WIDTH * (6 if PLANAR else C)), lower + image * (H * WIDTH // 4 * LOW)
    )  # fmt: skip
    out += image * (HEIGHT * ACROSS * (3 if HEAD else OUT))

    channel = tl.arange(0, E)
    by_warp = tl.reshape(channel, (S, E // S, 1))
    depth, made = tl.arange(0, C), tl.arange(0, OUT)
    product = (
        tl.load(expand + by_warp * C + depth[None, None, :]),
        tl.load(expand_lower + by_warp * LOW + tl.arange(0, LOW)[None, None, :]) if LOW else 0,
        tl.load(expand_bias + by_warp),
    )
    taps = load_taps(taps, by_warp, E) + (tl.load(taps_bias + by_warp),)  # noqa: RUF005
    if HEAD:
        project = tl.load(project + channel[:, None] * OUT + made[None, :])
        project_bias = tl.load(project_bias + made)[None, :]
        head = tl.load(head + depth[:, None] * OUT + made[None, :])
    else:
        project = tl.load(project + made[:, None] * E + channel[None, :])
        project_bias = tl.load(project_bias + made)[:, None]

    ending = (out, project, project_bias, head)

    # The groups of the last strip that lie beyond the image repeat the last one, and store nothing.
    start = (strip * P + tl.arange(0, P)) * (W * STRIDE) - 1
    if RAGGED:
        start = tl.minimum(start, WIDTH - W * STRIDE - 1)
    left = tl.where(start < 0, 0.0, 1.0 if STRIDE == 1 else 65504.0).to(tl.float16)[None, None, :]
    right = tl.where(start + (W + 1) >= WIDTH, 0.0, 1.0).to(tl.float16)[None, None, :]
    if LOW:
        near, place = column_place(start, WIDTH // 2, WIDTH)
    else:
        near, place = start, 0
    columns = (start, (left, right), near, place)

    first = band * rows
    end = tl.minimum(first + rows, HEIGHT)
    if STRIDE == 1:
        # The first two rows only begin the sums of rows that others store, or that do not exist.
        top, stop = first - 1, end + 1
        halves = repeat(tl.zeros((S, E // S, P), tl.float16), W)
        begun = halves
    else:
        top, stop = first, end
        halves = ()
        begun = repeat(tl.broadcast_to(taps[9], (S, E // S, P)), W)
        if first > 0:
            _, _, begun = add_row(
                2 * first - 1, images, columns, product, taps, (), (), False, False, True,
                C, LOW, H, WIDTH, W, STRIDE, PLANAR, ASM, SUMS,
            )  # fmt: skip
    for row in tl.range(top, stop, num_stages=2, disable_licm=not HOIST):
        halves, begun = make_row(
            row, row >= first + (2 - STRIDE), images, columns, product, taps, ending, strip,
            halves, begun,
            C, LOW, E, OUT, H, WIDTH, P, W, STRIDE, RESIDUAL, PLANAR, HEAD, ASM, SUMS,
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


def _tile(block: Block, planar: bool) -> tuple[int, int, int]:
    """Choose groups of a strip, columns of a group, and warps."""
    channels = block.expand.shape[1]
    if planar:
        return 8, 8, 1  # all that there is for a warp to do
    # With 8 groups, of 64 columns, a thread has two columns of two or four channels.
    return 8, 8 if block.stride == 1 else 4, 4 if channels == 64 else 2


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
    if outputs not in (16, 32, 64):
        raise ValueError(f"the block makes {outputs} channels; expected 16, 32 or 64")
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
        if block.residual:
            last = put(head.weight.t(), channels, made)
    tensors = (
        put(block.expand[:, lower:], high, wide),
        put(block.expand[:, :lower], high, lower),
        put(block.expand_bias, high),
        put(block.depthwise.flatten(1).t(), 9, high),
        put(block.depthwise_bias, high),
        put(project.t(), high, made) if head else put(project, made, high),
        put(bias, made, dtype=torch.float32),
        last.to(device),
    )
    return Narrow(
        own, lower, outputs, block.stride, block.residual, planar, head is not None, tensors,
        (wide, high, made), _tile(block, planar),
    )  # fmt: skip


def band_rows(strips: int, height: int, stride: int, slots: int) -> int:
    """Return how many rows a program makes of a strip.

    Each program expands rows more than it makes, so high bands are less work. But programs run in
    rounds, of which each takes as long as its longest, the last one too.

    Args:
        strips: in all images.
        height: of the output.
        stride: of the block.
        slots: how many programs run at a time.
    """

    def time(rows: int) -> float:
        rounds = int(triton.cdiv(strips * triton.cdiv(height, rows), slots))
        return rounds * (rows + (2 if stride == 1 else 0.5))

    return min(range(4, 41), key=time)


def _grid(packed: Narrow, n: int, height: int, width: int, processors: int) -> tuple[int, int]:
    """Return the strips of n images in all, and the rows of a band. The sizes are the output's."""
    groups, columns, warps = packed.tile
    strips = n * triton.cdiv(width, groups * columns)
    slots = processors * max(WARPS // warps, 1)
    return strips, band_rows(strips, height, packed.stride, slots)


def _hoists(packed: Narrow, device: torch.device) -> bool:
    """Return whether to keep what is the same in all rows in registers, rather than make it anew.

    A block with a smaller image has none to spare for that but on Hopper; on other GPUs the
    compiler would spill.
    """
    if triton.knobs.runtime.interpret:
        return True  # counts for nothing
    return not packed.lower or torch.cuda.get_device_capability(device)[0] == 9


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
    if n == 0:
        return out
    strips, rows = _grid(packed, n, height // step, width // step, processors(x.device))
    groups, columns, warps = packed.tile
    wide, high, made = packed.padded
    _narrow[(strips * triton.cdiv(height // step, rows),)](
        x, x if lower is None else lower, out, *packed.tensors, rows,
        C=wide, LOW=packed.lower, E=high, OUT=made, H=height, WIDTH=width,
        P=groups, W=columns, S=warps, STRIDE=step, RESIDUAL=packed.residual,
        PLANAR=packed.planar, HEAD=packed.head, ASM=not triton.knobs.runtime.interpret,
        SUMS=SUMS, HOIST=_hoists(packed, x.device), num_warps=warps,
    )  # fmt: skip
    return out


def narrow_work(n: int, side: int, packed: Narrow, processors: int, element: int = 2) -> Work:
    """Return the work of n images of side x side pixels.

    `element` is the size of the values of planes, read or written, in bytes.
    """
    made = side // packed.stride
    strips, rows = _grid(packed, n, made, made, processors)
    bands = triton.cdiv(made, rows)
    each_strip = made + (2 * bands if packed.stride == 1 else 0)
    read = side**2 * (3 * element if packed.planar else 2 * packed.channels)
    read += (side // 2) ** 2 * 2 * packed.lower
    written = made**2 * (3 * element if packed.head else 2 * packed.outputs)
    return Work(
        runs={"_narrow": strips * bands, "make_row": strips * each_strip},
        moved=n * (read + written), made=n * written, items=n,
    )  # fmt: skip
