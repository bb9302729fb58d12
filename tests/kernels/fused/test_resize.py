"""resize, by the instructions that a GPU gets.

The interpreter knows none of them, so they are written down here, as the PTX ISA defines them.
"""

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle, _get_np_dtype

import kernels
from kernels import reference
from kernels.fused import instructions
from kernels.fused import resize as quads
from kernels.fused.resize_plan import linear_plan, reciprocal

from .test_images import check_resized

pytestmark = pytest.mark.skipif(
    not kernels.dispatch._interpreted, reason="a GPU has the instructions"
)


def prmt(low, high, selector):
    """Byte permute: each of the lowest four nibbles chooses one of the eight bytes."""
    eight = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    result = np.zeros_like(low)
    for byte in range(4):
        nibble = (selector >> (4 * byte)) & 15
        assert (nibble < 8).all()  # the highest bit would spread the byte's sign
        found = (eight >> (8 * nibble).astype(np.uint64)) & np.uint64(255)
        result |= found.astype(np.uint32) << np.uint32(8 * byte)
    return result


def shf_r_wrap(low, high, shift):
    """Funnel shift to the right, by 0 to 31 bits: the lower half."""
    eight = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return (eight >> (shift & 31).astype(np.uint64)).astype(np.uint32)


def dp2a(first):
    """Dot product of two 16-bit halves and two bytes, from byte `first` on, accumulated."""

    def multiply(halves, word, total):
        pair = [(word >> np.uint32(8 * (first + byte))) & 255 for byte in range(2)]
        return (total + (halves & 0xFFFF) * pair[0] + (halves >> 16) * pair[1]).astype(np.uint32)

    return multiply


def fma_rn(x, y, z):
    """Fused multiply-add, rounded to the nearest: x * y is exact in float64."""
    return (x.astype(np.float64) * y + z).astype(np.float32)


def fma_rz(x, y, z):
    """Fused multiply-add, rounded towards zero."""
    rounded, exact = fma_rn(x, y, z), x.astype(np.float64) * y + z
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(0)), rounded)


INSTRUCTIONS = {
    "prmt.b32": prmt,
    "shf.r.wrap.b32": shf_r_wrap,
    "dp2a.lo.u32.u32": dp2a(0),
    "dp2a.hi.u32.u32": dp2a(2),
    "fma.rn.f32": fma_rn,
    "fma.rz.f32": fma_rz,
}


@pytest.fixture
def addresses(monkeypatch) -> list[np.ndarray]:
    """Let the interpreter execute instructions. Returns the addresses of words that it loads."""
    loaded = []
    load = interpreter.InterpreterBuilder.create_masked_load

    def create_inline_asm(self, asm, constraints, values, types, is_pure, pack):
        name, operands = asm.split(" ", 1)
        assert operands == "$0, $1, $2, $3;" and constraints == "=r,r,r,r" and pack == 1
        result = INSTRUCTIONS[name](*(np.atleast_1d(value.data) for value in values))
        handle = TensorHandle(
            np.ascontiguousarray(result).view(_get_np_dtype(types[0])), types[0].scalar
        )
        return type("Call", (), {"get_result": lambda self, number: handle})()

    def create_fma(self, x, y, z):
        return TensorHandle(fma_rn(x.data, y.data, z.data), z.dtype.scalar)

    def create_masked_load(self, pointers, mask, *others):
        loaded.append(pointers.data[mask.data.astype(bool)])
        return load(self, pointers, mask, *others)

    builder = interpreter.InterpreterBuilder
    monkeypatch.setattr(builder, "create_inline_asm", create_inline_asm)
    monkeypatch.setattr(builder, "create_fma", create_fma)
    monkeypatch.setattr(builder, "create_masked_load", create_masked_load)
    monkeypatch.setattr(instructions, "INSTRUCTIONS", True)
    return loaded


# Windows of 4 to 8 pixels; all channels; rows that are words, and others; more than one program;
# lines that no row uses, one and more at a time.
CASES = [
    ((3, 20), (7, 64), 3), ((9, 40), (11, 48), 3), ((9, 51), (4, 44), 3), ((2, 52), (3, 36), 3),
    ((4, 64), (4, 36), 3), ((3, 57), (4, 40), 1), ((3, 60), (2, 44), 2), ((5, 17), (6, 140), 4),
    ((90, 16), (11, 24), 3), ((40, 48), (9, 24), 1),
]  # fmt: skip


def check(images: torch.Tensor, target: tuple[int, int], mode: str) -> None:
    got = kernels.resize(images, target, mode=mode)
    want = reference.resize(images, mode, torch.empty_like(got))
    check_resized(images, got, want, mode)


