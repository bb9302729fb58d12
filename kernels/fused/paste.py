"""Generated faces, resampled to the size of their boxes: some columns of some rows at a time.

The rows of a tile are in groups, one below the other. All groups walk down their rows in step, and
each keeps the lines that its next row needs: rows of the source, resampled sideways. In a face made
smaller, which is the usual case, the next row needs one or two new lines, not all four.
"""

import triton
import triton.language as tl

from ..spec import CROP_SIZE, MARGIN, ROI_SIZE
from .pixel_formats import float_level
from .sampling import clamp_to_edge, cubic_weight, floor_quotient, half_pixel, to_int_level

_CROP_SIZE, _ROI_SIZE = tl.constexpr(CROP_SIZE), tl.constexpr(ROI_SIZE)
_MARGIN = tl.constexpr(MARGIN)


@triton.jit
def inner_line(source, row, columns, PLANAR: tl.constexpr):
    """Resample rows of a crop sideways, of which all pixels needed are generated: R, G, B."""
    roi, _ = source
    left, weights = columns
    CHANNEL: tl.constexpr = _ROI_SIZE * _ROI_SIZE if PLANAR else 1
    ROW: tl.constexpr = _ROI_SIZE if PLANAR else 3 * _ROI_SIZE
    COLUMN: tl.constexpr = 1 if PLANAR else 3
    at = roi + (row - _MARGIN) * ROW + (left - 1 - _MARGIN) * COLUMN
    red = (row + left) * 0.0
    green = red
    blue = red
    for tap in tl.static_range(4):
        here = at + tap * COLUMN
        red += float_level(tl.load(here + 2 * CHANNEL)) * weights[tap]
        green += float_level(tl.load(here + CHANNEL)) * weights[tap]
        blue += float_level(tl.load(here)) * weights[tap]
    return red, green, blue


@triton.jit
def edge_line(source, row, columns, PLANAR: tl.constexpr):
    """Resample rows of a crop sideways, of which some pixels may be the frame's: R, G, B."""
    roi, crop = source
    left, weights = columns
    CHANNEL: tl.constexpr = _ROI_SIZE * _ROI_SIZE if PLANAR else 1
    ROW: tl.constexpr = _ROI_SIZE if PLANAR else 3 * _ROI_SIZE
    COLUMN: tl.constexpr = 1 if PLANAR else 3
    red = (row + left) * 0.0
    green = red
    blue = red
    row = clamp_to_edge(row, _CROP_SIZE)
    y = row - _MARGIN
    for tap in tl.static_range(4):
        column = clamp_to_edge(left - 1 + tap, _CROP_SIZE)
        x = column - _MARGIN
        generated = (y >= 0) & (y < _ROI_SIZE) & (x >= 0) & (x < _ROI_SIZE)
        kept = generated == 0
        at = roi + y * ROW + x * COLUMN
        old = crop + (row * _CROP_SIZE + column) * 3
        # One of the two is loaded, and the other one is 0.
        level = float_level(tl.load(at + 2 * CHANNEL, mask=generated, other=0))
        level += tl.load(old, mask=kept, other=0).to(tl.float32)
        red += level * weights[tap]
        level = float_level(tl.load(at + CHANNEL, mask=generated, other=0))
        level += tl.load(old + 1, mask=kept, other=0).to(tl.float32)
        green += level * weights[tap]
        level = float_level(tl.load(at, mask=generated, other=0))
        level += tl.load(old + 2, mask=kept, other=0).to(tl.float32)
        blue += level * weights[tap]
    return red, green, blue


@triton.jit
def direct_line(source, row, columns, PLANAR: tl.constexpr):
    """Resample rows of a ROI sideways, bilinearly: R, G, B as int32, times the box's width."""
    roi, _ = source
    left, weights = columns
    CHANNEL: tl.constexpr = _ROI_SIZE * _ROI_SIZE if PLANAR else 1
    ROW: tl.constexpr = _ROI_SIZE if PLANAR else 3 * _ROI_SIZE
    COLUMN: tl.constexpr = 1 if PLANAR else 3
    red = (row + left) * 0
    green = red
    blue = red
    start = roi + clamp_to_edge(row, _ROI_SIZE) * ROW
    for tap in tl.static_range(2):
        at = start + clamp_to_edge(left + tap, _ROI_SIZE) * COLUMN
        level = float_level(tl.load(at + 2 * CHANNEL))
        red += level.to(tl.int32) * weights[tap]
        level = float_level(tl.load(at + CHANNEL))
        green += level.to(tl.int32) * weights[tap]
        level = float_level(tl.load(at))
        blue += level.to(tl.int32) * weights[tap]
    return red, green, blue


@triton.jit
def _push(lines, new, moves, MODE: tl.constexpr):
    """Append a line where it `moves`, and drop the first one."""
    if MODE == "crop":
        return (
            tl.where(moves, lines[1], lines[0]), tl.where(moves, lines[2], lines[1]),
            tl.where(moves, lines[3], lines[2]), tl.where(moves, new, lines[3]),
        )  # fmt: skip
    else:
        return tl.where(moves, lines[1], lines[0]), tl.where(moves, new, lines[1])


