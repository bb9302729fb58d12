"""The generator's output -> finished frames, in one launch.

Some programs paste the faces, the others copy the frames around them. Programs that paste come
first, because they take longer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..spec import CROP_SIZE, ROI_SIZE, YUV_FORMATS, ByteFormat, CompositeMode
from .paste import columns_of, first_lines, first_place, generated_only, paste_row, steps
from .pixel_formats import access_width, chroma, chroma_level
from .quads import load_quad, luma_of, store_quad, store_yuv, units_at
from .sampling import clamp_to_edge, load_box

PASTERS = 24  # programs for the face of a frame; one 182 pixels wide has 18 tiles
GROUPS = 8  # of rows, in a tile
ROWS = 8  # of a group, at most
COLUMNS = 32
UNITS = 1024  # copied at once: accesses of up to 16 bytes; a quarter of it if they are pixels
PARTS = 4  # that a copying program copies one after the other; twice that of pixels
MAX_PROGRAMS = 65535  # along axis 1 of a grid

_CROP_SIZE, _ROI_SIZE = tl.constexpr(CROP_SIZE), tl.constexpr(ROI_SIZE)


@triton.jit
def _load_pixel(picture, row, pixel, mask):
    """Load R, G and B (int32) of pixels of an RGB picture (its address and row stride)."""
    start, row_stride = picture
    at = start + (row * row_stride + pixel * 3)
    return (
        tl.load(at, mask=mask, other=0).to(tl.int32),
        tl.load(at + 1, mask=mask, other=0).to(tl.int32),
        tl.load(at + 2, mask=mask, other=0).to(tl.int32),
    )


@triton.jit
def _store_pixel(out, width, row, pixel, levels, mask, FORMAT: tl.constexpr, WORDS: tl.constexpr):
    """Store pixels in a format of bytes, of YUV only the luma."""
    if FORMAT == "nv12" or FORMAT == "i420":
        at = out + (row * width + pixel)
        level = luma_of(levels[0], levels[1], levels[2])
        tl.store(at, level.to(tl.uint8), mask=mask)
    elif FORMAT == "rgba" and WORDS:
        at = (out + (row * width + pixel) * 4).to(tl.pointer_type(tl.uint32))
        word = levels[0] | (levels[1] << 8) | (levels[2] << 16) | -0x1000000
        tl.store(at, word.to(tl.uint32), mask=mask)
    else:
        SIZE: tl.constexpr = 4 if FORMAT == "rgba" else 3
        RED: tl.constexpr = 2 if FORMAT == "bgr" else 0
        at = out + (row * width + pixel) * SIZE
        tl.store(at + RED, levels[0].to(tl.uint8), mask=mask)
        tl.store(at + 1, levels[1].to(tl.uint8), mask=mask)
        tl.store(at + 2 - RED, levels[2].to(tl.uint8), mask=mask)
        if FORMAT == "rgba":
            tl.store(at + 3, (levels[0] * 0 + 255).to(tl.uint8), mask=mask)


@triton.jit
def _store_chroma(out, width, height, row, column, u, v, mask, FORMAT: tl.constexpr):
    """Store U and V of 2 x 2 pixels; row and column count in these."""
    out += height * width
    if FORMAT == "nv12":
        at = out + (row * width + column * 2)
        tl.store(at, u.to(tl.uint8), mask=mask)
        tl.store(at + 1, v.to(tl.uint8), mask=mask)
    else:
        at = out + (row * (width // 2) + column)
        tl.store(at, u.to(tl.uint8), mask=mask)
        at += height // 2 * (width // 2)
        tl.store(at, v.to(tl.uint8), mask=mask)


@triton.jit
def _pair_sum(value):
    """Add the neighbours of each pair of columns."""
    return tl.sum(tl.reshape(value, (value.shape[0] // 2, 2)), axis=1)


@triton.jit
def _beside_face(picture, box, masks, row, pixel, levels, live, LANES: tl.constexpr):
    """Replace levels outside of the box, and where the frame's mask says so, by the frame's.

    A byte of a mask is LANES pixels, the first one in its lowest bit; 0 if there is no mask.
    """
    x0, y0, x1, y1 = box
    face = (row >= y0) & (row < y1) & (pixel >= x0) & (pixel < x1)
    if LANES:
        start, row_pixels = masks
        number = row * row_pixels + pixel
        at = start + (number >> (3 if LANES == 8 else 0))
        kept = tl.load(at, mask=live & face, other=0).to(tl.int32) >> (number & (LANES - 1))
        face &= (kept & 1) == 0
    old = _load_pixel(picture, row, pixel, live & (face == 0))
    return (
        tl.where(face, levels[0], old[0]), tl.where(face, levels[1], old[1]),
        tl.where(face, levels[2], old[2]),
    )  # fmt: skip


@triton.jit
def paste_tile(
    top, start, per_group, region, shape, box, picture, masks, source, out,
    MODE: tl.constexpr, FORMAT: tl.constexpr, WORDS: tl.constexpr, PLANAR: tl.constexpr,
    GROUPS: tl.constexpr, COLUMNS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Paste GROUPS groups of rows, each of `per_group`, by COLUMNS columns from row `top` on.

    Groups that would reach over the end of the region lie at its end, and so over another one.
    """
    YUV: tl.constexpr = FORMAT == "nv12" or FORMAT == "i420"
    _, end_row, _, end = region
    height, width = shape
    x0, y0, x1, y1 = box
    size = (y1 - y0, x1 - x0)
    # One dimension: of two, Triton 3.6 lays out what is loaded anew, through shared memory.
    lane = tl.arange(0, GROUPS * COLUMNS)
    row = tl.minimum(top + lane // COLUMNS * per_group, end_row - per_group)
    pixel = start + lane % COLUMNS
    columns = columns_of(clamp_to_edge(pixel - x0, x1 - x0), x1 - x0, MODE)
    safe_left, safe_right = generated_only(x1 - x0)
    left = clamp_to_edge(start - x0, x1 - x0)
    right = clamp_to_edge(start + COLUMNS - 1 - x0, x1 - x0)
    sides = (left < safe_left) | (right >= safe_right)
    safe_top, safe_bottom = generated_only(y1 - y0)
    upper = top - y0
    lower = tl.minimum(top + GROUPS * per_group, end_row) - per_group - y0
    beside = (start < x0) | (tl.minimum(start + COLUMNS, end) > x1)
    if YUV:
        beside = beside | (top < y0) | (end_row > y1)
    beside = beside | (LANES > 0)
    step = steps(y1 - y0, MODE)
    whole, part = first_place(row - y0, y1 - y0, MODE)
    place = (whole, part, lane * 0 - (1 << 30))
    lines = first_lines(lane * 0, MODE)
    STEP: tl.constexpr = 2 if YUV else 1
    for number in range(0, per_group, STEP):
        edge = sides | (upper < safe_top) | (lower + (STEP - 1) >= safe_bottom)
        levels, place, lines = paste_row(
            source, size, place, step, number == 0, columns, lines, edge, MODE, PLANAR
        )
        live = pixel < end
        if beside:
            levels = _beside_face(picture, box, masks, row, pixel, levels, live, LANES)
        _store_pixel(out, width, row, pixel, levels, live, FORMAT, WORDS)
        if YUV:
            below, place, lines = paste_row(
                source, size, place, step, False, columns, lines, edge, MODE, PLANAR
            )
            if beside:
                below = _beside_face(
                    picture, box, masks, row + 1, pixel, below, live, LANES
                )  # fmt: skip
            _store_pixel(out, width, row + 1, pixel, below, live, FORMAT, WORDS)
            red, green, blue = levels[0] + below[0], levels[1] + below[1], levels[2] + below[2]
            u = chroma(0, red, False) + chroma(1, green, False) + chroma(2, blue, False)
            v = chroma(0, red, True) + chroma(1, green, True) + chroma(2, blue, True)
            u, v = chroma_level(_pair_sum(u)), chroma_level(_pair_sum(v))
            pair = tl.arange(0, GROUPS * COLUMNS // 2)
            half = top + pair // (COLUMNS // 2) * per_group
            half = (tl.minimum(half, end_row - per_group) + number) // 2
            column = start // 2 + pair % (COLUMNS // 2)
            live = column * 2 < end
            _store_chroma(out, width, height, half, column, u, v, live, FORMAT)
        row += STEP
        upper += STEP
        lower += STEP


@triton.jit
def copy_units(
    first_row, first_place, per_row, share, region, shape, picture, out, flat,
    FORMAT: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Copy, or convert, units of the frame that do not touch the region of the face.

    A unit is an access of WIDTH bytes, or 4, 2 or 1 pixels, for YUV of two rows. `flat` is the
    address of the first one in the result, for bytes.
    """
    YUV: tl.constexpr = FORMAT == "nv12" or FORMAT == "i420"
    HALF: tl.constexpr = 2 if YUV else 1
    top, bottom, begin, end = region
    height, width = shape
    start, row_stride = picture
    number = tl.arange(0, UNITS)
    row, place = units_at(first_row, first_place + number, per_row, share)
    if UNIT == "bytes":
        first = (begin * 3 + WIDTH - 1) // WIDTH
        across = place - first, end * 3 // WIDTH - first
    else:
        row *= HALF
        pixel = place * (4 if UNIT == "quads" else HALF)
        across = pixel - begin, end - begin
    # As unsigned numbers, those before the region are larger than its size.
    face = across[0].to(tl.uint32) < across[1].to(tl.uint32)
    face &= (row - top).to(tl.uint32) < (bottom - top).to(tl.uint32)
    live = (row < height) & (face == 0)
    if UNIT == "bytes":
        lane = tl.arange(0, WIDTH)[None, :]
        at = start + ((row * row_stride + place * WIDTH)[:, None] + lane)
        mask = live[:, None] & (lane >= 0)
        tl.store(flat + (number * WIDTH)[:, None] + lane, tl.load(at, mask=mask), mask=mask)
    elif UNIT == "quads":
        upper = load_quad(start, row_stride, height, row, pixel, live, "rgb")
        if YUV:
            lower = load_quad(start, row_stride, height, row + 1, pixel, live, "rgb")
            store_yuv(out, width, height, row, pixel, upper, lower, live, FORMAT)
        else:
            store_quad(out, width, row, pixel, upper, live, FORMAT)
    else:
        levels = _load_pixel(picture, row, pixel, live)
        _store_pixel(out, width, row, pixel, levels, live, FORMAT, False)
        if YUV:
            red, green, blue = levels
            for corner in tl.static_range(1, 4):
                y, x = row + corner // 2, pixel + corner % 2
                levels = _load_pixel(picture, y, x, live)
                _store_pixel(out, width, y, x, levels, live, FORMAT, False)
                red, green, blue = red + levels[0], green + levels[1], blue + levels[2]
            u = chroma(0, red, False) + chroma(1, green, False) + chroma(2, blue, False)
            v = chroma(0, red, True) + chroma(1, green, True) + chroma(2, blue, True)
            u, v = chroma_level(u), chroma_level(v)
            _store_chroma(out, width, height, row // 2, place, u, v, live, FORMAT)


@triton.jit
def _region(box, height, width, FORMAT: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr):
    """Return rows and columns (begin and end) that the pasting programs write.

    They hold the visible part of the face, and whole units of the copying programs. Bytes of pixels
    that are partly in a unit are written twice, with the same value.
    """
    YUV: tl.constexpr = FORMAT == "nv12" or FORMAT == "i420"
    x0, y0, x1, y1 = box
    top, bottom = tl.maximum(y0, 0), tl.minimum(y1, height)
    left, right = tl.maximum(x0, 0), tl.minimum(x1, width)
    visible = (bottom > top) & (right > left)
    if YUV:
        top, bottom = top // 2 * 2, (bottom + 1) // 2 * 2
    if UNIT == "bytes":
        left = left * 3 // WIDTH * WIDTH // 3
        right = tl.minimum(((right * 3 + WIDTH - 1) // WIDTH * WIDTH + 2) // 3, width)
    elif UNIT == "quads":
        left, right = left // 4 * 4, (right + 3) // 4 * 4
    elif YUV:
        left, right = left // 2 * 2, (right + 1) // 2 * 2
    return top, tl.where(visible, bottom, top), left, tl.where(visible, right, left)


@triton.jit(
    do_not_specialize=[
        "frame_chunks", "frame_row_chunks", "height", "width", "item_stride", "row_units",
        "mask_row",
    ]
)  # fmt: skip
def _composite(
    frames, frame_chunks, frame_row_chunks, height, width, boxes, index, crops,
    roi, item_stride, out, row_units, masks, mask_row,
    MODE: tl.constexpr, FORMAT: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr,
    PLANAR: tl.constexpr, PASTERS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, UNITS: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Finish a frame each along axis 0, on axis 1 by PASTERS programs and then by those that copy.

    Programs start in that order, so all pasting programs before those that copy.
    """
    YUV: tl.constexpr = FORMAT == "nv12" or FORMAT == "i420"
    item, job = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number = tl.load(index + item).to(tl.int64)
    box = load_box(boxes, number)
    picture = (frames + number * frame_chunks * WIDTH, frame_row_chunks * WIDTH)
    region = _region(box, height, width, FORMAT, UNIT, WIDTH)
    shape = (height, width)
    if YUV:
        out += item * (height * 3 // 2) * width
    elif FORMAT == "rgba":
        out += item * height * width * 4
    else:
        out += item * height * (row_units * WIDTH if UNIT == "bytes" else width * 3)
    if job >= PASTERS:
        first = (job - PASTERS) * (UNITS * PARTS)
        row, place = first // row_units, first % row_units
        share = 1.0 / row_units.to(tl.float32)
        for part in range(0, UNITS * PARTS, UNITS):
            copy_units(
                row, place + part, row_units, share, region, shape, picture, out,
                out + (first + part).to(tl.int64) * WIDTH, FORMAT, UNIT, WIDTH, UNITS,
            )  # fmt: skip
    else:
        first_row, end_row, begin, end = region
        source = (roi + item * item_stride, crops + item * (_CROP_SIZE * _CROP_SIZE * 3))
        mask = None
        if LANES:
            mask = (masks + number * (height * mask_row // LANES), mask_row)
        PAIR: tl.constexpr = 2 if YUV else 1
        rows = (end_row - first_row) // PAIR
        across, down = (
            (end - begin + COLUMNS - 1) // COLUMNS,
            tl.cdiv(rows, GROUPS * (ROWS // PAIR)),
        )
        per_group = tl.cdiv(rows, GROUPS * tl.maximum(down, 1)) * PAIR
        for tile in range(job, across * down, PASTERS):
            top = first_row + tile // across * (GROUPS * per_group)
            start = begin + tile % across * COLUMNS
            paste_tile(
                top, start, per_group, region, shape, box, picture, mask, source, out,
                MODE, FORMAT, UNIT == "quads", PLANAR, GROUPS, COLUMNS, LANES,
            )  # fmt: skip


def composite(
    frames: Tensor, boxes: Tensor, index: Tensor, crops: Tensor, generated: Tensor,
    mode: CompositeMode, format: ByteFormat, out: Tensor, masks: Tensor | None = None,
) -> Tensor:  # fmt: skip
    n = index.shape[0]
    height, width = frames.shape[1:3]
    if height * frames.stride(1) >= 1 << 31:  # offsets within one frame have 32 bits
        frames = frames.contiguous()
    channels_last = generated.stride()[1:] == (1, 3 * ROI_SIZE, 3)
    if not channels_last and generated.stride()[1:] != (ROI_SIZE * ROI_SIZE, ROI_SIZE, 1):
        generated = generated.contiguous()
    unit, wide = _unit(frames, format, out)
    lanes = 0 if masks is None else 1 if masks.dtype == torch.bool else 8
    row_units, at_once, parts, copiers = copies(height, width, format, unit, wide)
    if out.data_ptr() == frames.data_ptr():  # in place, there is nothing to copy
        copiers = 0
    _composite[(n, PASTERS + copiers)](
        frames, frames.stride(0) // wide, frames.stride(1) // wide, height, width,
        boxes.contiguous(), index.contiguous(), crops.contiguous(), generated,
        generated.stride(0), out, row_units,
        None if masks is None else masks.view(torch.uint8),
        0 if masks is None else masks.shape[2] * lanes,
        MODE=mode, FORMAT=format, UNIT=unit, WIDTH=wide, PLANAR=not channels_last,
        PASTERS=PASTERS, GROUPS=GROUPS, ROWS=ROWS, COLUMNS=COLUMNS, UNITS=at_once, PARTS=parts,
        LANES=lanes,
        num_warps=8, maxnreg=80 if format in YUV_FORMATS else 64, num_stages=1,
    )  # fmt: skip
    return out


def _unit(frames: Tensor, format: ByteFormat, out: Tensor) -> tuple[str, int]:
    """Return what a copying program copies at once, and the width of its accesses to frames."""
    strides = frames.stride()[:2]
    width = frames.shape[2]
    if format == "rgb":
        return "bytes", access_width(width * 3, *strides)
    aligned = frames.data_ptr() % 4 == out.data_ptr() % 4 == 0
    if aligned and width % 4 == 0 and all(stride % 4 == 0 for stride in strides):
        return "quads", 4
    return "pixels", 1


def copies(
    height: int, width: int, format: ByteFormat, unit: str, wide: int
) -> tuple[int, int, int, int]:
    """Return units in a row, units at once, how often a program copies these, and programs."""
    pixels = {"quads": 4, "pixels": 2 if format in YUV_FORMATS else 1}
    row_units = width * 3 // wide if unit == "bytes" else width // pixels[unit]
    units = row_units * (height // 2 if format in YUV_FORMATS else height)
    at_once = UNITS if unit == "bytes" else UNITS // 4
    parts = PARTS if unit == "bytes" else 2 * PARTS
    while PASTERS + triton.cdiv(units, at_once * parts) > MAX_PROGRAMS:
        parts *= 2
    return row_units, at_once, parts, triton.cdiv(units, at_once * parts)
