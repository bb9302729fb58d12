"""The rows of an inverted residual of few channels: device functions of `narrow`."""

import triton
import triton.language as tl

from ..spec import MASK_COLUMNS, MASK_ROWS
from .polyphase import add_last_taps, add_taps, multiply_add_relu, relu, side_by_side
from .upsample import load_between, move, row_places, step_to

_MASK_TOP, _MASK_BOTTOM = (tl.constexpr(row) for row in MASK_ROWS)
_MASK_LEFT, _MASK_RIGHT = (tl.constexpr(column) for column in MASK_COLUMNS)


@triton.jit
def load_planes(x, row, column, C: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr):
    """Load (C, groups) of six planes, of which the last three are the first ones but for a mask."""
    channel = tl.arange(0, C)[:, None]
    plane = tl.where(channel < 3, channel, channel - 3)
    outside = (column < _MASK_LEFT) | (column >= _MASK_RIGHT)
    outside = outside | (row < _MASK_TOP) | (row >= _MASK_BOTTOM)
    live = (channel < 3) | ((channel < 6) & outside[None, :])
    at = (plane * H + row) * WIDTH + column[None, :]
    return tl.load(x + at, mask=live, other=0).to(tl.float16)


@triton.jit
def add_row(
    row, images, columns, product, taps, halves, begun,
    BOTTOM: tl.constexpr, MIDDLE: tl.constexpr, TOP: tl.constexpr,
    C: tl.constexpr, LOW: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr,
    W: tl.constexpr, STRIDE: tl.constexpr, PLANAR: tl.constexpr,
    ASM: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Expand a row, and add it to the sums of the rows that it is the bottom, middle, top of.

    Args:
        row: of the input, from -1 to H; of stride 2, from 0 to H - 1.
        images: the input, and the smaller image.
        columns: the first one of each group; what the expanded values of it and of the last one
            are multiplied by (of stride 2: what they are at most), 0 outside; its place in the
            smaller image.
        product: weights for the input and for the smaller image, and bias.
        taps: nine, and the bias.
        halves: sums that lack their bottom row.
        begun: sums that lack two.

    Returns:
        The sums that are complete, those that lack a row, those that lack two.
    """
    x, lower = images
    start, edges, first, place = columns
    expand, expand_lower, bias = product
    S: tl.constexpr = bias.shape[0]
    P: tl.constexpr = start.shape[0]
    LAST: tl.constexpr = W * STRIDE + (2 - STRIDE)  # the column of the last tensor
    LOW_WIDTH: tl.constexpr = WIDTH // 2

    # The convolution is padded with zeros, which are not the expanded value of any pixel.
    inside = tl.where((row >= 0) & (row < H), 1.0, 0.0).to(tl.float16)
    if LOW:
        # Nothing is added in rows that count. The compiler cannot know, and so makes what follows
        # in each row, instead of keeping it in registers, which are short.
        place += tl.minimum(row, 0).to(tl.float16)
    row = tl.minimum(tl.maximum(row, 0), H - 1)
    if LOW:
        up, down, share = row_places(row, H // 2, H)
        up, down = up * (LOW_WIDTH * LOW), down * (LOW_WIDTH * LOW)
        near = load_between(lower, up, down, share, first, 0, LOW, LOW_WIDTH, False)
        middle = load_between(lower, up, down, share, first, 1, LOW, LOW_WIDTH, False)
        behind = middle - near
        far, ahead = middle, behind
    finished, halved, started = (), (), ()
    for k in tl.static_range(LAST + 1):
        column = start + k
        if k == 0:
            column = tl.maximum(column, 0)
        if STRIDE == 1 and k == LAST:
            column = tl.minimum(column, WIDTH - 1)
        if PLANAR:
            tile = load_planes(x, row, column, C, H, WIDTH)
        else:
            at = column[:, None] * C + tl.arange(0, C)[None, :]
            tile = tl.trans(tl.load(x + row * (WIDTH * C) + at))
        # Each warp has some of the channels, of all pixels.
        total = tl.broadcast_to(bias.to(SUMS), (S, bias.shape[1], P))
        total = tl.dot(expand, tl.broadcast_to(tile[None], (S, C, P)), total, out_dtype=SUMS)
        if LOW:
            if k == 1:
                far = load_between(lower, up, down, share, first, 2, LOW, LOW_WIDTH, False)
                ahead = far - middle
            elif k % 2:
                middle, behind = far, ahead
                # Column W, the last one inside, lies at column W / 2 at the most.
                far = load_between(
                    lower, up, down, share, first, k // 2 + 2, LOW, LOW_WIDTH, k > W - 2
                )
                ahead = far - middle
            tile = tl.trans(move(middle, behind, ahead, step_to(place, k, LOW_WIDTH, WIDTH)))
            tile = tl.broadcast_to(tile[None], (S, LOW, P))
            total = tl.dot(expand_lower, tile, total, out_dtype=SUMS)
        total = total.to(tl.float16)
        if STRIDE == 1:
            if k == 0:
                keep = edges[0] * inside
            elif k == LAST:
                keep = edges[1] * inside
            else:
                keep = inside
            right = multiply_add_relu(total, keep, tl.zeros_like(total), ASM)
        else:
            right = relu(total)
            if k == 0:
                right = tl.minimum(right, edges[0])
        if k == 0:
            left = right
            centre = right
        if k >= 2 and k % STRIDE == 0:
            if BOTTOM:
                total = add_last_taps(taps, left, centre, right, halves[(k - 2) // STRIDE], ASM)
                finished = finished + (total,)  # type: ignore[assignment]  # noqa: RUF005
            if MIDDLE:
                total = add_taps(taps, 1, left, centre, right, begun[(k - 2) // STRIDE])
                halved = halved + (total,)  # type: ignore[assignment]  # noqa: RUF005
            if TOP:
                total = tl.broadcast_to(taps[9], right.shape)
                started = started + (add_taps(taps, 0, left, centre, right, total),)  # type: ignore[assignment]  # noqa: RUF005
        left = centre
        centre = right
    return finished, halved, started


@triton.jit
def finish_row(
    finished, row, live, x, ending, strip,
    C: tl.constexpr, E: tl.constexpr, OUT: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr,
    P: tl.constexpr, W: tl.constexpr, RESIDUAL: tl.constexpr, HEAD: tl.constexpr,
    RAGGED: tl.constexpr,
):  # fmt: skip
    """Project a row of complete sums, and store it if it is live.

    H and WIDTH are the output's.
    """
    out, project, bias, head = ending
    column = (strip * (P * W) + tl.arange(0, P * W))[:, None]
    made = tl.arange(0, OUT)[None, :]
    sums = side_by_side(finished, E, P, W)
    live = live & ((column < WIDTH) if RAGGED else (column >= 0))
    if HEAD:
        y = tl.broadcast_to(bias, (P * W, OUT))
        if RESIDUAL:
            at = (row * WIDTH + column) * C + tl.arange(0, C)[None, :]
            y = tl.dot(tl.load(x + at, mask=live, other=0), head, y)
        y = 1 / (1 + tl.exp(-tl.dot(tl.trans(sums), project, y)))
        at = (made * H + row) * WIDTH + column
        tl.store(out + at, y.to(out.dtype.element_ty), mask=live & (made < 3))
    else:
        y = tl.broadcast_to(bias, (OUT, P * W))
        at = (row * WIDTH + column) * OUT + made
        if RESIDUAL:
            y += tl.trans(tl.load(x + at, mask=live, other=0)).to(tl.float32)
        y = tl.trans(tl.dot(project, sums, y).to(tl.float16))
        tl.store(out + at, y, mask=live)


@triton.jit
def make_row(
    row, live, images, columns, product, taps, ending, strip, halves, begun,
    C: tl.constexpr, LOW: tl.constexpr, E: tl.constexpr, OUT: tl.constexpr,
    H: tl.constexpr, WIDTH: tl.constexpr, P: tl.constexpr, W: tl.constexpr,
    STRIDE: tl.constexpr, RESIDUAL: tl.constexpr, PLANAR: tl.constexpr, HEAD: tl.constexpr,
    ASM: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Make a row of the output, and store it if it is live: of stride 1 the one above the input's
    row `row`, which is its bottom row; of stride 2 row `row` itself.

    Returns:
        The sums that lack a row, of stride 1 only, and those that lack two.
    """
    ACROSS: tl.constexpr = WIDTH // STRIDE
    if STRIDE == 1:
        finished, halves, begun = add_row(
            row, images, columns, product, taps, halves, begun, True, True, True,
            C, LOW, H, WIDTH, W, STRIDE, PLANAR, ASM, SUMS,
        )  # fmt: skip
        row -= 1
    else:
        _, middle, _ = add_row(
            2 * row, images, columns, product, taps, halves, begun, False, True, False,
            C, LOW, H, WIDTH, W, STRIDE, PLANAR, ASM, SUMS,
        )  # fmt: skip
        finished, _, begun = add_row(
            2 * row + 1, images, columns, product, taps, middle, begun, True, False, True,
            C, LOW, H, WIDTH, W, STRIDE, PLANAR, ASM, SUMS,
        )  # fmt: skip
    finish_row(
        finished, row, live, images[0], ending, strip,
        C, E, OUT, H // STRIDE, ACROSS, P, W, RESIDUAL, HEAD, ACROSS % (P * W) != 0,
    )  # fmt: skip
    return halves, begun