@triton.jit
def next_line(source, newest, last, columns, lines, edge, MODE: tl.constexpr, PLANAR: tl.constexpr):
    """Give each group that has not got line `last` its next one. Returns `newest`, lines."""
    moves = newest < last
    newest += moves.to(tl.int32)
    if MODE == "direct":
        red, green, blue = direct_line(source, newest, columns, PLANAR)
    else:
        if edge:
            red, green, blue = edge_line(source, newest, columns, PLANAR)
        else:
            red, green, blue = inner_line(source, newest, columns, PLANAR)
    lines = (
        _push(lines[0], red, moves, MODE), _push(lines[1], green, moves, MODE),
        _push(lines[2], blue, moves, MODE),
    )  # fmt: skip
    return newest, lines


@triton.jit
def _weigh(lines, weights):
    value = lines[0] * weights[0] + lines[1] * weights[1]
    value += lines[2] * weights[2]
    value += lines[3] * weights[3]
    return to_int_level(value)


@triton.jit
def _blend(lines, down, height, parts):
    total = lines[0].to(tl.int64) * (height - down) + lines[1].to(tl.int64) * down
    return floor_quotient(total, parts)


@triton.jit
def first_lines(none, MODE: tl.constexpr):
    """Return lines of no value, for R, G and B."""
    if MODE == "direct":
        return (none, none), (none, none), (none, none)
    else:
        none = none.to(tl.float32)
        line = (none, none, none, none)
        return line, line, line


@triton.jit
def columns_of(column, width, MODE: tl.constexpr):
    """Return floor(src) of columns of the box, and the weights of the taps around it."""
    if MODE == "crop":
        left, x = half_pixel(column, _CROP_SIZE, width)
        weights = (cubic_weight(x, 0), cubic_weight(x, 1), cubic_weight(x, 2), cubic_weight(x, 3))
        return left, weights
    else:
        right = column * _ROI_SIZE % width
        return column * _ROI_SIZE // width, (width - right, right)


@triton.jit
def generated_only(size):
    """Return the range of box rows (or columns) that need generated pixels only, in mode "crop".

    The taps floor(src) - 1 and floor(src) + 2 of the first and the last one are within the ROI. The
    range may be a little too small, and empty.
    """
    FIRST: tl.constexpr = 2 * _MARGIN + 3  # of twice src + 1/2, in pixels
    END: tl.constexpr = 2 * (_MARGIN + _ROI_SIZE) - 3
    WHOLE: tl.constexpr = 2 * _CROP_SIZE
    return (size * FIRST + WHOLE - 1) // WHOLE, (size * END - _CROP_SIZE) // WHOLE


@triton.jit
def first_place(row, height, MODE: tl.constexpr):
    """Return the place of rows of the box in the source: floor(src), and src - floor(src).

    The second is a numerator (int32); its denominator is the second result of `steps`.
    """
    # Also for the row above the box, hence a whole box further: on a GPU `//` truncates towards 0.
    if MODE == "crop":
        shifted = (2 * (row + height) + 1) * _CROP_SIZE - height
        whole = shifted // (2 * height)
        return whole - _CROP_SIZE, shifted - whole * 2 * height
    else:
        shifted = (row + height) * _ROI_SIZE
        whole = shifted // height
        return whole - _ROI_SIZE, shifted - whole * height


@triton.jit
def steps(height, MODE: tl.constexpr):
    """Return how far `first_place` is from one row to the next: whole and part; and what is 1."""
    if MODE == "crop":
        whole = (height * 0 + _CROP_SIZE) // height
        return whole, (whole * height - _CROP_SIZE) * -2, 2 * height
    else:
        whole = (height * 0 + _ROI_SIZE) // height
        return whole, (whole * height - _ROI_SIZE) * -1, height


@triton.jit
def paste_row(
    source, size, place, step, first, columns, lines, edge,
    MODE: tl.constexpr, PLANAR: tl.constexpr,
):  # fmt: skip
    """Make a row of the box (int32 levels R, G, B) in each group, and go to the next row.

    Args:
        source: addresses of the ROI and of the crop.
        size: height and width of the box.
        place: see `first_place`; then the newest line of each group.
        step: see `steps`.
        first: no line has been made yet.
        columns: see `columns_of`.
        lines: of R, G and B.
        edge: some of the pixels needed are not generated.

    Returns:
        The levels, the next place, and the lines.
    """
    height, width = size
    top, part, newest = place
    whole, rest, one = step
    TAPS: tl.constexpr = 4 if MODE == "crop" else 2
    last = top + TAPS // 2
    newest = tl.maximum(newest, last - TAPS)  # a face made smaller has rows that no row uses
    new = tl.where(first, TAPS, tl.minimum(whole + (rest > 0).to(tl.int32), TAPS))
    for _ in range(new):
        newest, lines = next_line(source, newest, last, columns, lines, edge, MODE, PLANAR)
    if MODE == "crop":
        y = tl.div_rn(part.to(tl.float32), (part * 0 + one).to(tl.float32))
        weights = (cubic_weight(y, 0), cubic_weight(y, 1), cubic_weight(y, 2), cubic_weight(y, 3))
        levels = _weigh(lines[0], weights), _weigh(lines[1], weights), _weigh(lines[2], weights)
    else:
        parts = height.to(tl.int64) * width
        levels = (
            _blend(lines[0], part, height, parts), _blend(lines[1], part, height, parts),
            _blend(lines[2], part, height, parts),
        )  # fmt: skip
    top, part = top + whole, part + rest
    over = part >= one
    return levels, (tl.where(over, top + 1, top), tl.where(over, part - one, part), newest), lines
