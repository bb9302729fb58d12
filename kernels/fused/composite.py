"""The generator's output -> finished frames, in one launch."""

import triton
import triton.language as tl
from torch import Tensor

from ..spec import CROP_SIZE, MARGIN, ROI_SIZE, YUV_FORMATS, ByteFormat, CompositeMode
from .pixel_formats import (
    access_width,
    bytes_per_pixel,
    chroma_access_width,
    convert_bytes,
    float_level,
    make_bytes,
    read_level,
)
from .sampling import (
    clamp_to_edge,
    cubic_weight,
    floor_quotient,
    half_pixel,
    load_box,
    to_level,
)

PASTERS = 64  # programs for the face box of a frame, usually 182 pixels wide; the others copy
TILE_ROWS = 32
TILE_BYTES = 128
CHUNKS = 512  # accesses of the full width that a copying program makes; half of it if it converts

_CROP_SIZE, _ROI_SIZE = tl.constexpr(CROP_SIZE), tl.constexpr(ROI_SIZE)
_MARGIN = tl.constexpr(MARGIN)


@triton.jit
def _roi_level(roi, row, column, channel, mask):
    """Load levels (float32) of the generated ROI."""
    base, channel_stride, row_stride, column_stride = roi
    at = (2 - channel) * channel_stride + row * row_stride + column * column_stride
    return float_level(tl.load(base + at, mask=mask, other=0))


@triton.jit
def _face_level(crop, roi, row, column, channel, mask):
    """Load levels (float32) of the face crop with the generated ROI in its middle."""
    y, x = row - _MARGIN, column - _MARGIN
    generated = (y >= 0) & (y < _ROI_SIZE) & (x >= 0) & (x < _ROI_SIZE)
    new = _roi_level(roi, y, x, channel, mask & generated)
    at = (row * _CROP_SIZE + column) * 3 + channel
    old = tl.load(crop + at, mask=mask & (generated == 0), other=0)
    return tl.where(generated, new, old.to(tl.float32))


@triton.jit
def _pasted(row, column, channel, height, width, crop, roi, mask, MODE: tl.constexpr):
    """Sample levels (int32) of pixels of a face box of that height and width."""
    if MODE == "crop":
        top, y = half_pixel(row, _CROP_SIZE, height)
        left, x = half_pixel(column, _CROP_SIZE, width)
        value = mask.to(tl.float32) * 0
        for i in range(4):  # not unrolled: sixteen levels at once need too many registers
            at = clamp_to_edge(top - 1 + i, _CROP_SIZE)
            line = mask.to(tl.float32) * 0
            for j in range(4):
                level = _face_level(
                    crop, roi, at, clamp_to_edge(left - 1 + j, _CROP_SIZE), channel, mask
                )
                line += level * cubic_weight(x, j)
            value += line * cubic_weight(y, i)
        return to_level(value).to(tl.int32)
    else:
        top, left = row * _ROI_SIZE // height, column * _ROI_SIZE // width
        down, right = row * _ROI_SIZE % height, column * _ROI_SIZE % width
        total = mask.to(tl.int64) * 0
        for i in range(2):
            at = clamp_to_edge(top + i, _ROI_SIZE)
            line = mask.to(tl.int32) * 0
            for j in range(2):
                level = _roi_level(roi, at, clamp_to_edge(left + j, _ROI_SIZE), channel, mask)
                line += level.to(tl.int32) * tl.where(j == 0, width - right, right)
            total += line.to(tl.int64) * tl.where(i == 0, height - down, down)
        return floor_quotient(total, height.to(tl.int64) * width)


@triton.jit
def _finished_level(source, row, pixel, channel, mask, MODE: tl.constexpr):
    """Return levels (int32) of the finished frame: the face in its box, the frame elsewhere."""
    picture, box, crop, roi = source
    x0, y0, x1, y1 = box
    face = mask & (row >= y0) & (row < y1) & (pixel >= x0) & (pixel < x1)
    face = face & (channel < 3)
    new = _pasted(row - y0, pixel - x0, channel, y1 - y0, x1 - x0, crop, roi, face, MODE)
    old = read_level(picture, row, pixel, channel, mask & (face == 0), "rgb")
    return tl.where(face, new, old)


