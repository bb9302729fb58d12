"""Four pixels of a row at a time, in the 32-bit words that hold them.

Rows must begin at multiples of 4 bytes and be a multiple of 4 pixels wide, so that every word lies
in one row. Levels are int32; words are uint32, the first byte in the lowest bits.
"""

import triton
import triton.language as tl

from .. import spec
from .pixel_formats import chroma, chroma_level, float_level, luma, luma_level

_SHIFT, _HALF = tl.constexpr(spec.YUV_SHIFT), tl.constexpr(1 << (spec.YUV_SHIFT - 1))
BRIGHTEST = (256 << spec.YUV_SHIFT) - 1  # that `rgb_level` does not clip
_RGB_Y, _R_V, _B_U = tl.constexpr(spec.RGB_Y), tl.constexpr(spec.R_V), tl.constexpr(spec.B_U)
_G_U, _G_V = tl.constexpr(spec.G_U), tl.constexpr(spec.G_V)


@triton.jit
def byte_of(word, number: tl.constexpr):
    """Return a byte of words as int32."""
    return ((word >> (8 * number)) & 255).to(tl.int32)


@triton.jit
def word_of(byte0, byte1, byte2, byte3):
    """Return words of four levels."""
    low = byte0.to(tl.uint32) | (byte1.to(tl.uint32) << 8)
    return low | (byte2.to(tl.uint32) << 16) | (byte3.to(tl.uint32) << 24)


@triton.jit
def load_rgb(words, mask):
    """Load the pixels of 3 words: R, G and B of four pixels, each a tuple."""
    w0 = tl.load(words, mask=mask, other=0)
    w1 = tl.load(words + 1, mask=mask, other=0)
    w2 = tl.load(words + 2, mask=mask, other=0)
    red = (byte_of(w0, 0), byte_of(w0, 3), byte_of(w1, 2), byte_of(w2, 1))
    green = (byte_of(w0, 1), byte_of(w1, 0), byte_of(w1, 3), byte_of(w2, 2))
    blue = (byte_of(w0, 2), byte_of(w1, 1), byte_of(w2, 0), byte_of(w2, 3))
    return red, green, blue


@triton.jit
def store_rgb(words, pixels, mask):
    """Store R, G and B of four pixels as 3 words."""
    red, green, blue = pixels
    tl.store(words, word_of(red[0], green[0], blue[0], red[1]), mask=mask)
    tl.store(words + 1, word_of(green[1], blue[1], red[2], green[2]), mask=mask)
    tl.store(words + 2, word_of(blue[2], red[3], green[3], blue[3]), mask=mask)


@triton.jit
def store_rgba(words, pixels, mask):
    """Store R, G and B of four pixels as 4 words, opaque."""
    red, green, blue = pixels
    word0 = word_of(red[0], green[0], blue[0], red[0] * 0 + 255)
    word1 = word_of(red[1], green[1], blue[1], red[1] * 0 + 255)
    word2 = word_of(red[2], green[2], blue[2], red[2] * 0 + 255)
    word3 = word_of(red[3], green[3], blue[3], red[3] * 0 + 255)
    tl.store(words, word0, mask=mask)
    tl.store(words + 1, word1, mask=mask)
    tl.store(words + 2, word2, mask=mask)
    tl.store(words + 3, word3, mask=mask)


@triton.jit
def luma_of(red, green, blue):
    return luma_level(luma(0, red) + luma(1, green) + luma(2, blue))


@triton.jit
def luma_word(pixels):
    """Return Y of four pixels as a word."""
    red, green, blue = pixels
    return word_of(
        luma_of(red[0], green[0], blue[0]), luma_of(red[1], green[1], blue[1]),
        luma_of(red[2], green[2], blue[2]), luma_of(red[3], green[3], blue[3]),
    )  # fmt: skip


@triton.jit
def chroma_of(red, green, blue, second: tl.constexpr):
    """Return U, or V if `second`, of the sums of 2 x 2 pixels."""
    total = chroma(0, red, second) + chroma(1, green, second) + chroma(2, blue, second)
    return chroma_level(total)


