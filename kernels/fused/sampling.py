"""Sampling positions, filter weights, rounding and boxes, for the stages that resample."""

import triton
import triton.language as tl


@triton.jit
def half_pixel(dst, source, target):
    """Locate target pixels in the source: src = (dst + 0.5) * source / target - 0.5.

    Takes int32 pixels and sizes; returns floor(src) int32 and src - floor(src) float32. The two
    are separated in integer arithmetic, as in `reference`, so that equal weights come out equal.
    The numerator is shifted by one pixel so that it is positive: on a GPU `//` truncates towards 0.
    """
    numerator = (2 * dst + 1) * source + target
    whole = numerator // (2 * target)
    part = (numerator - whole * 2 * target).to(tl.float32)
    return whole - 1, tl.div_rn(part, (part * 0 + 2 * target).to(tl.float32))


@triton.jit
def cubic_weight(x, tap):
    """Return the weight of the pixel at floor(src) - 1 + tap, x = src - floor(src), a = -0.75.

    Keys, Cubic convolution interpolation (1981), multiplied out so that nothing cancels. The
    weights are symmetric, so `tap` may be known only at run time.
    """
    x = tl.where(tap < 2, x, 1 - x)
    near = (1.25 * x - 2.25) * x * x + 1
    far = -0.75 * x * (1 - x) * (1 - x)
    return tl.where((tap == 1) | (tap == 2), near, far)


@triton.jit
def clamp_to_edge(pixel, size):
    """Clamp pixels to 0 .. size - 1, which repeats the edge outside."""
    return tl.minimum(tl.maximum(pixel, 0), size - 1)


@triton.jit
def to_level(value):
    """Round half to even and clip to 0 .. 255, float32 -> float32.

    Adding and subtracting 1.5 * 2**23 leaves no bits for a fraction, so the addition rounds.
    """
    rounded = (value + 12582912.0) - 12582912.0
    return tl.minimum(tl.maximum(rounded, 0.0), 255.0)


@triton.jit
def to_int_level(value):
    """Round half to even and clip to 0 .. 255, float32 -> int32, without a conversion.

    The sum is as in `to_level`; the integer is in its lowest bits.
    """
    clipped = tl.minimum(tl.maximum(value, 0.0), 255.0)
    return (clipped + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def floor_quotient(total, parts):
    """Return total // parts (int64, 0 .. 255, exact) as int32.

    The float32 estimate is off by at most 1, which the remainder corrects.
    """
    quotient = (total.to(tl.float32) / parts.to(tl.float32)).to(tl.int64)
    rest = total - quotient * parts
    return (quotient - (rest < 0) + (rest >= parts)).to(tl.int32)


@triton.jit
def load_box(boxes, frame):
    """Load x0, y0, x1, y1 of a frame's face box as int32."""
    x0, y0 = tl.load(boxes + 4 * frame).to(tl.int32), tl.load(boxes + 4 * frame + 1).to(tl.int32)
    x1, y1 = (
        tl.load(boxes + 4 * frame + 2).to(tl.int32),
        tl.load(boxes + 4 * frame + 3).to(tl.int32),
    )
    return x0, y0, x1, y1


@triton.jit
def to_level_bits(value):
    """Round and clip as `to_level`: the levels, and int32 whose lowest byte is the level."""
    total = tl.minimum(tl.maximum(value, 0.0), 255.0) + 12582912.0
    return total - 12582912.0, total.to(tl.int32, bitcast=True)
