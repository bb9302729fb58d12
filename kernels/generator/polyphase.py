"""A depthwise convolution whose columns are tensors of their own: device functions.

The columns of a strip are cut into groups of W neighbours, and column j of every group makes up
one tensor, (warps, channels of a warp, groups). All of these tensors have one layout, so that the
neighbour of a pixel is the same element of another tensor: a convolution along a row needs no
exchange between threads. Rows are added up one at a time, in sums that wait for the rows below.
"""

import triton
import triton.language as tl


@triton.jit
def relu(x):
    """Return max(x, 0) in the dtype of x, which 0.0 would widen."""
    return tl.maximum(x, tl.full([], 0, x.dtype))


@triton.jit
def multiply_add(x, weight, total):
    """Return x * weight + total, rounded once."""
    return tl.fma(x, tl.broadcast_to(weight, x.shape), total)


@triton.jit
def multiply_add_relu(x, weight, total, ASM: tl.constexpr):
    """Return max(x * weight + total, 0) of float16.

    With ASM it is one instruction for a pair. That also keeps the compiler from making pairs of
    values of different tensors, which costs it more instructions than the arithmetic.
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
def add_taps(taps, row: tl.constexpr, left, middle, right, total):
    """Add row `row` of a 3 x 3 convolution."""
    total = multiply_add(left, taps[3 * row], total)
    total = multiply_add(middle, taps[3 * row + 1], total)
    return multiply_add(right, taps[3 * row + 2], total)


@triton.jit
def add_last_taps(taps, left, middle, right, total, ASM: tl.constexpr):
    """Add the bottom row of a 3 x 3 convolution, and apply ReLU."""
    total = multiply_add(left, taps[6], total)
    total = multiply_add(middle, taps[7], total)
    return multiply_add_relu(right, taps[8], total, ASM)


@triton.jit
def load_taps(taps, channel, E: tl.constexpr):
    """Load nine tensors of the shape of `channel`."""
    found = ()
    for tap in tl.static_range(9):
        found = found + (tl.load(taps + tap * E + channel),)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit
def repeat(tensor, N: tl.constexpr):
    """Return a tuple of N times the same."""
    found = ()
    for _ in tl.static_range(N):
        found = found + (tensor,)  # type: ignore[assignment]  # noqa: RUF005
    return found


@triton.jit
def side_by_side(columns, E: tl.constexpr, P: tl.constexpr, W: tl.constexpr):
    """Join W tensors of P groups to (E, P * W), in the order of the columns in memory."""
    # Each join adds a last dimension, hence the permutation. It also keeps the compiler from
    # dividing the product that reads this among the warps as the one that made it.
    if W == 8:
        first = tl.join(tl.join(columns[0], columns[1]), tl.join(columns[2], columns[3]))
        second = tl.join(tl.join(columns[4], columns[5]), tl.join(columns[6], columns[7]))
        joined = tl.permute(tl.join(first, second), (0, 1, 2, 5, 4, 3))
    else:
        tl.static_assert(W == 4)
        joined = tl.join(tl.join(columns[0], columns[1]), tl.join(columns[2], columns[3]))
        joined = tl.permute(joined, (0, 1, 2, 4, 3))
    return tl.reshape(joined, (E, P * W))
