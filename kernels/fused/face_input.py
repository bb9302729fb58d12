"""Frames and face boxes -> the generator's picture input, in one launch."""

from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ..spec import CROP_SIZE, MARGIN, MASK_COLUMNS, MASK_ROWS, ROI_SIZE
from .sampling import clamp_to_edge, cubic_weight, half_pixel, load_box, to_level

ROW_BYTES_PADDED = 1024  # the 984 bytes of a crop row, rounded up to a power of two

_CROP_SIZE, _ROI_SIZE = tl.constexpr(CROP_SIZE), tl.constexpr(ROI_SIZE)
_MARGIN = tl.constexpr(MARGIN)
_ROW_BYTES = tl.constexpr(3 * CROP_SIZE)  # bytes of a crop row
_MASK_TOP, _MASK_BOTTOM = (tl.constexpr(row) for row in MASK_ROWS)


@triton.jit
def _crop_row(row, newest, lines, source, at, weight):
    """Make one row of the crop from four lines, and return it with the lines, to be used again.

    A line is a row of the box, resampled horizontally. `newest` is the box row of the last line:
    in an enlarged box, the next crop row needs few new lines, or none.
    """
    frame, row_stride, height, y0, box_height = source
    at0, at1, at2, at3 = at
    weight0, weight1, weight2, weight3 = weight
    line0, line1, line2, line3 = lines
    top, y = half_pixel(row, box_height, _CROP_SIZE)
    newest = tl.maximum(newest, top - 2)  # a box made smaller has rows that no crop row uses
    while newest < top + 2:
        newest += 1
        line0, line1, line2 = line1, line2, line3
        box_row = clamp_to_edge(newest, box_height)
        start = frame + clamp_to_edge(y0 + box_row, height).to(tl.int64) * row_stride
        line3 = tl.load(start + at0).to(tl.float32) * weight0
        line3 += tl.load(start + at1).to(tl.float32) * weight1
        line3 += tl.load(start + at2).to(tl.float32) * weight2
        line3 += tl.load(start + at3).to(tl.float32) * weight3
    value = line0 * cubic_weight(y, 0) + line1 * cubic_weight(y, 1)
    value += line2 * cubic_weight(y, 2)
    value += line3 * cubic_weight(y, 3)
    return to_level(value).to(tl.uint8), newest, (line0, line1, line2, line3)


