"""Blocks as one kernel: Triton against PyTorch in float32, with the demo's weights."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import triton.language as tl

from kernels.generator import narrow as kernel
from kernels.generator import narrow_rows
from kernels.generator.narrow import narrow, pack_narrow
from kernels.generator.weights import Block
from kernels.spec import MASK_COLUMNS, MASK_ROWS
from tests.tolerances import F16, F32, TOLERANCES, assert_close

from .conftest import INTERPRETED, crops

BLOCK, HEAD = TOLERANCES["narrow block", F16, "PyTorch"], TOLERANCES["generator", F16, "PyTorch"]
PLANES = TOLERANCES["narrow block of planes", F16, "PyTorch"]
INC, TOP = "inc.inconv.0", "up5.conv.double_conv.1"
DOWN = [f"down1.maxpool_conv.0.double_conv.{half}" for half in (0, 1)]
UP = [f"up{n}.conv.double_conv.{half}" for n in (4, 5) for half in (0, 1)]
Make = Callable[..., torch.Tensor]


@pytest.fixture(autouse=INTERPRETED)
def low_bands(request, monkeypatch) -> None:
    """Make bands of four rows, of which one image of a few rows has several."""
    if "as_launched" not in request.node.name:
        monkeypatch.setattr(kernel, "band_rows", lambda *_: 4)


def run(
    demo: SimpleNamespace, name: str, poisoned: Make, x: torch.Tensor, lower=None,
    read=torch.float16, made=torch.float16,
) -> torch.Tensor:  # fmt: skip
    """Run a block's kernel on planes that lie between guard bands of NaN. Returns planes."""
    block, planar = demo.layers[name], name == INC
    head = demo.head if name == TOP else None
    packed = pack_narrow(
        block, poisoned(1).device, lower=0 if lower is None else lower.shape[1], planar=planar,
        head=head,
    )  # fmt: skip
    n, _, height, width = x.shape
    x = x if planar else x.permute(0, 2, 3, 1)
    x = poisoned(*x.shape, dtype=read).copy_(x)
    if lower is not None:
        lower = lower.permute(0, 2, 3, 1)
        lower = poisoned(*lower.shape, dtype=torch.float16).copy_(lower)
    if head:
        out = poisoned(n, 3, height, width, dtype=made)
        assert narrow(x, packed, out, lower) is out
        return out
    size = n, height // block.stride, width // block.stride, len(block.project)
    out = poisoned(*size, dtype=torch.float16)
    assert narrow(x, packed, out, lower) is out
    return out.permute(0, 3, 1, 2)


# Bands of four rows, the last one of fewer; strips of 64 columns (32 of stride 2), the last one of
# fewer, but of 128.
@pytest.mark.parametrize("name, n, height, width", [
    (DOWN[0], 1, 14, 72), (DOWN[1], 3, 2, 24), (UP[1], 1, 6, 72), (DOWN[0], 3, 4, 16),
])  # fmt: skip
def test_block(demo, poisoned, name, n, height, width):
    x = crops(demo.read[name][0], n, height, width)
    assert_close(run(demo, name, poisoned, x), demo.module.get_submodule(name)(x), BLOCK)


