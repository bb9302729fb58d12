"""Frames and face boxes -> the generator's picture input, in one launch."""

from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..spec import CROP_SIZE, MARGIN, MASK_COLUMNS, MASK_ROWS, ROI_SIZE
from ..work import Work
from .quad_lines import four, pixel_line, spread, window_line
from .sampling import clamp_to_edge, load_box, to_level_bits

LANES = 32  # of four columns each, which one program makes

_CROP_SIZE, _ROI_SIZE = tl.constexpr(CROP_SIZE), tl.constexpr(ROI_SIZE)
_MARGIN = tl.constexpr(MARGIN)
# Of four columns of a box that is not larger than the crop.
_FIRST, _REACH = tl.constexpr((0, 0, 0, 0)), tl.constexpr((0, 1, 2, 3))
_MASK_TOP, _MASK_BOTTOM = (tl.constexpr(row) for row in MASK_ROWS)
_MASK_LEFT, _MASK_RIGHT = (tl.constexpr(column) for column in MASK_COLUMNS)


@triton.jit
def _place(pixel, size):
    """Locate crop rows or columns in the box, as `sampling.half_pixel` does.

    Returns floor(src), and src - floor(src) as a number of the table of weights.
    """
    numerator = ((2 * pixel + 1) * size + _CROP_SIZE).to(tl.uint32)
    whole = (numerator // (2 * _CROP_SIZE)).to(tl.int32)
    return whole - 1, numerator.to(tl.int32) - whole * (2 * _CROP_SIZE)


@triton.jit
def _weights(table, part):
    """Load the weights of four taps, two in each of two accesses."""
    near, far = tl.load(table + 2 * part), tl.load(table + 2 * part + 1)
    return (
        near.to(tl.int32).to(tl.float32, bitcast=True),
        (near >> 32).to(tl.int32).to(tl.float32, bitcast=True),
        far.to(tl.int32).to(tl.float32, bitcast=True),
        (far >> 32).to(tl.int32).to(tl.float32, bitcast=True),
    )


@triton.jit
def near_line(number, source, columns, ALIGNED: tl.constexpr):
    """Resample a row of the box sideways, where seven pixels hold the taps of four columns."""
    bases, weights = columns
    return window_line(_start(number, source), bases[0] * 3, weights, 3, 4, _FIRST, _REACH, ALIGNED)


@triton.jit
def far_line(number, source, columns):
    """Resample a row of the box sideways, with pixels of its own for each column."""
    bases, weights = columns
    return pixel_line(_start(number, source), bases, source[5], weights, 3, 4, _FIRST, _REACH, True)


@triton.jit
def _start(number, source):
    """Return the address of a row of the box."""
    frame, row_stride, height, y0, box_height, _ = source
    row = clamp_to_edge(y0 + clamp_to_edge(number, box_height), height)
    return frame + row.to(tl.int64) * row_stride


@triton.jit
def store_planes(planes, channels):
    """Store R, G and B of four columns of a row of the ROI in three planes."""
    red, green, blue = channels
    planes, inner = planes
    tl.store(planes + 2 * (_ROI_SIZE * _ROI_SIZE), red, mask=inner)
    tl.store(planes + _ROI_SIZE * _ROI_SIZE, green, mask=inner)
    tl.store(planes, blue, mask=inner)


@triton.jit
def store_masked(planes, channels, keep):
    """Store R, G and B of four columns as `store_planes`, 0 where the generator must not see."""
    red, green, blue = channels
    dtype = planes[0].dtype.element_ty
    channels = (
        (red * keep).to(dtype), (green * keep).to(dtype), (blue * keep).to(dtype),
    )  # fmt: skip
    store_planes(planes, channels)


@triton.jit
def make_row(row, part, lines, table, stores):
    """Make one row of the crop and of the planes from four lines."""
    line0, line1, line2, line3 = lines
    crops, live, inputs, inner, keep = stores
    weights = _weights(table, part)
    levels = ()
    bits = ()
    for number in tl.static_range(12):
        value = line0[number] * weights[0] + line1[number] * weights[1]
        value += line2[number] * weights[2]
        value += line3[number] * weights[3]
        level, low = to_level_bits(value)
        levels = levels + (level * (1 / 255),)  # noqa: RUF005
        bits = bits + (low.to(tl.uint8),)  # noqa: RUF005
    crops += row * (3 * _CROP_SIZE)
    # A pixel's channels are neighbours: R, G, B, R; G, B, R, G; B, R, G, B.
    tl.store(crops, four(bits[0], bits[4], bits[8], bits[1]), mask=live)
    tl.store(crops + 4, four(bits[5], bits[9], bits[2], bits[6]), mask=live)
    tl.store(crops + 8, four(bits[10], bits[3], bits[7], bits[11]), mask=live)
    y = row - _MARGIN
    if (y >= 0) & (y < _ROI_SIZE):
        inputs += y * _ROI_SIZE
        red = four(levels[0], levels[1], levels[2], levels[3])
        green = four(levels[4], levels[5], levels[6], levels[7])
        blue = four(levels[8], levels[9], levels[10], levels[11])
        dtype = inputs.dtype.element_ty
        channels = red.to(dtype), green.to(dtype), blue.to(dtype)
        store_planes((inputs, inner), channels)
        inputs += 3 * _ROI_SIZE * _ROI_SIZE
        if (y < _MASK_TOP) | (y >= _MASK_BOTTOM):
            store_planes((inputs, inner), channels)
        else:
            store_masked((inputs, inner), (red, green, blue), keep)


@triton.jit
def make_rows(row, end, place, newest, lines, box_height, table, stores):
    """Make the rows whose last line is the newest one, if any. Returns the next row, its place."""
    top, part = place
    while (row < end) & (top + 2 <= newest):
        make_row(row, part, lines, table, stores)
        row += 1
        top, part = _place(row, box_height)
    return row, (top, part)


# Compiled once for all frames and batches, which takes seconds.
@triton.jit(do_not_specialize=["frame_units", "row_units", "height", "width", "rows"])
def _face_input(
    frames, frame_units, row_units, boxes, index, inputs, crops, height, width, table, rows,
    ALIGNED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Make `rows` rows of 4 LANES columns of one face crop, and of the six planes made of them."""
    SIZE: tl.constexpr = 4 if ALIGNED else 1
    across: tl.constexpr = (_CROP_SIZE + 4 * LANES - 1) // (4 * LANES)
    program = tl.program_id(1)
    item = tl.program_id(0).to(tl.int64)
    number = tl.load(index + item).to(tl.int64)
    x0, y0, x1, y1 = load_box(boxes, number)
    crops += item * _CROP_SIZE * _CROP_SIZE * 3
    inputs += item * 6 * _ROI_SIZE * _ROI_SIZE

    quad = program % across * LANES + tl.arange(0, LANES)
    box_width = x1 - x0
    edges = (clamp_to_edge(x0, width), clamp_to_edge(x1 - 1, width))
    # Four columns may need more than seven pixels, and no row follows the last one of a frame.
    far = (box_width > _CROP_SIZE) | ((y1 >= height) & (x1 + 8 > width))
    bases = ()
    weights = ()
    for column in tl.static_range(4):
        left, part = _place(tl.minimum(4 * quad + column, _CROP_SIZE - 1), box_width)
        tap = x0 + left - 1
        base = tl.minimum(tl.maximum(tap, edges[0]), edges[1])
        if column:
            base = tl.where(far, base, bases[0])
        bases = bases + (base,)  # noqa: RUF005
        own = spread(tap, _weights(table, part), base, edges, column, 4, _FIRST, _REACH)
        weights = weights + (own,)  # noqa: RUF005
    columns = (bases, weights)
    columns = (bases, weights)
    frame = frames + number * frame_units * SIZE
    box_height = y1 - y0
    source = (frame, row_units * SIZE, height, y0, box_height, width - 1)

    one = tl.arange(0, 4)[None, :]
    x = (quad * 4 - _MARGIN)[:, None] + one
    stores = (
        crops + ((quad * 12)[:, None] + one), (quad * 4 < _CROP_SIZE)[:, None] & (one >= 0),
        inputs + x, (x >= 0) & (x < _ROI_SIZE),
        tl.where((x < _MASK_LEFT) | (x >= _MASK_RIGHT), 1.0, 0.0),
    )  # fmt: skip

    # A line is a row of the box, resampled sideways; `newest` is the box row of the last one.
    row = program // across * rows
    end = tl.minimum(row + rows, _CROP_SIZE)
    place = _place(row, box_height)
    newest = place[0] - 2
    none = tl.zeros((LANES,), tl.float32)
    line0 = (none, none, none, none, none, none, none, none, none, none, none, none)
    line1 = line0
    line2 = line0
    line3 = line0
    if far:
        while row < end:
            # A box made smaller has rows that no crop row uses.
            newest = tl.maximum(newest, place[0] - 2) + 1
            line0, line1, line2 = line1, line2, line3
            line3 = far_line(newest, source, columns)
            lines = (line0, line1, line2, line3)
            row, place = make_rows(row, end, place, newest, lines, box_height, table, stores)
    else:
        while row < end:
            # Four lines each time, so that none has to move.
            newest += 1
            line0 = near_line(newest, source, columns, ALIGNED)
            lines = (line1, line2, line3, line0)
            row, place = make_rows(row, end, place, newest, lines, box_height, table, stores)
            if row < end:
                newest += 1
                line1 = near_line(newest, source, columns, ALIGNED)
                lines = (line2, line3, line0, line1)
                row, place = make_rows(row, end, place, newest, lines, box_height, table, stores)
            if row < end:
                newest += 1
                line2 = near_line(newest, source, columns, ALIGNED)
                lines = (line3, line0, line1, line2)
                row, place = make_rows(row, end, place, newest, lines, box_height, table, stores)
            if row < end:
                newest += 1
                line3 = near_line(newest, source, columns, ALIGNED)
                lines = (line0, line1, line2, line3)
                row, place = make_rows(row, end, place, newest, lines, box_height, table, stores)


@lru_cache
def _weight_table(device: torch.device) -> Tensor:
    """Make the weights of all places between two pixels, once per device.

    Every place is a multiple of 1 / 656, whatever the size of the box.

    Returns:
        (656, 2) int64: two float32 in each, the weights of the four taps.
    """
    x = torch.arange(2 * CROP_SIZE, dtype=torch.float64) / (2 * CROP_SIZE)
    near = [((1.25 * d - 2.25) * d * d) + 1 for d in (x, 1 - x)]
    far = [-0.75 * d * (1 - d) * (1 - d) for d in (x, 1 - x)]
    weights = torch.stack([far[0], near[0], near[1], far[1]], dim=-1).float().contiguous()
    return weights.view(torch.int64).to(device)


def tile_rows(n: int) -> int:
    """Return the rows of a crop that one program makes, of n crops.

    Each program first resamples three extra box rows, so programs make more rows once the batch
    alone fills the GPU.
    """
    return 18 if n >= 16 else 8 if n >= 4 else 4


def _registers(device: torch.device) -> int:
    """Return how many registers a thread may use.

    For the newest and the oldest GPUs the compiler needs more and would spill.
    """
    if triton.knobs.runtime.interpret:
        return 128  # counts for nothing
    capability = torch.cuda.get_device_capability(device)
    if capability >= (10, 0):
        return 232
    return 144 if capability == (8, 0) else 128


def face_input(
    frames: Tensor, boxes: Tensor, index: Tensor, inputs: Tensor, crops: Tensor
) -> tuple[Tensor, Tensor]:
    n, width = index.shape[0], frames.shape[2]
    if width < 8:
        frames = F.pad(frames, (0, 0, 0, 8 - width))  # the kernel reads 24 bytes of a row
    strides = frames.stride()[:2]
    aligned = all(part % 4 == 0 for part in (*strides, frames.data_ptr()))
    size = 4 if aligned else 1
    rows = tile_rows(n)
    tiles = triton.cdiv(CROP_SIZE, rows) * triton.cdiv(CROP_SIZE, 4 * LANES)
    _face_input[(n, tiles)](
        frames, strides[0] // size, strides[1] // size, boxes.contiguous(), index.contiguous(),
        inputs, crops, frames.shape[1], width,
        _weight_table(frames.device), rows, ALIGNED=aligned, LANES=LANES,
        num_warps=1, maxnreg=_registers(frames.device), num_stages=1,
    )  # fmt: skip
    return inputs, crops


def face_input_work(n: int, box: tuple[int, int, int, int], element: int) -> Work:
    """Return the work of n frames with a face in this box, which they show entirely.

    `element` is the size of the planes' values in bytes.
    """
    x0, y0, x1, y1 = box
    height, rows = y1 - y0, tile_rows(n)
    lines = 0
    for begin in range(0, CROP_SIZE, rows):
        newest = -CROP_SIZE
        for row in range(begin, min(begin + rows, CROP_SIZE)):
            last = ((2 * row + 1) * height + CROP_SIZE) // (2 * CROP_SIZE) + 1
            newest = max(newest, last - 4)
            lines += max(last - newest, 0)
            newest = last
    across = triton.cdiv(CROP_SIZE, 4 * LANES)
    far = x1 - x0 > CROP_SIZE
    runs = {
        "_face_input": across * triton.cdiv(CROP_SIZE, rows), "make_row": across * CROP_SIZE,
        "near_line": 0 if far else across * lines, "far_line": across * lines if far else 0,
        "store_planes": 2 * across * ROI_SIZE,
        "store_masked": across * (MASK_ROWS[1] - MASK_ROWS[0]),
    }  # fmt: skip
    made = 3 * CROP_SIZE**2 + 6 * ROI_SIZE**2 * element
    return Work(
        runs={part: n * count for part, count in runs.items()},
        moved=n * (made + 3 * height * (x1 - x0)), made=n * made, items=n,
        # Of a warp: 128 columns in the box and, 12 bytes apart, in the crop.
        lines={"near_line": 1 + 3 * (x1 - x0) / CROP_SIZE, "far_line": 8.0, "make_row": 3.5},
    )  # fmt: skip