@triton.jit
def chroma_bytes(upper, lower):
    """Return U and V of the left and the right 2 x 2 of two rows of four pixels: u, u, v, v."""
    red, green, blue = upper
    red1, green1, blue1 = lower
    left = (
        red[0] + red[1] + red1[0] + red1[1],
        green[0] + green[1] + green1[0] + green1[1],
        blue[0] + blue[1] + blue1[0] + blue1[1],
    )
    right = (
        red[2] + red[3] + red1[2] + red1[3],
        green[2] + green[3] + green1[2] + green1[3],
        blue[2] + blue[3] + blue1[2] + blue1[3],
    )
    return (
        chroma_of(left[0], left[1], left[2], False),
        chroma_of(right[0], right[1], right[2], False),
        chroma_of(left[0], left[1], left[2], True),
        chroma_of(right[0], right[1], right[2], True),
    )


@triton.jit
def store_yuv(out, width, height, row, column, upper, lower, mask, FORMAT: tl.constexpr):
    """Store four columns of two rows, `row` and the next one, of an NV12 or I420 image.

    `column` is that of the first of the four.
    """
    at = out + (row * width + column)
    tl.store(at.to(tl.pointer_type(tl.uint32)), luma_word(upper), mask=mask)
    tl.store((at + width).to(tl.pointer_type(tl.uint32)), luma_word(lower), mask=mask)
    chroma = chroma_bytes(upper, lower)
    store_chroma(out, height, width, row, column, chroma, mask, FORMAT)