@triton.jit
def _finished_bytes(
    source, row, byte, second, mask,
    MODE: tl.constexpr, FORMAT: tl.constexpr, CHROMA: tl.constexpr,
):  # fmt: skip
    """Return bytes (uint8) of rows of the finished frame, in its format: see `make_bytes`."""
    level = make_bytes(_finished_level, source, row, byte, second, mask, MODE, FORMAT, CHROMA)
    return level.to(tl.uint8)


@triton.jit
def _plane(
    job, picture, width, box, crop, roi, out, row_chunks,
    MODE: tl.constexpr, FORMAT: tl.constexpr, CHROMA: tl.constexpr, WIDTH: tl.constexpr,
    PASTERS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Paste or copy one program's part of one plane, or of I420's U and V, of a finished frame.

    Pasting programs write the accesses (WIDTH bytes) that touch the face box, copying programs
    all others. Both derive the split in the same way, so no byte is written twice.
    """
    YUV: tl.constexpr = FORMAT == "nv12" or FORMAT == "i420"
    PIXEL: tl.constexpr = 4 if FORMAT == "rgba" else 1 if YUV else 3
    HALF: tl.constexpr = 2 if CHROMA else 1
    # I420's U and V are planes below each other: twice the rows, of a byte for two pixels.
    PLANES: tl.constexpr = 2 if CHROMA and FORMAT == "i420" else 1
    _, _, height = picture
    x0, y0, x1, y1 = box
    top, bottom = tl.maximum(y0, 0), tl.minimum(y1, height)
    left, right = tl.maximum(x0, 0), tl.minimum(x1, width)
    visible = (bottom > top) & (right > left)
    if CHROMA:
        left, right = left & -2, (right + 1) & -2
    rows = height // HALF
    first_row, end_row = top // HALF, tl.where(visible, (bottom + HALF - 1) // HALF, 0)
    first_chunk = left * PIXEL // PLANES // WIDTH
    end_chunk = tl.where(visible, tl.cdiv(right * PIXEL // PLANES, WIDTH), 0)

    if job < PASTERS:
        source = (picture, box, crop, roi)
        across = tl.cdiv((end_chunk - first_chunk) * WIDTH, BYTES)
        tiles = tl.where(visible, across * tl.cdiv(end_row - first_row, ROWS), 0)
        for number in range(job, tiles * PLANES, PASTERS):
            second = number // tiles if PLANES == 2 else 0
            tile = number - second * tiles
            # Computed in four parts one after the other, which takes a quarter of the registers,
            # and stored as one, so that each thread stores 16 bytes.
            row = first_row + tile // across * ROWS + tl.arange(0, ROWS)[:, None]
            part = first_row + tile // across * ROWS + tl.arange(0, ROWS // 4)[:, None]
            byte = (first_chunk * WIDTH + tile % across * BYTES + tl.arange(0, BYTES))[None, :]
            live = byte < end_chunk * WIDTH
            mask = live & (part < end_row)
            level0 = _finished_bytes(source, part, byte, second, mask, MODE, FORMAT, CHROMA)
            part += ROWS // 4
            mask = live & (part < end_row)
            level1 = _finished_bytes(source, part, byte, second, mask, MODE, FORMAT, CHROMA)
            part += ROWS // 4
            mask = live & (part < end_row)
            level2 = _finished_bytes(source, part, byte, second, mask, MODE, FORMAT, CHROMA)
            part += ROWS // 4
            mask = live & (part < end_row)
            level3 = _finished_bytes(source, part, byte, second, mask, MODE, FORMAT, CHROMA)
            level = tl.join(tl.join(level0, level2), tl.join(level1, level3))
            level = tl.reshape(tl.permute(level, (2, 3, 0, 1)), (ROWS, BYTES))
            at = out + (row + second * rows).to(tl.int64) * row_chunks * WIDTH + byte
            tl.store(at, level, mask=live & (row < end_row))
    else:
        chunk = ((job - PASTERS) * CHUNKS + tl.arange(0, CHUNKS))[:, None]
        row, chunk = chunk // row_chunks, chunk % row_chunks
        second = (row >= rows).to(tl.int32) if PLANES == 2 else 0
        row = row - second * rows
        face = (row >= first_row) & (row < end_row) & (chunk >= first_chunk) & (chunk < end_chunk)
        byte = chunk * WIDTH + tl.arange(0, WIDTH)[None, :]
        mask = ((row < rows) & (face == 0)) & (byte >= 0)
        level = convert_bytes(picture, row, byte, second, mask, "rgb", FORMAT, CHROMA)
        at = out + (row + second * rows).to(tl.int64) * row_chunks * WIDTH + byte
        tl.store(at, level.to(tl.uint8), mask=mask)


@triton.jit(
    do_not_specialize=[
        "frame_chunks", "frame_row_chunks", "height", "width", "item_stride", "channel_stride",
        "roi_row_stride", "row_chunks", "jobs",
    ]
)  # fmt: skip
def _composite(
    frames, frame_chunks, frame_row_chunks, height, width, boxes, index, crops,
    roi, item_stride, channel_stride, roi_row_stride, column_stride, out, row_chunks, jobs,
    MODE: tl.constexpr, FORMAT: tl.constexpr, WIDTH: tl.constexpr, CHROMA_WIDTH: tl.constexpr,
    PASTERS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Finish n frames with `jobs` programs each; axis 1 is Y or chroma of NV12 and I420."""
    program = tl.program_id(0)
    job = program % jobs
    item = (program // jobs).to(tl.int64)
    number = tl.load(index + item).to(tl.int64)
    box = load_box(boxes, number)
    picture = (frames + number * frame_chunks * WIDTH, frame_row_chunks * WIDTH, height)
    crop = crops + item * (_CROP_SIZE * _CROP_SIZE * 3)
    roi = (roi + item * item_stride, channel_stride, roi_row_stride, column_stride)
    if FORMAT == "nv12" or FORMAT == "i420":
        out += item * (height * 3 // 2) * row_chunks * WIDTH
        if tl.program_id(1) == 0:
            _plane(
                job, picture, width, box, crop, roi, out, row_chunks,
                MODE, FORMAT, False, WIDTH, PASTERS, ROWS, BYTES, CHUNKS,
            )  # fmt: skip
        else:
            out += height.to(tl.int64) * row_chunks * WIDTH
            if FORMAT == "i420":
                row_chunks = row_chunks * WIDTH // 2 // CHROMA_WIDTH
            _plane(
                job, picture, width, box, crop, roi, out, row_chunks,
                MODE, FORMAT, True, CHROMA_WIDTH, PASTERS, ROWS, BYTES, CHUNKS,
            )  # fmt: skip
    else:
        out += item * height * row_chunks * WIDTH
        _plane(
            job, picture, width, box, crop, roi, out, row_chunks,
            MODE, FORMAT, False, WIDTH, PASTERS, ROWS, BYTES, CHUNKS,
        )  # fmt: skip


def composite(
    frames: Tensor, boxes: Tensor, index: Tensor, crops: Tensor, generated: Tensor,
    mode: CompositeMode, format: ByteFormat, out: Tensor,
) -> Tensor:  # fmt: skip
    height, width = frames.shape[1:3]
    if max(generated.stride()[1:]) >= 1 << 29:  # offsets within one ROI have 32 bits
        generated = generated.contiguous()
    row_bytes = width * bytes_per_pixel(format)
    wide = access_width(row_bytes, *frames.stride()[:2])
    jobs, chunks = PASTERS, CHUNKS if format == "rgb" else CHUNKS // 2
    if out.data_ptr() != frames.data_ptr():  # in place, there is nothing to copy
        jobs += triton.cdiv(height * (row_bytes // wide), chunks)
    _composite[(index.shape[0] * jobs, 2 if format in YUV_FORMATS else 1)](
        frames, frames.stride(0) // wide, frames.stride(1) // wide, height, width,
        boxes.contiguous(), index.contiguous(), crops.contiguous(), generated,
        *generated.stride(), out, row_bytes // wide, jobs,
        MODE=mode, FORMAT=format,
        WIDTH=wide, CHROMA_WIDTH=chroma_access_width(format, wide, width),
        PASTERS=PASTERS, ROWS=TILE_ROWS, BYTES=TILE_BYTES, CHUNKS=chunks,
        num_warps=8, maxnreg=128, num_stages=1,
    )  # fmt: skip
    return out
