"""Frames and face boxes -> what the generator sees of the picture, in one launch."""

from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .resize import cubic_weight, half_pixel, inside, to_level
from .spec import CROP, MARGIN, MASK_COLUMNS, MASK_ROWS, ROI

LANES = 1024  # the 984 bytes of a crop's row, as a power of two

_CROP, _ROI, _MARGIN = tl.constexpr(CROP), tl.constexpr(ROI), tl.constexpr(MARGIN)
_ROW = tl.constexpr(3 * CROP)  # bytes of a crop's row
_MASK_TOP, _MASK_BOTTOM = (tl.constexpr(row) for row in MASK_ROWS)


@triton.jit
def load_box(boxes, frame):
    """x0, y0, x1, y1 of a frame's face box, int32."""
    x0, y0 = tl.load(boxes + 4 * frame).to(tl.int32), tl.load(boxes + 4 * frame + 1).to(tl.int32)
    x1, y1 = (
        tl.load(boxes + 4 * frame + 2).to(tl.int32),
        tl.load(boxes + 4 * frame + 3).to(tl.int32),
    )
    return x0, y0, x1, y1


@triton.jit
def _crop_row(row, held, lines, source, at, weight):
    """One row of the crop; and the lines it was made of, which the next one will need too.

    A line is a row of the box resized sideways. `held` is the row that the last of the four
    lines was made of: a box that is enlarged needs few new lines, or none.
    """
    frame, row_stride, height, y0, box_height = source
    at0, at1, at2, at3 = at
    weight0, weight1, weight2, weight3 = weight
    line0, line1, line2, line3 = lines
    top, y = half_pixel(row, box_height, _CROP)
    held = tl.maximum(held, top - 2)  # when a box is made smaller, some rows are not seen
    while held < top + 2:
        held += 1
        line0, line1, line2 = line1, line2, line3
        start = frame + inside(y0 + inside(held, box_height), height).to(tl.int64) * row_stride
        line3 = tl.load(start + at0).to(tl.float32) * weight0
        line3 += tl.load(start + at1).to(tl.float32) * weight1
        line3 += tl.load(start + at2).to(tl.float32) * weight2
        line3 += tl.load(start + at3).to(tl.float32) * weight3
    value = line0 * cubic_weight(y, 0) + line1 * cubic_weight(y, 1)
    value += line2 * cubic_weight(y, 2)
    value += line3 * cubic_weight(y, 3)
    return to_level(value).to(tl.uint8), held, (line0, line1, line2, line3)


