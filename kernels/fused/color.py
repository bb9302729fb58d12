"""Images -> images in another colour order or memory layout."""

import triton
import triton.language as tl
from torch import Tensor

from ..spec import YUV_FORMATS, ColorFormat
from ..work import Work
from .pixel_formats import (
    access_width,
    bytes_per_pixel,
    chroma_access_width,
    convert_bytes,
    read_level,
)
from .quads import BRIGHTEST, copy_yuv, load_quad, load_yuv, store_quad, store_yuv, units_at

UNITS = 256  # of four pixels, that one program converts at once
PARTS = 8  # that it converts one after the other
CHUNKS = 256  # accesses of the full width that one program makes where rows are not aligned
TILE_PIXELS = 1024


@triton.jit
def _convert_rows(
    images, row_stride, height, out, rows, row_chunks, first,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, CHROMA: tl.constexpr,
    WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Convert CHUNKS accesses of one plane, or of I420's U and V, counted through the rows."""
    chunk = (first + tl.arange(0, CHUNKS))[:, None]
    row = chunk // row_chunks
    byte = chunk % row_chunks * WIDTH + tl.arange(0, WIDTH)[None, :]
    mask = (row < rows) & (byte >= 0)
    source = (images, row_stride, height)
    if CHROMA and TARGET == "i420":
        second = (row >= height // 2).to(tl.int32)
        line = row - second * (height // 2)
        level = convert_bytes(source, line, byte, second, mask, SOURCE, TARGET, CHROMA)
    else:
        level = convert_bytes(source, row, byte, 0, mask, SOURCE, TARGET, CHROMA)
    at = out + row.to(tl.int64) * row_chunks * WIDTH + byte
    tl.store(at, level.to(tl.uint8), mask=mask)


@triton.jit(do_not_specialize=["image_stride", "row_stride", "height", "row_chunks", "tiles"])
def _to_bytes(
    images, image_stride, row_stride, out, height, row_chunks, tiles,
    SOURCE: tl.constexpr, TARGET: tl.constexpr,
    WIDTH: tl.constexpr, CHROMA_WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Convert images to a format of bytes; axis 1 of the grid is Y or chroma of NV12 and I420."""
    program = tl.program_id(0)
    image, first = (program // tiles).to(tl.int64), program % tiles * CHUNKS
    images += image * image_stride
    if TARGET == "nv12" or TARGET == "i420":
        out += image * (height * 3 // 2) * row_chunks * WIDTH
        if tl.program_id(1) == 0:
            _convert_rows(
                images, row_stride, height, out, height, row_chunks, first,
                SOURCE, TARGET, False, WIDTH, CHUNKS,
            )  # fmt: skip
        else:
            out += height.to(tl.int64) * row_chunks * WIDTH
            if TARGET == "i420":
                row_chunks = row_chunks * WIDTH // 2 // CHROMA_WIDTH
            _convert_rows(
                images, row_stride, height, out, height if TARGET == "i420" else height // 2,
                row_chunks, first, SOURCE, TARGET, True, CHROMA_WIDTH, CHUNKS,
            )  # fmt: skip
    else:
        _convert_rows(
            images, row_stride, height, out + image * height * row_chunks * WIDTH,
            height, row_chunks, first, SOURCE, TARGET, False, WIDTH, CHUNKS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["image_stride", "row_stride", "height", "width", "tiles"])
def _to_planes(
    images, image_stride, row_stride, out, height, width, tiles,
    SOURCE: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Convert images to planes B, G, R (axis 1 of the grid) of floats, level / 255."""
    program, plane = tl.program_id(0), tl.program_id(1)
    image = (program // tiles).to(tl.int64)
    at = program % tiles * PIXELS + tl.arange(0, PIXELS)
    live = at < height * width
    images += image * image_stride
    source = (images, row_stride, height)
    level = read_level(source, at // width, at % width, 2 - plane, live, SOURCE)
    value = tl.div_rn(level.to(tl.float32), 255.0)
    out += (image * 3 + plane) * height * width
    tl.store(out + at, value.to(out.dtype.element_ty), mask=live)


@triton.jit
def convert_quads(
    first_row, first, per_row, share, images, row_stride, out, height, width, brightest,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Convert UNITS units of an image, from unit `first` on, counted from the first row's.

    A unit is four pixels, of two rows if either format is NV12 or I420.
    """
    FROM_YUV: tl.constexpr = SOURCE == "nv12" or SOURCE == "i420"
    TO_YUV: tl.constexpr = TARGET == "nv12" or TARGET == "i420"
    ROWS: tl.constexpr = 2 if FROM_YUV or TO_YUV else 1
    row, place = units_at(first_row, first + tl.arange(0, UNITS), per_row, share)
    row, column = row * ROWS, place * 4
    live = row < height
    if FROM_YUV and TO_YUV:
        copy_yuv(images, out, height, width, row, column, live, SOURCE, TARGET)
    else:
        if FROM_YUV:
            upper, lower = load_yuv(images, height, width, row, column, live, brightest, SOURCE)
        else:
            upper = load_quad(images, row_stride, height, row, column, live, SOURCE)
            if ROWS == 2:
                lower = load_quad(images, row_stride, height, row + 1, column, live, SOURCE)
        if TO_YUV:
            store_yuv(out, width, height, row, column, upper, lower, live, TARGET)
        else:
            store_quad(out, width, row, column, upper, live, TARGET)
            if ROWS == 2:
                store_quad(out, width, row + 1, column, lower, live, TARGET)


@triton.jit(do_not_specialize=["image_stride", "out_stride", "height", "width", "brightest"])
def _quads(
    images, image_stride, row_stride, out, out_stride, height, width, brightest,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, UNITS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Convert images (axis 0) four pixels at a time; rows begin at multiples of 4 bytes."""
    image, number = tl.program_id(0).to(tl.int64), tl.program_id(1) * (UNITS * PARTS)
    images += image * image_stride
    out += image * out_stride
    per_row = width // 4
    share = 1.0 / per_row.to(tl.float32)
    row, place = number // per_row, number % per_row
    for part in range(0, UNITS * PARTS, UNITS):
        convert_quads(
            row, place + part, per_row, share, images, row_stride, out, height, width,
            brightest, SOURCE, TARGET, UNITS,
        )  # fmt: skip


def convert_color(images: Tensor, source: ColorFormat, target: ColorFormat, out: Tensor) -> Tensor:
    if source == target and target in YUV_FORMATS:
        return out.copy_(images)
    images = images.contiguous()
    n = images.shape[0]
    if target == "planar_bgr":
        height, width = out.shape[2:]
    elif target in YUV_FORMATS:
        height, width = out.shape[1] * 2 // 3, out.shape[2]
    else:
        height, width = out.shape[1:3]
    row_stride = width if source == "planar_bgr" else width * bytes_per_pixel(source)
    image_stride = images.stride(0)
    if target == "planar_bgr":
        tiles = triton.cdiv(height * width, TILE_PIXELS)
        _to_planes[(n * tiles, 3)](
            images, image_stride, row_stride, out, height, width, tiles,
            SOURCE=source, PIXELS=TILE_PIXELS, num_stages=1,
        )  # fmt: skip
        return out
    aligned = images.data_ptr() % 4 == out.data_ptr() % 4 == width % 4 == 0
    if aligned and source != target:
        rows = 2 if {source, target} & {*YUV_FORMATS} else 1
        tiles = triton.cdiv(height // rows * (width // 4), UNITS * PARTS)
        _quads[(n, tiles)](
            images, image_stride, row_stride, out, out.stride(0), height, width, BRIGHTEST,
            SOURCE=source, TARGET=target, UNITS=UNITS, PARTS=PARTS, num_warps=8, num_stages=1,
        )  # fmt: skip
        return out
    row_bytes = width * bytes_per_pixel(target)
    wide = access_width(row_bytes)
    tiles = triton.cdiv(height * (row_bytes // wide), CHUNKS)
    _to_bytes[(n * tiles, 2 if target in YUV_FORMATS else 1)](
        images, image_stride, row_stride, out, height, row_bytes // wide, tiles,
        SOURCE=source, TARGET=target,
        WIDTH=wide, CHROMA_WIDTH=chroma_access_width(target, wide, width), CHUNKS=CHUNKS,
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return out


def color_work(n: int, height: int, width: int, source: ColorFormat, target: ColorFormat) -> Work:
    """Return the work of a conversion of n aligned images, from and to bytes."""
    rows = 2 if {source, target} & {*YUV_FORMATS} else 1
    tiles = triton.cdiv(height // rows * (width // 4), UNITS * PARTS)
    sizes = {"rgba": 4, "nv12": 1.5, "i420": 1.5}
    read, made = (
        n * int(height * width * sizes.get(format, 3.0)) for format in (source, target)
    )  # fmt: skip
    runs = {"_quads": n * tiles, "convert_quads": n * tiles * PARTS}
    # Quads are 12 bytes apart in RGB, so a warp's 32 words lie in 3 lines.
    return Work(runs=runs, moved=read + made, made=made, items=n, lines={"convert_quads": 3.0})
