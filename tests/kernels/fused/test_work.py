"""The work that the models of kernels assume, counted while the interpreter runs them."""

from collections import Counter

import pytest
import torch
from triton.runtime import interpreter

import kernels
from kernels.fused import face_input
from kernels.fused.color import color_work
from kernels.fused.composite_work import composite_work
from kernels.fused.face_input import face_input_work
from kernels.fused.resize_work import resize_work
from kernels.generator import narrow as narrow_kernel
from kernels.generator.narrow import narrow, narrow_work, pack_narrow
from kernels.generator.weights import Block
from kernels.spec import CROP_SIZE, ROI_SIZE

pytestmark = pytest.mark.skipif(
    not kernels.dispatch._interpreted, reason="calls are counted in the interpreter"
)


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Count the calls of each function of a kernel, and the programs of the kernel itself."""
    counted: Counter = Counter()
    call, execute = interpreter.InterpretedFunction.__call__, interpreter.GridExecutor.__call__

    def counting_call(self, *arguments, **options):
        counted[self.fn.__name__] += 1
        return call(self, *arguments, **options)

    def counting_execute(self, *arguments, **options):
        x, y, z = (*self.grid, 1, 1)[:3]
        counted[self.fn.__name__] += x * y * z
        return execute(self, *arguments, **options)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", counting_call)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counting_execute)
    return counted


@pytest.mark.parametrize("mode, format, box", [
    ("crop", "rgb", (9, 11, 68, 70)),
    ("crop", "nv12", (17, 13, 60, 56)),
    ("direct", "bgr", (8, 10, 51, 53)),
])  # fmt: skip
def test_composite(calls, mode, format, box):
    """Tiles within the generated part and at its edges; as the kernel itself counts them."""
    n, height, width = 2, 80, 96
    frames = torch.zeros(n, height, width, 3, dtype=torch.uint8)
    boxes = torch.tensor([box] * n, dtype=torch.int32)
    crops = torch.zeros(n, CROP_SIZE, CROP_SIZE, 3, dtype=torch.uint8)
    generated = torch.zeros(n, 3, ROI_SIZE, ROI_SIZE)
    kernels.composite(
        frames, boxes, torch.arange(n), crops, generated, mode=mode, format=format
    )  # fmt: skip
    work = composite_work(n, height, width, box, mode, format, 4)
    assert {part: calls[part] for part in work.runs} == work.runs


def test_face_input(calls, monkeypatch):
    """Tiles that do not divide the crop."""
    box = 9, 11, 68, 70
    monkeypatch.setattr(face_input, "tile_rows", lambda n: 50)
    frames = torch.zeros(1, 80, 96, 3, dtype=torch.uint8)
    boxes = torch.tensor([box], dtype=torch.int32)
    kernels.face_input(frames, boxes, torch.zeros(1, dtype=torch.int64))
    work = face_input_work(1, box, 4)
    assert {part: calls[part] for part in work.runs} == work.runs


@pytest.mark.parametrize("source, target", [("rgb", "bgr"), ("nv12", "rgb")])
def test_convert_color(calls, source, target):
    n, height, width = 2, 66, 80
    rows = height * 3 // 2 if source == "nv12" else height
    shape = (n, rows, width) if source == "nv12" else (n, rows, width, 3)
    kernels.convert_color(torch.zeros(shape, dtype=torch.uint8), source, target)
    work = color_work(n, height, width, source, target)
    assert {part: calls[part] for part in work.runs} == work.runs


@pytest.mark.parametrize("stride, lower", [(1, 16), (2, 0)])
def test_narrow(calls, monkeypatch, stride, lower):
    """Bands and strips that do not divide the image."""
    monkeypatch.setattr(narrow_kernel, "band_rows", lambda *_: 6)
    block = Block(
        torch.zeros(64, 32), torch.zeros(64), torch.zeros(64, 3, 3), torch.zeros(64),
        torch.zeros(16, 64), torch.zeros(16), stride,
    )  # fmt: skip
    packed = pack_narrow(block, torch.device("cpu"), lower=lower)
    side, made = 16, 16 // stride
    x = torch.zeros(2, side, side, 32 - lower, dtype=torch.float16)
    small = torch.zeros(2, side // 2, side // 2, lower, dtype=torch.float16) if lower else None
    narrow(x, packed, torch.zeros(2, made, made, 16, dtype=torch.float16), small)
    work = narrow_work(2, side, packed, 100)
    assert {part: calls[part] for part in work.runs} == work.runs
    read = 2 * side**2 * (32 - lower) + 2 * (side // 2) ** 2 * lower
    assert work.moved == 2 * (read + 2 * made**2 * 16)


@pytest.mark.parametrize("mode, old, new", [
    ("bilinear", (9, 20), (13, 36)),
    ("bicubic", (40, 28), (11, 20)),
    ("direct", (8, 22), (16, 24)),
])  # fmt: skip
def test_resize(calls, mode, old, new):
    """One tile, of two images: enlarged, made smaller than its lines, rows that are not words."""
    kernels.resize(torch.zeros(2, *old, 3, dtype=torch.uint8), new, mode=mode)
    work = resize_work(2, old, new, mode, 3)
    assert {part: calls[part] for part in work.runs} == work.runs
