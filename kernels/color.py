"""Colour and layout conversion: stand-alone, and what the fused stages share of it."""

import triton
import triton.language as tl
from torch import Tensor

from . import spec

CHUNKS = 256  # accesses of the full width that one program makes
TILE_PIXELS = 1024

_SHIFT = tl.constexpr(spec.YUV_SHIFT)
_HALF = tl.constexpr(1 << (spec.YUV_SHIFT - 1))
_YR, _YG, _YB = (tl.constexpr(weight) for weight in spec.Y_RGB)
_UR, _UG, _UB = (tl.constexpr(weight) for weight in spec.U_RGB)
_VR, _VG, _VB = (tl.constexpr(weight) for weight in spec.V_RGB)
_RGB_Y, _R_V, _B_U = (tl.constexpr(spec.RGB_Y), tl.constexpr(spec.R_V), tl.constexpr(spec.B_U))
_G_U, _G_V = tl.constexpr(spec.G_U), tl.constexpr(spec.G_V)


def access_width(*strides: int) -> int:
    """Bytes at once, a power of two up to 16, so that every multiple of the strides is aligned.

    A kernel takes its strides divided by this and multiplies again: so the compiler sees what
    they are multiples of, where it would not see it in, say, 3240.
    """
    width = 16
    while any(stride % width for stride in strides):
        width //= 2
    return width


def bytes_per_pixel(format: str) -> int:
    """Bytes from one pixel to the next in a row; in NV12 a row is of one plane."""
    return {"rgb": 3, "bgr": 3, "rgba": 4, "nv12": 1}[format]


@triton.jit
def float_level(value):
    """floor(clip(255 v, 0, 255)), NaN as 0; stays float32."""
    value = value.to(tl.float32) * 255
    value = tl.where(value == value, value, 0.0)
    return tl.floor(tl.minimum(tl.maximum(value, 0.0), 255.0))


@triton.jit
def luma(channel, level):
    """What one of the channels R, G, B adds to Y, shifted left."""
    return level * tl.where(channel == 0, _YR, tl.where(channel == 1, _YG, _YB))


@triton.jit
def chroma(channel, level, second):
    """What a channel adds to U, or to V where `second`, shifted left."""
    u = tl.where(channel == 0, _UR, tl.where(channel == 1, _UG, _UB))
    v = tl.where(channel == 0, _VR, tl.where(channel == 1, _VG, _VB))
    return level * tl.where(second, v, u)


@triton.jit
def luma_level(total):
    return ((total + _HALF) >> _SHIFT) + 16


@triton.jit
def chroma_level(total):
    """Of the sum over 2 x 2 pixels."""
    return ((total + _HALF * 4) >> (_SHIFT + 2)) + 128


