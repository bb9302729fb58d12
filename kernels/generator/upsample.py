"""Bilinear enlargement to twice the size with aligned corners: device functions.

Pixel y of 2 h lies at y * (h - 1) / (2 h - 1) of the h pixels, as in PyTorch's `interpolate` with
`align_corners=True`. Neighbouring columns share what they are made of, so that each column of the
smaller image is loaded once for all of them.
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
def column_place(start, low, high):
    """Return floor(src) and src - floor(src) of the first column of each group, (groups, 1)."""
    first, share = place(start, low, high)
    return first, share.to(tl.float16)[:, None]


@triton.jit
def step_to(share, j: tl.constexpr, low: tl.constexpr, high: tl.constexpr):
    """Return how far column j of a group lies from column (j + 1) // 2 of the smaller image, where
    `column_place` is column 0; and column 0 from column 1.

    It is at most one column for j up to 9 if `high` is 16 or more, because (low - 1) / (high - 1)
    is little less than a half.
    """
    return share + (j * (low - 1) / (high - 1) - ((j + 1) // 2 if j else 1))


@triton.jit
def between(upper, lower, share):
    """Mix two rows."""
    return tl.fma(lower - upper, tl.broadcast_to(share, upper.shape), upper)


@triton.jit
def move(column, behind, ahead, step):
    """Move from a column by a step: back by that of what lies behind, or on of what lies ahead.

    Args:
        behind: the column less the one before.
        ahead: the next column less this one.
        step: from -1 to 1.
    """
    zero = tl.full([], 0, step.dtype)
    back, on = tl.minimum(step, zero), tl.maximum(step, zero)
    column = tl.fma(behind, tl.broadcast_to(back, column.shape), column)
    return tl.fma(ahead, tl.broadcast_to(on, column.shape), column)


@triton.jit
def load_between(
    image, upper, lower, share, first, number: tl.constexpr,
    C: tl.constexpr, WIDTH: tl.constexpr, CLAMP: tl.constexpr,
):  # fmt: skip
    """Load column first + number of (WIDTH, C) rows that start at `upper` and `lower`, mixed.

    Returns:
        (groups, C).
    """
    column = first + number
    if number == 0:
        column = tl.maximum(column, 0)
    if CLAMP:
        column = tl.minimum(column, WIDTH - 1)
    at = column[:, None] * C + tl.arange(0, C)[None, :]
    return between(tl.load(image + upper + at), tl.load(image + lower + at), share)
