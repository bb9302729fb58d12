"""Frames and face boxes -> the generator's picture input, in one launch."""

from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..spec import CROP_SIZE, MARGIN, MASK_COLUMNS, MASK_ROWS, ROI_SIZE
from ..work import Work
from .sampling import clamp_to_edge, load_box, to_level_bits

LANES = 512  # for the 3 x 164 pairs of a crop row, rounded up to a power of two

_CROP_SIZE, _ROI_SIZE = tl.constexpr(CROP_SIZE), tl.constexpr(ROI_SIZE)
_MARGIN = tl.constexpr(MARGIN)
_PAIRS = tl.constexpr(CROP_SIZE // 2)
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
def _spread(first, weights, base, edges):
    """Give the weights of four taps to the five pixels from `base` on that the taps fall on.

    Taps are clamped to the edges, where a pixel gets the weights of several.
    """
    low, high = edges
    tap0 = tl.minimum(tl.maximum(first, low), high) - base
    tap1 = tl.minimum(tl.maximum(first + 1, low), high) - base
    tap2 = tl.minimum(tl.maximum(first + 2, low), high) - base
    tap3 = tl.minimum(tl.maximum(first + 3, low), high) - base
    spread = ()
    for pixel in tl.static_range(5):
        weight = tl.where(tap0 == pixel, weights[0], 0.0)
        weight += tl.where(tap1 == pixel, weights[1], 0.0)
        weight += tl.where(tap2 == pixel, weights[2], 0.0)
        weight += tl.where(tap3 == pixel, weights[3], 0.0)
        spread = spread + (weight,)  # noqa: RUF005 (Triton has no unpacking)
    return spread


@triton.jit
def first_pixel(tap, edges, width):
    """Return the first of five pixels of a frame's row that hold four taps."""
    pixel = tl.minimum(tl.maximum(tap, edges[0]), edges[1])
    return tl.maximum(tl.minimum(pixel, width - 5), 0)


@triton.jit
def near_line(start, columns):
    """Resample a row of the box sideways, where five pixels hold the taps of two columns."""
    bases, left, right = columns
    at = start + bases[0]
    level = tl.load(at).to(tl.float32)
    first, second = level * left[0], level * right[0]
    for pixel in tl.static_range(1, 5):
        level = tl.load(at + 3 * pixel).to(tl.float32)
        first += level * left[pixel]
        second += level * right[pixel]
    return first, second


@triton.jit
def far_line(start, columns):
    """Resample a row of the box sideways, with five pixels for each of two columns."""
    bases, left, right = columns
    at, other = start + bases[0], start + bases[1]
    first = tl.load(at).to(tl.float32) * left[0]
    second = tl.load(other).to(tl.float32) * right[0]
    for pixel in tl.static_range(1, 5):
        first += tl.load(at + 3 * pixel).to(tl.float32) * left[pixel]
        second += tl.load(other + 3 * pixel).to(tl.float32) * right[pixel]
    return first, second


@triton.jit
def store_plane(plane, first, second, scales, inner):
    """Store levels of a row of the ROI, each times its scale, as values of a plane."""
    values = tl.join(first * scales[0], second * scales[1])
    tl.store(plane, values.to(plane.dtype.element_ty), mask=inner)


@triton.jit
def make_row(row, crop, plane, newest, lines, source, columns, stores):
    """Make one row of the crop and of the planes. Returns the lines, to be used again.

    A line is a row of the box, resampled sideways; `newest` is the box row of the last one. In an
    enlarged box, the next row needs few new lines, or none.
    """
    frame, row_stride, height, y0, box_height, far, table = source
    live, inner, whole, masked = stores
    line0, line1, line2, line3 = lines
    top, part = _place(row, box_height)
    newest = tl.maximum(newest, top - 2)  # a box made smaller has rows that no crop row uses
    while newest < top + 2:
        newest += 1
        line0, line1, line2 = line1, line2, line3
        box_row = clamp_to_edge(newest, box_height)
        start = frame + clamp_to_edge(y0 + box_row, height).to(tl.int64) * row_stride
        if far:
            left, right = far_line(start, columns)
        else:
            left, right = near_line(start, columns)
        line3 = (left, right)
    weights = _weights(table, part)
    first = line0[0] * weights[0] + line1[0] * weights[1]
    first += line2[0] * weights[2]
    first += line3[0] * weights[3]
    second = line0[1] * weights[0] + line1[1] * weights[1]
    second += line2[1] * weights[2]
    second += line3[1] * weights[3]
    first, first_bits = to_level_bits(first)
    second, second_bits = to_level_bits(second)
    tl.store(crop, first_bits.to(tl.uint8), mask=live)
    tl.store(crop + 3, second_bits.to(tl.uint8), mask=live)
    y = row - _MARGIN
    if (y >= 0) & (y < _ROI_SIZE):
        store_plane(plane, first, second, whole, inner)
        plane += 3 * _ROI_SIZE * _ROI_SIZE
        if (y < _MASK_TOP) | (y >= _MASK_BOTTOM):
            store_plane(plane, first, second, whole, inner)
        else:
            store_plane(plane, first, second, masked, inner)
    return newest, (line0, line1, line2, line3)


@triton.jit(do_not_specialize=["frame_stride", "row_stride", "height", "width"])
def _face_input(
    frames, frame_stride, row_stride, boxes, index, inputs, crops, height, width, table,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Make ROWS rows of one face crop, and of the six planes made of them.

    A lane has one channel of two neighbouring columns.
    """
    tiles: tl.constexpr = (_CROP_SIZE + ROWS - 1) // ROWS
    program = tl.program_id(0)
    item = (program // tiles).to(tl.int64)
    number = tl.load(index + item).to(tl.int64)
    x0, y0, x1, y1 = load_box(boxes, number)
    crops += item * _CROP_SIZE * _CROP_SIZE * 3
    inputs += item * 6 * _ROI_SIZE * _ROI_SIZE

    lane = tl.arange(0, LANES)
    channel = tl.minimum(lane // _PAIRS, 2)  # R, G, B
    column = 2 * (lane - channel * _PAIRS)
    box_width = x1 - x0
    left, left_part = _place(tl.minimum(column, _CROP_SIZE - 1), box_width)
    right, right_part = _place(tl.minimum(column + 1, _CROP_SIZE - 1), box_width)
    edges = (clamp_to_edge(x0, width), clamp_to_edge(x1 - 1, width))
    far = box_width > _CROP_SIZE  # two columns may need more than five pixels
    base = first_pixel(x0 + left - 1, edges, width)
    other = tl.where(far, first_pixel(x0 + right - 1, edges, width), base)
    columns = (
        (3 * base + channel, 3 * other + channel),
        _spread(x0 + left - 1, _weights(table, left_part), base, edges),
        _spread(x0 + right - 1, _weights(table, right_part), other, edges),
    )
    frame = frames + number * frame_stride
    source = (frame, row_stride, height, y0, y1 - y0, far, table)

    live = column < _CROP_SIZE
    to_crop = column * 3 + channel
    x = column - _MARGIN
    inner = (x >= 0) & (x < _ROI_SIZE)
    scale = 1 / 255
    masked = (
        tl.where((x < _MASK_LEFT) | (x >= _MASK_RIGHT), scale, 0.0),
        tl.where((x + 1 < _MASK_LEFT) | (x + 1 >= _MASK_RIGHT), scale, 0.0),
    )
    two = tl.arange(0, 2)[None, :]
    to_plane = ((2 - channel) * (_ROI_SIZE * _ROI_SIZE) + x)[:, None] + two
    stores = (live, inner[:, None] & (two >= 0), (scale, scale), masked)

    newest = y0 * 0 - (1 << 30)
    none = tl.zeros((LANES,), tl.float32)
    none = (none, none)
    lines = (none, none, none, none)
    begin = program % tiles * ROWS
    # Two rows each time, which share what moves on from row to row.
    for row in range(begin, tl.minimum(begin + ROWS, _CROP_SIZE), 2):
        crop = crops + row * (3 * _CROP_SIZE) + to_crop
        plane = inputs + (row - _MARGIN) * _ROI_SIZE + to_plane
        newest, lines = make_row(row, crop, plane, newest, lines, source, columns, stores)
        row, crop, plane = row + 1, crop + 3 * _CROP_SIZE, plane + _ROI_SIZE
        newest, lines = make_row(row, crop, plane, newest, lines, source, columns, stores)


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
    """Return the rows of a crop that one program makes, of n crops: a multiple of 2.

    Each program first resamples three extra box rows, so programs make more rows once the batch
    alone fills the GPU.
    """
    return 22 if n >= 16 else 8 if n >= 4 else 4


def _registers(device: torch.device) -> int:
    """Return how many registers a thread may use: 80 leave room for three blocks.

    For the newest GPUs the compiler needs a few more and would spill.
    """
    if triton.knobs.runtime.interpret:
        return 80  # counts for nothing
    return 80 if torch.cuda.get_device_capability(device)[0] < 10 else 88


def face_input(
    frames: Tensor, boxes: Tensor, index: Tensor, inputs: Tensor, crops: Tensor
) -> tuple[Tensor, Tensor]:
    n, width = index.shape[0], frames.shape[2]
    if width < 5:
        frames = F.pad(frames, (0, 0, 0, 5 - width))  # the kernel reads five pixels of a row
    rows = tile_rows(n)
    _face_input[(n * triton.cdiv(CROP_SIZE, rows),)](
        frames, frames.stride(0), frames.stride(1), boxes.contiguous(), index.contiguous(),
        inputs, crops, frames.shape[1], width,
        _weight_table(frames.device), ROWS=rows, LANES=LANES,
        num_warps=8, maxnreg=_registers(frames.device), num_stages=1,
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
    far = x1 - x0 > CROP_SIZE
    runs = {
        "_face_input": triton.cdiv(CROP_SIZE, rows), "make_row": CROP_SIZE,
        "near_line": 0 if far else lines, "far_line": lines if far else 0,
        "store_plane": 2 * ROI_SIZE,
    }  # fmt: skip
    made = 3 * CROP_SIZE**2 + 6 * ROI_SIZE**2 * element
    return Work(
        runs={part: n * count for part, count in runs.items()},
        moved=n * (made + 3 * height * (x1 - x0)), made=n * made, items=n,
        # Of a warp: 64 columns of one channel, in the box, in the crop and in a plane, where they
        # begin 8 bytes before a line.
        lines={
            "near_line": 1 + 1.5 * (x1 - x0) / CROP_SIZE, "far_line": 4.0,
            "make_row": 2.5, "store_plane": 2.0,
        },
    )  # fmt: skip
