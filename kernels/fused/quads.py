"""Four pixels of a row at a time, in the 32-bit words that hold them.

Rows must begin at multiples of 4 bytes and be a multiple of 4 pixels wide, so that every word lies
in one row. Levels are int32; words are uint32, the first byte in the lowest bits.
"""

import triton
import triton.language as tl

from .pixel_formats import chroma, chroma_level, luma, luma_level


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
    u0, u1, v0, v1 = chroma_bytes(upper, lower)
    out += height * width
    if FORMAT == "nv12":
        at = out + (row // 2 * width + column)
        tl.store(at.to(tl.pointer_type(tl.uint32)), word_of(u0, v0, u1, v1), mask=mask)
    else:
        at = out + (row // 2 * (width // 2) + column // 2)
        tl.store(at.to(tl.pointer_type(tl.uint16)), (u0 | (u1 << 8)).to(tl.uint16), mask=mask)
        at += height // 2 * (width // 2)
        tl.store(at.to(tl.pointer_type(tl.uint16)), (v0 | (v1 << 8)).to(tl.uint16), mask=mask)
