"""The faster interpreter still promotes types, and refuses integers that a GPU would let overflow."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def combine(a, b, out, HOW: tl.constexpr):
    lane = tl.arange(0, 4)
    x, y = tl.load(a + lane), tl.load(b + lane)
    tl.store(out + lane, x + y if HOW == "add" else (x - y if HOW == "sub" else x * y))


EDGES = {
    (torch.uint8, "add"): ((254, 1), (255, 1)),
    (torch.uint8, "sub"): ((1, 1), (0, 1)),
    (torch.uint8, "mul"): ((85, 3), (86, 3)),
    (torch.int32, "add"): ((2**31 - 2, 1), (2**31 - 1, 1)),
    (torch.int32, "sub"): ((1 - 2**31, 1), (-(2**31), 1)),
    (torch.int32, "mul"): ((-(2**30), 2), (2**30, 2)),
}


@pytest.mark.parametrize(("dtype", "how"), EDGES, ids=str)
def test_overflow(dtype, how):
    """The last of four lanes is at the edge of its type, or one step over it."""
    (x, y), over = EDGES[dtype, how]

    def run(last: tuple[int, int]) -> torch.Tensor:
        a, b = (torch.tensor([3, 2, 1, value], dtype=dtype) for value in last)
        out = torch.zeros(4, dtype=dtype)
        combine[(1,)](a, b, out, HOW=how)
        return out

    assert run((x, y))[3] == {"add": x + y, "sub": x - y, "mul": x * y}[how]
    with pytest.raises(Exception, match=f"overflow in {how}"):
        run(over)


@triton.jit
def add_as(a, b, out, WANTED: tl.constexpr):
    lane = tl.arange(0, 4)
    total = tl.load(a + lane) + tl.load(b + lane)
    tl.static_assert(total.dtype == WANTED)
    tl.store(out + lane, total)


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (torch.uint8, torch.int32, tl.int32),
        (torch.float16, torch.float32, tl.float32),
        (torch.int32, torch.float16, tl.float16),
        (torch.int32, torch.int64, tl.int64),
    ],
    ids=str,
)
def test_operands_of_two_types_get_one(one, other, wanted):
    """The same as in PyTorch, whichever comes first."""
    a = torch.tensor([200, 3, 100, 255], dtype=one)
    b = torch.tensor([1.3, 300.7, 100, 1], dtype=other)
    for left, right in ((a, b), (b, a)):
        out = torch.zeros(4, dtype=torch.result_type(a, b))
        add_as[(1,)](left, right, out, WANTED=wanted)
        assert torch.equal(out, a + b)
