"""A depthwise convolution whose columns are tensors of their own: device functions.

The columns of a strip are cut into groups of W neighbours, and column j of every group makes up
one tensor, (channels, groups). All of these tensors have one layout, so that the neighbour of a
pixel is the same element of another tensor: a convolution along a row needs no exchange between
threads. Rows are added up one at a time, in sums that wait for the rows below.
"""

import triton
import triton.language as tl

# An accumulator that starts here is 0 after a ReLU, whatever is added.
OUTSIDE = tl.constexpr(-60000.0)
MOST = tl.constexpr(65504.0)  # of float16


@triton.jit
def relu(x):
    """Return max(x, 0) in the dtype of x; `tl.maximum(x, 0.0)` would widen it."""
    return tl.maximum(x, tl.full([], 0, x.dtype))


@triton.jit
def add_relu(x, weight, total, ASM: tl.constexpr):
    """Return max(x * weight + total, 0) of float16.

    With ASM it is one instruction for a pair, which also keeps the compiler from packing values of
    different tensors into one register.
    """
    if ASM:
        total = tl.inline_asm_elementwise(
            "fma.rn.relu.f16x2 $0, $1, $2, $3;", "=r,r,r,r",
            [x, tl.broadcast_to(weight, x.shape), total],
            dtype=tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        total = relu(x * weight + total)
    return total


@triton.jit
def three(taps, row: tl.constexpr, left, middle, right, total):
    """Add row `row` of the taps of a 3 x 3 convolution."""
    total = left * taps[3 * row] + total
    total = middle * taps[3 * row + 1] + total
    return right * taps[3 * row + 2] + total


@triton.jit
def last_three(taps, left, middle, right, total, ASM: tl.constexpr):
    """Add the bottom row of the taps, and apply ReLU."""
    total = left * taps[6] + total
    total = middle * taps[7] + total
    return add_relu(right, taps[8], total, ASM)


@triton.jit
def load_taps(taps, channel, E: tl.constexpr):
    """Load nine (E, 1) tensors."""
    found = ()
    for tap in tl.static_range(9):
        found = found + (tl.load(taps + tap * E + channel)[:, None],)  # noqa: RUF005
    return found


@triton.jit
def repeat(tensor, N: tl.constexpr):
    """Return a tuple of N times the same."""
    found = ()
    for _ in tl.static_range(N):
        found = found + (tensor,)  # noqa: RUF005
    return found


@triton.jit
def interleave(columns, W: tl.constexpr):
    """Join W (rows, groups) tensors to (rows, groups * W), as the columns lie in memory."""
    # The last join becomes the last dimension, hence the permutation. It also keeps the compiler
    # from giving the product that reads this the warps of the one that made it.
    if W == 8:
        first = tl.join(tl.join(columns[0], columns[1]), tl.join(columns[2], columns[3]))
        second = tl.join(tl.join(columns[4], columns[5]), tl.join(columns[6], columns[7]))
        joined = tl.permute(tl.join(first, second), (0, 1, 4, 3, 2))
    else:
        tl.static_assert(W == 4)
        joined = tl.join(tl.join(columns[0], columns[1]), tl.join(columns[2], columns[3]))
        joined = tl.permute(joined, (0, 1, 3, 2))
    return tl.reshape(joined, (columns[0].shape[0], columns[0].shape[1] * W))