@triton.jit
def store_chroma(out, height, width, row, column, chroma, mask, FORMAT: tl.constexpr):
    """Store U and V of two neighbouring 2 x 2 pixels: u, u, v, v."""
    u0, u1, v0, v1 = chroma
    out += height * width
    if FORMAT == "nv12":
        at = out + (row // 2 * width + column)
        tl.store(at.to(tl.pointer_type(tl.uint32)), word_of(u0, v0, u1, v1), mask=mask)
    else:
        at = out + (row // 2 * (width // 2) + column // 2)
        tl.store(at.to(tl.pointer_type(tl.uint16)), (u0 | (u1 << 8)).to(tl.uint16), mask=mask)
        at += height // 2 * (width // 2)
        tl.store(at.to(tl.pointer_type(tl.uint16)), (v0 | (v1 << 8)).to(tl.uint16), mask=mask)


@triton.jit
def units_at(row, place, per_row, share):
    """Return row and place in the row of units, given the place counted from the first one's row.

    `share` is 1 / per_row. The result is exact: half a unit is far more than what the float32
    product is off for numbers below 2**16.
    """
    below = ((place.to(tl.float32) + 0.5) * share).to(tl.int32)
    return row + below, place - below * per_row


@triton.jit
def _words(pointer):
    return pointer.to(tl.pointer_type(tl.uint32))


@triton.jit
def _four_levels(values, at, mask):
    """Load four neighbouring floats as levels."""
    return (
        float_level(tl.load(values + at, mask=mask, other=0)).to(tl.int32),
        float_level(tl.load(values + at + 1, mask=mask, other=0)).to(tl.int32),
        float_level(tl.load(values + at + 2, mask=mask, other=0)).to(tl.int32),
        float_level(tl.load(values + at + 3, mask=mask, other=0)).to(tl.int32),
    )


@triton.jit
def load_quad(images, row_stride, height, row, column, mask, FORMAT: tl.constexpr):
    """Load four pixels of a row in a format that is not YUV: R, G and B, each a tuple."""
    if FORMAT == "planar_bgr":
        at = row * row_stride + column
        plane = height * row_stride
        return (
            _four_levels(images, at + 2 * plane, mask), _four_levels(images, at + plane, mask),
            _four_levels(images, at, mask),
        )  # fmt: skip
    elif FORMAT == "rgba":
        at = _words(images + (row * row_stride + column * 4))
        w0 = tl.load(at, mask=mask, other=0)
        w1 = tl.load(at + 1, mask=mask, other=0)
        w2 = tl.load(at + 2, mask=mask, other=0)
        w3 = tl.load(at + 3, mask=mask, other=0)
        return (
            (byte_of(w0, 0), byte_of(w1, 0), byte_of(w2, 0), byte_of(w3, 0)),
            (byte_of(w0, 1), byte_of(w1, 1), byte_of(w2, 1), byte_of(w3, 1)),
            (byte_of(w0, 2), byte_of(w1, 2), byte_of(w2, 2), byte_of(w3, 2)),
        )
    else:
        pixels = load_rgb(_words(images + (row * row_stride + column * 3)), mask)
        if FORMAT == "bgr":
            return pixels[2], pixels[1], pixels[0]
        else:
            return pixels


@triton.jit
def store_quad(out, width, row, column, pixels, mask, FORMAT: tl.constexpr):
    """Store four pixels of a row in a format of bytes that is not YUV."""
    if FORMAT == "rgba":
        store_rgba(_words(out + (row * width + column) * 4), pixels, mask)
    elif FORMAT == "bgr":
        swapped = (pixels[2], pixels[1], pixels[0])
        store_rgb(_words(out + (row * width + column) * 3), swapped, mask)
    else:
        store_rgb(_words(out + (row * width + column) * 3), pixels, mask)


@triton.jit
def luma_share(level):
    """Return what Y adds to each of R, G and B, times 2**YUV_SHIFT, with one half for rounding."""
    return (level - 16) * _RGB_Y + _HALF


@triton.jit
def chroma_shares(u, v):
    """Return what U and V add to R, G and B, times 2**YUV_SHIFT."""
    u, v = u - 128, v - 128
    return v * _R_V, u * _G_U + v * _G_V, u * _B_U


@triton.jit
def rgb_level(total, brightest):
    """Round the sum of the shares to a level.

    `brightest` is BRIGHTEST as a number of run time: two bounds that the compiler knows are put in
    an order for which GPUs from 9.0 on need two instructions, not one.
    """
    return tl.maximum(tl.minimum(total, brightest), 0) >> _SHIFT


@triton.jit
def _chroma_words(images, height, width, row, column, mask, FORMAT: tl.constexpr):
    """Load U and V of two neighbouring 2 x 2 pixels: u, u, v, v."""
    images += height * width
    if FORMAT == "nv12":
        word = tl.load(_words(images + (row // 2 * width + column)), mask=mask, other=0)
        return byte_of(word, 0), byte_of(word, 2), byte_of(word, 1), byte_of(word, 3)
    else:
        at = images + (row // 2 * (width // 2) + column // 2)
        u = tl.load(at.to(tl.pointer_type(tl.uint16)), mask=mask, other=0).to(tl.int32)
        at += height // 2 * (width // 2)
        v = tl.load(at.to(tl.pointer_type(tl.uint16)), mask=mask, other=0).to(tl.int32)
        return u & 255, u >> 8, v & 255, v >> 8


@triton.jit
def _rgb_levels(y0, y1, y2, y3, shares, brightest):
    left, right = shares
    return (
        rgb_level(y0 + left, brightest), rgb_level(y1 + left, brightest),
        rgb_level(y2 + right, brightest), rgb_level(y3 + right, brightest),
    )  # fmt: skip


@triton.jit
def _rgb_row(word, reds, greens, blues, brightest):
    """Return R, G and B of a word of Y and of what U and V add, for the left and right pairs."""
    y0, y1 = luma_share(byte_of(word, 0)), luma_share(byte_of(word, 1))
    y2, y3 = luma_share(byte_of(word, 2)), luma_share(byte_of(word, 3))
    return (
        _rgb_levels(y0, y1, y2, y3, reds, brightest),
        _rgb_levels(y0, y1, y2, y3, greens, brightest),
        _rgb_levels(y0, y1, y2, y3, blues, brightest),
    )


@triton.jit
def load_yuv(images, height, width, row, column, mask, brightest, FORMAT: tl.constexpr):
    """Load four columns of two rows of an NV12 or I420 image: R, G and B of each row."""
    at = images + (row * width + column)
    upper = tl.load(_words(at), mask=mask, other=0)
    lower = tl.load(_words(at + width), mask=mask, other=0)
    u0, u1, v0, v1 = _chroma_words(images, height, width, row, column, mask, FORMAT)
    left, right = chroma_shares(u0, v0), chroma_shares(u1, v1)
    reds, greens, blues = (left[0], right[0]), (left[1], right[1]), (left[2], right[2])
    return (
        _rgb_row(upper, reds, greens, blues, brightest),
        _rgb_row(lower, reds, greens, blues, brightest),
    )


@triton.jit
def copy_yuv(
    images, out, height, width, row, column, mask, SOURCE: tl.constexpr, TARGET: tl.constexpr
):
    """Copy four columns of two rows from NV12 to I420 or back."""
    at = row * width + column
    tl.store(_words(out + at), tl.load(_words(images + at), mask=mask, other=0), mask=mask)
    at += width
    tl.store(_words(out + at), tl.load(_words(images + at), mask=mask, other=0), mask=mask)
    chroma = _chroma_words(images, height, width, row, column, mask, SOURCE)
    store_chroma(out, height, width, row, column, chroma, mask, TARGET)
