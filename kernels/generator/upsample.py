"""Bilinear enlargement to twice the size with aligned corners: device functions.

Pixel y of 2h lies at y * (h - 1) / (2h - 1) of the h pixels, as in PyTorch's `interpolate` with
`align_corners=True`. Neighbouring pixels share what they are made of, so a strip loads each pixel
of the smaller image once a row.
"""

import triton
import triton.language as tl


@triton.jit
def place(at, low, high):
    """Return floor(src) and src - floor(src) of pixel `at` of `high`, which may be -1."""
    number = at * (low - 1) + (high - 1)  # not negative
    whole = number // (high - 1)
    return whole - 1, (number - whole * (high - 1)).to(tl.float32) / (high - 1)


@triton.jit
def row_places(y, low, high):
    """Return the two rows that row y is made of, and the share of the second."""
    first, share = place(y, low, high)
    return first, tl.minimum(first + 1, low - 1), share.to(tl.float16)


@triton.jit
def column_places(start, low, high, COLUMNS: tl.constexpr):
    """Return the first column of `low` that the columns from `start` on need, and their weights.

    Column j is a sum of three neighbours from (j - 1) // 2 on, of which one has no weight.

    Args:
        start: (groups,), -1 or more.
        COLUMNS: how many; 10 at most, as `high` may be as small as 16.
    """
    base, _ = place(start, low, high)
    weights = ()
    for j in tl.static_range(COLUMNS):
        whole, share = place(start + j, low, high)
        near = whole - base == (tl.constexpr((j - 1) // 2 if j else 0))  # otherwise one further
        zero = tl.zeros_like(share)
        weight = tl.where(near, 1 - share, zero).to(tl.float16)[:, None]
        middle = tl.where(near, share, 1 - share).to(tl.float16)[:, None]
        far = tl.where(near, zero, share).to(tl.float16)[:, None]
        weights = weights + ((weight, middle, far),)  # noqa: RUF005
    return base, weights


@triton.jit
def between(upper, lower, share):
    """Mix two rows."""
    return upper + share * (lower - upper)


@triton.jit
def mix(near, middle, far, weights):
    """Mix three columns."""
    return near * weights[0] + middle * weights[1] + far * weights[2]