@pytest.mark.parametrize("name, n, height, width", [
    ("up5", 1, 6, 72), ("up5", 1, 2, 128), ("up4", 3, 2, 16),
])  # fmt: skip
def test_enlarged_input(demo, poisoned, name, n, height, width):
    """The smaller image is enlarged as PyTorch does it, up to all edges."""
    small, skip = demo.read[name]
    lower, x = crops(small, n, height // 2, width // 2), crops(skip, n, height, width)
    larger = F.interpolate(lower, scale_factor=2, mode="bilinear", align_corners=True)
    first = f"{name}.conv.double_conv.0"
    expected = demo.module.get_submodule(first)(torch.cat((larger, x), 1))
    assert_close(run(demo, first, poisoned, x, lower), expected, BLOCK)


@pytest.mark.parametrize("made, n, height, width", [(F16, 1, 6, 72), (F32, 3, 2, 24)])
def test_head(demo, poisoned, made, n, height, width):
    x = crops(demo.read[TOP][0], n, height, width)
    expected = torch.sigmoid(demo.module.outc(demo.module.get_submodule(TOP)(x)))
    assert_close(run(demo, TOP, poisoned, x, made=made), expected.to(made), HEAD)


@pytest.mark.skipif(not INTERPRETED, reason="a compiled kernel has its own copy of the mask")
@pytest.mark.parametrize("read, n, height, width", [(F16, 1, 10, 72), (F32, 3, 4, 16)])
def test_planes(demo, poisoned, monkeypatch, read, n, height, width):
    """Only the first three planes are read; the mask has edges on all sides."""
    assert (narrow_rows._MASK_TOP, narrow_rows._MASK_BOTTOM) == MASK_ROWS
    assert (narrow_rows._MASK_LEFT, narrow_rows._MASK_RIGHT) == MASK_COLUMNS
    edges = {"_MASK_TOP": 2, "_MASK_BOTTOM": 7, "_MASK_LEFT": 3, "_MASK_RIGHT": 67}
    for edge, value in edges.items():
        monkeypatch.setattr(narrow_rows, edge, tl.constexpr(value))
    x = crops(demo.read[INC][0][:, :3], n, height, width)
    masked = x.clone()
    masked[:, :, 2:7, 3:67] = 0
    expected = demo.module.get_submodule(INC)(torch.cat((x, masked), 1))
    x = torch.cat((x, torch.full_like(x, torch.nan)), 1)
    assert_close(run(demo, INC, poisoned, x, read=read), expected, PLANES)


@pytest.mark.gpu
def test_planes_of_a_frame(demo, poisoned, device):
    """With the mask as it is, and as launched."""
    x = demo.read[INC][0]
    expected = demo.module.get_submodule(INC)(x.half().float())
    assert_close(run(demo, INC, poisoned, x).cpu(), expected, PLANES)


@pytest.mark.parametrize("name", ["up4", DOWN[0]])
def test_neighbours(demo, poisoned, name):
    """An image is the same, bit for bit, alone and between others, here of NaN; and in other
    bands, as launched."""
    if name == "up4":
        small, skip = demo.read[name]
        block, images = UP[0], (crops(skip, 1, 6, 16), crops(small, 1, 3, 8))
    else:
        block, images = name, (crops(demo.read[name][0], 1, 8, 16),)
    nothing = [torch.full_like(image, torch.nan) for image in images]
    between = [torch.cat(parts) for parts in zip(nothing, images, nothing, strict=True)]
    out = run(demo, block, poisoned, *between)
    assert torch.equal(out[1], run(demo, block, poisoned, *images)[0])
    assert out[1].isfinite().all()


def test_as_launched(demo, poisoned, device):
    """Bands as a GPU gets them; all rows of the image."""
    x = crops(demo.read[UP[1]][0], 1, 18, 16)
    assert_close(run(demo, UP[1], poisoned, x), demo.module.get_submodule(UP[1])(x), BLOCK)


def test_bands_as_launched():
    """A batch of one runs in one round; in a large one, programs make many rows, and the rounds are
    full. Of 264 programs at a time."""
    assert kernel.band_rows(5, 320, 1, 264) == 7  # 5 * 46 programs
    assert kernel.band_rows(25 * 5, 320, 1, 264) >= 20
    assert 25 * 3 * -(-160 // kernel.band_rows(25 * 3, 160, 1, 264)) <= 2 * 264


def test_outside_is_zero(poisoned, device):
    """A pixel beyond the edge counts as 0, not as the expanded value of a 0; all taps differ."""
    torch.manual_seed(0)
    block = Block(
        torch.zeros(32, 16), torch.ones(32), torch.randn(32, 3, 3), torch.zeros(32),
        torch.eye(16, 32) - torch.eye(16, 32).roll(16, 1), torch.zeros(16),
    )  # fmt: skip
    x = torch.zeros(1, 4, 16, 16, dtype=F16, device=device)
    out = narrow(x, pack_narrow(block, device), poisoned(1, 4, 16, 16, dtype=F16))
    ones = torch.ones(1, 32, 4, 16)
    sums = F.conv2d(ones, block.depthwise[:, None], padding=1, groups=32).relu()
    expected = (sums[:, :16] - sums[:, 16:]).permute(0, 2, 3, 1)
    assert_close(out.cpu(), expected, BLOCK)


def made(channels: int = 32, outputs: int = 32, stride: int = 1, residual: bool = False) -> Block:
    expanded = 2 * channels
    return Block(
        torch.zeros(expanded, channels), torch.zeros(expanded), torch.zeros(expanded, 3, 3),
        torch.zeros(expanded), torch.zeros(outputs, expanded), torch.zeros(outputs), stride,
        residual,
    )  # fmt: skip


@pytest.mark.parametrize("block, options, error", [
    (made(128), {}, "128 channels"),
    (made(32), {"planar": True}, "32 channels"),
    (made(outputs=24), {}, "makes 24 channels"),
    (made(64), {"lower": 16}, "lower is 16; expected 0 or 32"),
    (made(stride=2), {"lower": 16}, "stride 2"),
    (made(outputs=16, residual=True), {}, "as many channels"),
])  # fmt: skip
def test_refuses_blocks(block, options, error):
    with pytest.raises(ValueError, match=error):
        pack_narrow(block, torch.device("cpu"), **options)


@pytest.mark.parametrize("x, out, lower, error", [
    ((1, 6, 20, 16), (1, 6, 20, 32), (1, 3, 10, 16), "x is 6 x 20"),
    ((1, 5, 16, 16), (1, 5, 16, 32), (1, 2, 8, 16), "x is 5 x 16"),
    ((1, 6, 16, 32), (1, 6, 16, 32), (1, 3, 8, 16), "x has shape"),
    ((1, 6, 16, 16), (1, 3, 8, 32), (1, 3, 8, 16), "out has shape"),
    ((1, 6, 16, 16), (1, 6, 16, 32), (2, 3, 8, 16), "lower has shape"),
    ((1, 6, 16, 16), (1, 6, 16, 32), None, "lower is missing"),
])  # fmt: skip
def test_refuses_tensors(device, x, out, lower, error):
    packed = pack_narrow(made(), device, lower=16)
    x, out, lower = (
        None if shape is None else torch.zeros(shape, dtype=F16, device=device)
        for shape in (x, out, lower)
    )
    with pytest.raises(ValueError, match=error):
        narrow(x, packed, out, lower)


def test_refuses_what_overlaps(device):
    packed, x = pack_narrow(made(), device), torch.zeros(1, 2, 16, 32, dtype=F16, device=device)
    with pytest.raises(ValueError, match="overlaps"):
        narrow(x, packed, x)
    with pytest.raises(ValueError, match="contiguous"):
        narrow(x.expand(2, 2, 16, 32), packed, torch.zeros(2, 2, 16, 32, dtype=F16, device=device))