@triton.jit
def read(image, row_stride, height, row, pixel, channel, mask, FORMAT: tl.constexpr):
    """Level (int32) of one of the channels R, G, B, A of pixels of an image."""
    if FORMAT == "planar_bgr":
        plane = image + ((2 - channel) * height + row).to(tl.int64) * row_stride
        level = float_level(tl.load(plane + pixel, mask=mask & (channel < 3), other=0)).to(tl.int32)
        return tl.where(channel == 3, 255, level)
    elif FORMAT == "nv12":
        colour = image + (height + row // 2).to(tl.int64) * row_stride + (pixel & -2)
        y = tl.load(image + row.to(tl.int64) * row_stride + pixel, mask=mask, other=0)
        u = tl.load(colour, mask=mask, other=0).to(tl.int32) - 128
        v = tl.load(colour + 1, mask=mask, other=0).to(tl.int32) - 128
        added = tl.where(
            channel == 0, v * _R_V, tl.where(channel == 1, u * _G_U + v * _G_V, u * _B_U)
        )
        level = ((y.to(tl.int32) - 16) * _RGB_Y + added + _HALF) >> _SHIFT
        return tl.where(channel == 3, 255, tl.minimum(tl.maximum(level, 0), 255))
    elif FORMAT == "rgba":
        at = image + row.to(tl.int64) * row_stride + pixel * 4 + channel
        return tl.load(at, mask=mask, other=0).to(tl.int32)
    else:
        place = channel if FORMAT == "rgb" else 2 - channel
        at = image + row.to(tl.int64) * row_stride + pixel * 3 + place
        level = tl.load(at, mask=mask & (channel < 3), other=0).to(tl.int32)
        return tl.where(channel == 3, 255, level)


@triton.jit
def converted(
    image, row_stride, height, row, byte, mask,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, CHROMA: tl.constexpr,
):  # fmt: skip
    """Bytes of rows of the target (in NV12: of its first plane, or of the one of CHROMA)."""
    if SOURCE == TARGET and TARGET != "planar_bgr":
        if CHROMA:
            image += height.to(tl.int64) * row_stride
        level = tl.load(image + row.to(tl.int64) * row_stride + byte, mask=mask, other=0)
        return level.to(tl.int32)
    elif TARGET == "rgba":
        return read(image, row_stride, height, row, byte // 4, byte % 4, mask, SOURCE)
    elif TARGET == "rgb":
        return read(image, row_stride, height, row, byte // 3, byte % 3, mask, SOURCE)
    elif TARGET == "bgr":
        return read(image, row_stride, height, row, byte // 3, 2 - byte % 3, mask, SOURCE)
    else:
        total = (row + byte) * 0
        for channel in range(3):
            if CHROMA:
                for corner in range(4):
                    y, x = 2 * row + corner // 2, (byte & -2) + corner % 2
                    level = read(image, row_stride, height, y, x, channel, mask, SOURCE)
                    total += chroma(channel, level, byte % 2 == 1)
            else:
                level = read(image, row_stride, height, row, byte, channel, mask, SOURCE)
                total += luma(channel, level)
        return chroma_level(total) if CHROMA else luma_level(total)


@triton.jit
def _convert_rows(
    images, row_stride, height, out, rows, row_chunks, first,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, CHROMA: tl.constexpr,
    WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """CHUNKS accesses of one plane, counted through its rows."""
    chunk = (first + tl.arange(0, CHUNKS))[:, None]
    row = chunk // row_chunks
    byte = chunk % row_chunks * WIDTH + tl.arange(0, WIDTH)[None, :]
    mask = (row < rows) & (byte >= 0)
    level = converted(images, row_stride, height, row, byte, mask, SOURCE, TARGET, CHROMA)
    at = out + row.to(tl.int64) * row_chunks * WIDTH + byte
    tl.store(at, level.to(tl.uint8), mask=mask)


@triton.jit(do_not_specialize=["image_stride", "row_stride", "height", "row_chunks", "tiles"])
def _to_bytes(
    images, image_stride, row_stride, out, height, row_chunks, tiles,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Images to a format of bytes; the second plane of NV12 is axis 1 of the grid."""
    program = tl.program_id(0)
    image, first = (program // tiles).to(tl.int64), program % tiles * CHUNKS
    images += image * image_stride
    if TARGET == "nv12":
        out += image * (height * 3 // 2) * row_chunks * WIDTH
        if tl.program_id(1) == 0:
            _convert_rows(
                images, row_stride, height, out, height, row_chunks, first,
                SOURCE, TARGET, False, WIDTH, CHUNKS,
            )  # fmt: skip
        else:
            _convert_rows(
                images, row_stride, height, out + height.to(tl.int64) * row_chunks * WIDTH,
                height // 2, row_chunks, first, SOURCE, TARGET, True, WIDTH, CHUNKS,
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
    """Images to planes B, G, R (axis 1 of the grid) of floats, level / 255."""
    program, plane = tl.program_id(0), tl.program_id(1)
    image = (program // tiles).to(tl.int64)
    at = program % tiles * PIXELS + tl.arange(0, PIXELS)
    live = at < height * width
    images += image * image_stride
    level = read(images, row_stride, height, at // width, at % width, 2 - plane, live, SOURCE)
    value = tl.div_rn(level.to(tl.float32), 255.0)
    out += (image * 3 + plane) * height * width
    tl.store(out + at, value.to(out.dtype.element_ty), mask=live)


def convert_color(images: Tensor, source: str, target: str, out: Tensor) -> Tensor:
    images = images.contiguous()
    n = images.shape[0]
    if target == "planar_bgr":
        height, width = out.shape[2:]
    elif target == "nv12":
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
    _to_bytes[(n * tiles, 2 if target == "nv12" else 1)](
        images, image_stride, row_stride, out, height, row_bytes // wide, tiles,
        SOURCE=source, TARGET=target, WIDTH=wide, CHUNKS=CHUNKS, num_warps=8, num_stages=1,
    )  # fmt: skip
    return out