@triton.jit(do_not_specialize=["frame_stride", "row_stride", "height", "width"])
def _face_input(
    frames, frame_stride, row_stride, boxes, index, inputs, crops, height, width, tables,
    ROWS: tl.constexpr, ROW_BYTES_PADDED: tl.constexpr,
):  # fmt: skip
    """Make ROWS rows of one face crop, four at a time, and of the six planes made of them."""
    tiles: tl.constexpr = (_CROP_SIZE + ROWS - 1) // ROWS
    program = tl.program_id(0)
    item = (program // tiles).to(tl.int64)
    number = tl.load(index + item).to(tl.int64)
    x0, y0, x1, y1 = load_box(boxes, number)
    crops += item * _CROP_SIZE * _ROW_BYTES
    inputs += item * 6 * _ROI_SIZE * _ROI_SIZE

    byte = tl.arange(0, ROW_BYTES_PADDED)  # of a crop row: channel byte % 3 of pixel byte // 3
    box_width = x1 - x0
    left, x = half_pixel(tl.minimum(byte // 3, _CROP_SIZE - 1), box_width, _CROP_SIZE)
    channel = byte % 3
    at = (
        clamp_to_edge(x0 + clamp_to_edge(left - 1, box_width), width) * 3 + channel,
        clamp_to_edge(x0 + clamp_to_edge(left, box_width), width) * 3 + channel,
        clamp_to_edge(x0 + clamp_to_edge(left + 1, box_width), width) * 3 + channel,
        clamp_to_edge(x0 + clamp_to_edge(left + 2, box_width), width) * 3 + channel,
    )
    weight = (cubic_weight(x, 0), cubic_weight(x, 1), cubic_weight(x, 2), cubic_weight(x, 3))
    source = (frames + number * frame_stride, row_stride, height, y0, y1 - y0)

    newest = y0 * 0 - (1 << 30)
    none = tl.zeros((ROW_BYTES_PADDED,), tl.float32)
    lines = (none, none, none, none)
    four = tl.arange(0, 4 * ROW_BYTES_PADDED)  # counts the bytes, or the values, of four rows
    begin = program % tiles * (ROWS // 4)
    for quad in range(begin, tl.minimum(begin + ROWS // 4, _CROP_SIZE // 4)):
        row0, newest, lines = _crop_row(4 * quad, newest, lines, source, at, weight)
        row1, newest, lines = _crop_row(4 * quad + 1, newest, lines, source, at, weight)
        row2, newest, lines = _crop_row(4 * quad + 2, newest, lines, source, at, weight)
        row3, newest, lines = _crop_row(4 * quad + 3, newest, lines, source, at, weight)
        rows = tl.join(tl.join(row0, row2), tl.join(row1, row3))
        rows = tl.reshape(tl.permute(rows, (1, 2, 0)), (4 * ROW_BYTES_PADDED,))
        level = tl.gather(rows, tl.load(tables + four).to(tl.int32), 0)
        tl.store(crops + quad * (4 * _ROW_BYTES) + four, level, mask=four < 4 * _ROW_BYTES)

        place = tl.load(tables + 4 * ROW_BYTES_PADDED + four).to(tl.int32)
        value = tl.gather(rows, place & (4 * ROW_BYTES_PADDED - 1), 0).to(tl.float32) * (1 / 255)
        top = 4 * quad - _MARGIN
        live = (four < 12 * _ROI_SIZE) & (top >= 0) & (top < _ROI_SIZE)
        to = inputs + four // (4 * _ROI_SIZE) * (_ROI_SIZE * _ROI_SIZE) + four % (4 * _ROI_SIZE)
        to += (quad - _MARGIN // 4) * (4 * _ROI_SIZE)
        tl.store(to, value.to(inputs.dtype.element_ty), mask=live)
        if inputs.dtype.element_ty == tl.float32:
            # Loaded again: kept across the store of float32 values, it would spill on some GPUs.
            place = tl.load(tables + 4 * ROW_BYTES_PADDED + four).to(tl.int32)
        row = top + (place & (4 * ROW_BYTES_PADDED - 1)) // ROW_BYTES_PADDED
        masked = (row >= _MASK_TOP) & (row < _MASK_BOTTOM) & (place >= 4 * ROW_BYTES_PADDED)
        value = tl.where(masked, 0.0, value)
        tl.store(to + 3 * _ROI_SIZE * _ROI_SIZE, value.to(inputs.dtype.element_ty), mask=live)


@lru_cache
def _gather_tables(device: torch.device) -> Tensor:
    """Make the tables that reorder four padded crop rows, once per device.

    Computed in the kernel, they would take half of its registers.

    Returns:
        (2 * 4 * ROW_BYTES_PADDED,) int16, places in the four padded rows: of each byte of four crop
        rows, then of each value of four rows of the planes B, G, R. In the mask's columns,
        4 * ROW_BYTES_PADDED is added to the latter.
    """
    place = torch.arange(4 * ROW_BYTES_PADDED).view(4, ROW_BYTES_PADDED)
    crop = place[:, : 3 * CROP_SIZE].flatten()
    planes = place[:, : 3 * CROP_SIZE].view(4, CROP_SIZE, 3)[:, MARGIN : MARGIN + ROI_SIZE].clone()
    planes[:, slice(*MASK_COLUMNS)] += 4 * ROW_BYTES_PADDED
    planes = planes.permute(2, 0, 1).flip(0).flatten()
    tables = [F.pad(table, (0, 4 * ROW_BYTES_PADDED - len(table))) for table in (crop, planes)]
    return torch.cat(tables).to(torch.int16).to(device)


def tile_rows(n: int) -> int:
    """Return the rows of a crop that one program makes, of n crops: a multiple of 4.

    Each program first resamples three extra box rows, so programs make more rows once the batch
    alone fills the GPU.
    """
    return 16 if n >= 16 else 8 if n >= 4 else 4


def face_input(
    frames: Tensor, boxes: Tensor, index: Tensor, inputs: Tensor, crops: Tensor
) -> tuple[Tensor, Tensor]:
    n = index.shape[0]
    rows = tile_rows(n)
    _face_input[(n * triton.cdiv(CROP_SIZE, rows),)](
        frames, frames.stride(0), frames.stride(1), boxes.contiguous(), index.contiguous(),
        inputs, crops, frames.shape[1], frames.shape[2],
        _gather_tables(frames.device), ROWS=rows, ROW_BYTES_PADDED=ROW_BYTES_PADDED,
        num_warps=8, maxnreg=128, num_stages=1,
    )  # fmt: skip
    return inputs, crops