def pictures(source: tuple[int, int], channels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(source[1])
    shape = (2, *source, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    images[0, :, : source[1] // 2] = 255
    return images


@pytest.mark.parametrize("mode", ["bilinear", "direct"])
@pytest.mark.parametrize(("source", "target", "channels"), CASES)
def test_instructions(addresses, mode, source, target, channels):
    images = pictures(source, channels)
    check(images, target, mode)
    # Words that hold a byte of an image, and no others.
    first = images.data_ptr() // 4 * 4
    last = (images.data_ptr() + images.numel() - 1) // 4 * 4
    loaded = np.concatenate(addresses)
    assert loaded.min() >= first and loaded.max() <= last and (loaded % 4 == 0).all()


@pytest.mark.parametrize(
    ("source", "target", "channels"), [CASES[0], CASES[3], CASES[7], CASES[8], CASES[9]]
)
def test_four_taps(addresses, source, target, channels):
    images = pictures(source, channels)
    check(images, target, "bicubic")
    last = (images.data_ptr() + images.numel() - 1) // 4 * 4 + 3
    loaded = np.concatenate(addresses)
    assert loaded.min() >= images.data_ptr() // 4 * 4 and loaded.max() <= last


@pytest.mark.parametrize(
    ("mode", "source", "target"),
    [
        ("bilinear", (9, 40), (4, 44)), ("direct", (90, 16), (11, 24)),
        ("bicubic", (90, 16), (11, 24)), ("bicubic", (40, 16), (9, 24)),
    ],
)  # fmt: skip
def test_rows_that_nothing_uses_are_not_read(addresses, mode, source, target):
    images = pictures(source, 3)[:1].contiguous()
    kernels.resize(images, target, mode=mode)
    step = source[0] / target[0]
    start, before, after = (0, 0, 1) if mode == "direct" else (step / 2 - 0.5, 0, 1)
    if mode == "bicubic":
        before, after = 1, 2
    tops = [math.floor(start + step * row) for row in range(target[0])]
    used = {row for top in tops for row in range(top - before, top + after + 1)}
    used &= set(range(source[0]))
    words = np.unique(np.concatenate(addresses))
    counts = Counter((words - images.data_ptr()) // (source[1] * 3))
    # The last window of a row may reach into the next one, but not over half of it.
    read = {row for row, count in counts.items() if count > source[1] * 3 // 8}
    assert read == used and len(used) < source[0]


@pytest.mark.parametrize(("source", "target", "channels"), [CASES[1], CASES[4]])
def test_large_sums(addresses, monkeypatch, source, target, channels):
    """What has no plan for `resize_linear`."""
    monkeypatch.setattr(quads, "linear_plan", lambda *_: None)
    check(pictures(source, channels), target, "direct")


def test_fine_weights(addresses):
    """Every level is that of float64, except where that is within 1e-4 of a tie."""
    images = pictures((50, 73), 3)
    planes = images.permute(0, 3, 1, 2).double()
    exact = torch.nn.functional.interpolate(planes, (71, 128), mode="bilinear")
    got = kernels.resize(images, (71, 128)).permute(0, 3, 1, 2)
    assert ((exact - got).abs() < 0.5 + 1e-4).all()


@given(*[st.integers(1, 8192)] * 3, st.integers(4, 8192))
@example(182, 328, 182, 328)  # sums nearly as large as they may be
@example(1, 181, 1, 181)
@example(8, 8, 8, 8)
def test_direct_is_exact(old_height, new_height, old_width, new_width):
    """A sum times the reciprocal, rounded towards zero, is the level for every sum."""
    plan = linear_plan(1, (old_height, old_width), (new_height, new_width), "direct")
    assume(plan is not None)
    start = plan.start - 0x4B000000 + 2**23
    share, begin = (Fraction(float(np.float32(number))) for number in (plan.share, plan.begin))
    assert begin == plan.begin
    for level in range(256):
        lowest = level * plan.total
        highest = lowest + plan.total - 1 if level < 255 else lowest
        for value in (start + lowest, start + highest):
            assert value <= 2**24 and math.floor(value * share + begin) == 2**23 + level


def test_row_weights_are_exact_enough(addresses):
    """Of 15 rows with sums as large as these, a weight that is rounded twice costs a level."""
    images = torch.full((1, 14, 1025, 1), 232, dtype=torch.uint8)
    images[:, 3] = 2
    check(images, (15, 2048), "direct")
    assert (kernels.resize(images, (15, 2048), mode="direct")[:, 3] == 48).all()  # 232 - 230 * 0.8
    assert linear_plan(1, (14, 1025), (15, 1024), "direct") is not None  # sums half as large


@given(st.integers(1, kernels.MAX_SIDE))
@example(15)
@example(8163)
def test_values_between_lines_are_exact(new_height):
    """A weight moves no value by half, as float32 has it, between the lines that differ most."""
    most = 2**15 // new_height  # parts of a column, so that numbers are small enough
    plans = [
        linear_plan(1, (1, 4), (new_height, 4 * parts), "direct") for parts in (most, most // 2)
    ]
    assert plans[1] is not None
    parts = np.arange(new_height)
    weights = parts.astype(np.float32) * np.float32(reciprocal(new_height)[0])
    for plan in filter(None, plans):
        # A sum is a multiple of the parts: this is exact in float64.
        errors = (weights.astype(np.float64) * new_height - parts) * 255 * plan.columns.parts
        assert np.abs(errors).max() < 0.5
