"""Images -> images in another colour order or memory layout."""

import triton
import triton.language as tl
from torch import Tensor

from ..spec import YUV_FORMATS, ColorFormat
from .pixel_formats import (
    access_width,
    bytes_per_pixel,
    chroma_access_width,
    convert_bytes,
    read_level,
)

CHUNKS = 256  # accesses of the full width that one program makes
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
