"""Colour formats in memory: reading levels of one, making bytes of another."""

import triton
import triton.language as tl

from .. import spec

_SHIFT = tl.constexpr(spec.YUV_SHIFT)
_HALF = tl.constexpr(1 << (spec.YUV_SHIFT - 1))
_YR, _YG, _YB = (tl.constexpr(weight) for weight in spec.Y_RGB)
_UR, _UG, _UB = (tl.constexpr(weight) for weight in spec.U_RGB)
_VR, _VG, _VB = (tl.constexpr(weight) for weight in spec.V_RGB)
_RGB_Y, _R_V, _B_U = (tl.constexpr(spec.RGB_Y), tl.constexpr(spec.R_V), tl.constexpr(spec.B_U))
_G_U, _G_V = tl.constexpr(spec.G_U), tl.constexpr(spec.G_V)


def access_width(*strides: int) -> int:
    """Return the widest access, 1 to 16 bytes, that is aligned at every multiple of the strides.

    Pass `stride // width` to a kernel and multiply by `width` there, so that the compiler can
    prove the alignment and vectorise. It cannot prove it for a stride of 3240, for example.
    """
    width = 16
    while any(stride % width for stride in strides):
        width //= 2
    return width


def bytes_per_pixel(format: str) -> int:
    """Return the bytes from one pixel to the next in a row; in NV12 and I420, a row of Y."""
    return {"rgb": 3, "bgr": 3, "rgba": 4, "nv12": 1, "i420": 1}[format]


def chroma_access_width(format: str, width: int, pixels: int) -> int:
    """Return the widest access to rows of U and V: as to Y, but I420's rows are half as long."""
    return access_width(width, pixels // 2) if format == "i420" else width


@triton.jit
def float_level(value):
    """Return floor(clip(255 v, 0, 255)) as float32, with 0 for NaN."""
    value = value.to(tl.float32) * 255
    return tl.floor(tl.minimum(tl.maximum(value, 0.0), 255.0))  # the maximum of NaN and 0 is 0


@triton.jit
def luma(channel, level):
    """Return what a channel (R, G, B) adds to Y, times 2**YUV_SHIFT."""
    return level * tl.where(channel == 0, _YR, tl.where(channel == 1, _YG, _YB))


@triton.jit
def chroma(channel, level, second):
    """Return what a channel (R, G, B) adds to U, or to V if `second`, times 2**YUV_SHIFT."""
    u = tl.where(channel == 0, _UR, tl.where(channel == 1, _UG, _UB))
    v = tl.where(channel == 0, _VR, tl.where(channel == 1, _VG, _VB))
    return level * tl.where(second, v, u)


@triton.jit
def luma_level(total):
    """Round the sum over the channels to Y."""
    return ((total + _HALF) >> _SHIFT) + 16


@triton.jit
def chroma_level(total):
    """Round the sum over the channels of 2 x 2 pixels to U or V."""
    return ((total + _HALF * 4) >> (_SHIFT + 2)) + 128


@triton.jit
def _load_chroma(source, row, column, second, mask, FORMAT: tl.constexpr):
    """Load U, or V if `second` is 1, of 2 x 2 pixels of an NV12 or I420 image; all counted so."""
    image, row_stride, height = source
    image += height.to(tl.int64) * row_stride
    if FORMAT == "nv12":
        at = image + row.to(tl.int64) * row_stride + column * 2 + second
    else:
        line = row + second * (height // 2)
        at = image + line.to(tl.int64) * (row_stride // 2) + column
    return tl.load(at, mask=mask, other=0).to(tl.int32)


@triton.jit
def read_level(source, row, pixel, channel, mask, FORMAT: tl.constexpr):
    """Load levels (int32) of a channel (R, G, B, A) of pixels of an image.

    source: (image, row_stride, height).
    """
    image, row_stride, height = source
    if FORMAT == "planar_bgr":
        plane = image + ((2 - channel) * height + row).to(tl.int64) * row_stride
        level = float_level(tl.load(plane + pixel, mask=mask & (channel < 3), other=0)).to(tl.int32)
        return tl.where(channel == 3, 255, level)
    elif FORMAT == "nv12" or FORMAT == "i420":
        y = tl.load(image + row.to(tl.int64) * row_stride + pixel, mask=mask, other=0)
        u = _load_chroma(source, row // 2, pixel // 2, 0, mask, FORMAT) - 128
        v = _load_chroma(source, row // 2, pixel // 2, 1, mask, FORMAT) - 128
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
def make_bytes(
    level_of: tl.constexpr, source, row, byte, second, mask,
    KIND: tl.constexpr, TARGET: tl.constexpr, CHROMA: tl.constexpr,
):  # fmt: skip
    """Return bytes (int32) of rows in the target format.

    In NV12 and I420 these are bytes of Y, or of U and V if CHROMA; I420's rows of U and V are
    told apart by `second`, 0 or 1.

    level_of(source, row, pixel, channel, mask, KIND) returns levels as `read_level` does.
    """
    if TARGET == "rgba":
        return level_of(source, row, byte // 4, byte % 4, mask, KIND)
    elif TARGET == "rgb":
        return level_of(source, row, byte // 3, byte % 3, mask, KIND)
    elif TARGET == "bgr":
        return level_of(source, row, byte // 3, 2 - byte % 3, mask, KIND)
    else:
        total = (row + byte) * 0
        for channel in range(3):
            if CHROMA:
                left = byte & -2 if TARGET == "nv12" else byte * 2
                for corner in range(4):
                    y, x = 2 * row + corner // 2, left + corner % 2
                    level = level_of(source, y, x, channel, mask, KIND)
                    which = byte % 2 if TARGET == "nv12" else second
                    total += chroma(channel, level, which == 1)
            else:
                total += luma(channel, level_of(source, row, byte, channel, mask, KIND))
        return chroma_level(total) if CHROMA else luma_level(total)


@triton.jit
def convert_bytes(
    source, row, byte, second, mask,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, CHROMA: tl.constexpr,
):  # fmt: skip
    """Return bytes (int32) of rows of an image in the target format, see `make_bytes`."""
    YUV: tl.constexpr = SOURCE == "nv12" or SOURCE == "i420"
    if YUV and (TARGET == "nv12" or TARGET == "i420") and CHROMA:
        if TARGET == "nv12":
            return _load_chroma(source, row, byte // 2, byte % 2, mask, SOURCE)
        else:
            return _load_chroma(source, row, byte, second, mask, SOURCE)
    elif SOURCE == TARGET or (YUV and (TARGET == "nv12" or TARGET == "i420")):
        image, row_stride, _ = source
        level = tl.load(image + row.to(tl.int64) * row_stride + byte, mask=mask, other=0)
        return level.to(tl.int32)
    else:
        return make_bytes(read_level, source, row, byte, second, mask, SOURCE, TARGET, CHROMA)