@triton.jit(do_not_specialize=["frame_stride", "row_stride", "height", "width"])
def _face_input(
    frames, frame_stride, row_stride, boxes, index, inputs, crops, height, width, places,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """ROWS rows of one face crop, four by four, and of the six planes that are made of them.

    A lane is a byte of the crop's row: a colour of a pixel.
    """
    tiles: tl.constexpr = (_CROP + ROWS - 1) // ROWS
    program = tl.program_id(0)
    item = (program // tiles).to(tl.int64)
    number = tl.load(index + item).to(tl.int64)
    x0, y0, x1, y1 = load_box(boxes, number)
    crops += item * _CROP * _ROW
    inputs += item * 6 * _ROI * _ROI

    lane = tl.arange(0, LANES)
    box_width = x1 - x0
    left, x = half_pixel(tl.minimum(lane // 3, _CROP - 1), box_width, _CROP)
    channel = lane % 3
    at = (
        inside(x0 + inside(left - 1, box_width), width) * 3 + channel,
        inside(x0 + inside(left, box_width), width) * 3 + channel,
        inside(x0 + inside(left + 1, box_width), width) * 3 + channel,
        inside(x0 + inside(left + 2, box_width), width) * 3 + channel,
    )
    weight = (cubic_weight(x, 0), cubic_weight(x, 1), cubic_weight(x, 2), cubic_weight(x, 3))
    source = (frames + number * frame_stride, row_stride, height, y0, y1 - y0)

    held = y0 * 0 - (1 << 30)
    none = tl.zeros((LANES,), tl.float32)
    lines = (none, none, none, none)
    four = tl.arange(0, 4 * LANES)
    begin = program % tiles * (ROWS // 4)
    for quad in range(begin, tl.minimum(begin + ROWS // 4, _CROP // 4)):
        row0, held, lines = _crop_row(4 * quad, held, lines, source, at, weight)
        row1, held, lines = _crop_row(4 * quad + 1, held, lines, source, at, weight)
        row2, held, lines = _crop_row(4 * quad + 2, held, lines, source, at, weight)
        row3, held, lines = _crop_row(4 * quad + 3, held, lines, source, at, weight)
        rows = tl.join(tl.join(row0, row2), tl.join(row1, row3))
        rows = tl.reshape(tl.permute(rows, (1, 2, 0)), (4 * LANES,))
        byte = tl.gather(rows, tl.load(places + four).to(tl.int32), 0)
        tl.store(crops + quad * (4 * _ROW) + four, byte, mask=four < 4 * _ROW)

        place = tl.load(places + 4 * LANES + four).to(tl.int32)
        value = tl.gather(rows, place & (4 * LANES - 1), 0).to(tl.float32) * (1 / 255)
        top = 4 * quad - _MARGIN
        live = (four < 12 * _ROI) & (top >= 0) & (top < _ROI)
        to = inputs + four // (4 * _ROI) * (_ROI * _ROI) + four % (4 * _ROI)
        to += (quad - _MARGIN // 4) * (4 * _ROI)
        tl.store(to, value.to(inputs.dtype.element_ty), mask=live)
        row = top + (place & (4 * LANES - 1)) // LANES
        hidden = (row >= _MASK_TOP) & (row < _MASK_BOTTOM) & (place >= 4 * LANES)
        value = tl.where(hidden, 0.0, value)
        tl.store(to + 3 * _ROI * _ROI, value.to(inputs.dtype.element_ty), mask=live)


@lru_cache
def _places(device: torch.device) -> Tensor:
    """Where among the lanes of four rows of a crop each byte of the four rows is (4 * LANES), and
    each pixel of four rows of planes B, G, R (4 * LANES); 4 * LANES more where the mask is.

    int16, made once per device: worked out in the kernel, they would take half of its registers.
    """
    lane = torch.arange(4 * LANES).view(4, LANES)
    byte = lane[:, : 3 * CROP].flatten()
    pixel = lane[:, : 3 * CROP].view(4, CROP, 3)[:, MARGIN : MARGIN + ROI].clone()
    pixel[:, slice(*MASK_COLUMNS)] += 4 * LANES
    pixel = pixel.permute(2, 0, 1).flip(0).flatten()
    pad = [F.pad(part, (0, 4 * LANES - len(part))) for part in (byte, pixel)]
    return torch.cat(pad).to(torch.int16).to(device)


def tile_rows(n: int) -> int:
    """Rows of a crop that one program makes, of n crops, a multiple of 4. The first cost three
    lines more than the others: many where the batch alone fills the GPU."""
    return 16 if n >= 16 else 8 if n >= 4 else 4


def face_input(
    frames: Tensor, boxes: Tensor, index: Tensor, inputs: Tensor, crops: Tensor
) -> tuple[Tensor, Tensor]:
    n = index.shape[0]
    rows = tile_rows(n)
    _face_input[(n * triton.cdiv(CROP, rows),)](
        frames, frames.stride(0), frames.stride(1), boxes.contiguous(), index.contiguous(),
        inputs, crops, frames.shape[1], frames.shape[2],
        _places(frames.device), ROWS=rows, LANES=LANES,
        num_warps=8, maxnreg=128, num_stages=1,
    )  # fmt: skip
    return inputs, crops
