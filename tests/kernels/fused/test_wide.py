"""Blocks as two kernels, and dense convolutions: Triton against PyTorch, with the demo's weights."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from kernels.generator import dense as dense_kernels
from kernels.generator import product as products
from kernels.generator import wide
from kernels.generator.dense import dense, pack_dense
from kernels.generator.tiles import Tile, choose
from kernels.generator.wide import depthwise_project, expand, pack_wide
from tests.tolerances import F16, TOLERANCES, assert_close

from .conftest import INTERPRETED, crops

BLOCK, DENSE, ITSELF = (
    TOLERANCES["wide block", F16, "PyTorch"],
    TOLERANCES["dense convolution", F16, "PyTorch"],
    TOLERANCES["wide block", F16, "itself"],
)
# Of models.Generator: names of its modules, and the size of the crop of what they read in it.
AUDIO = [f"audio_model.conv{number}" for number in (1, 2, 4, 6, 7)]
FUSE = [f"fuse_conv.{pair}.double_conv.{half}" for pair in (0, 1) for half in (0, 1)]
DOWN = [f"down{n}.maxpool_conv.0.double_conv.{half}" for n in (2, 3, 4, 5) for half in (0, 1)]
UP = [f"up{n}.conv.double_conv.{half}" for n in (1, 2, 3) for half in (0, 1)]
Make = Callable[..., torch.Tensor]


@pytest.fixture(autouse=INTERPRETED)
def large_tiles(request, monkeypatch) -> None:
    """Launch fewer and larger programs, see `coarse_tiles`: 64 pixels, and half of the channels."""
    if "as_launched" in request.node.name:
        return
    coarse = tuple(Tile(64, channels, 512, 4, 1) for channels in (1024, 512, 256, 128, 64, 32, 16))
    for module, name in (
        (products, "TILES"), (wide, "PROJECT_TILES"), (dense_kernels, "DENSE_TILES"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, coarse)

    def halves(tiles, pixels, channels, *others):
        fitting = [tile for tile in tiles if channels % (2 * tile.channels) == 0]
        return fitting[0] if tiles is coarse else choose(tiles, pixels, channels, *others)

    for module in (products, wide, dense_kernels):
        monkeypatch.setattr(module, "choose", halves)
    monkeypatch.setattr(wide, "CHANNELS", 512)


def in_memory(planes: torch.Tensor, poisoned: Make) -> torch.Tensor:
    """Copy (n, c, h, w) to (n, h, w, c) float16 between guard bands, which are NaN."""
    n, channels, height, width = planes.shape
    return poisoned(n, height, width, channels, dtype=torch.float16).copy_(
        planes.permute(0, 2, 3, 1)
    )


def run(block, poisoned: Make, device, x, lower=None, beside=None) -> torch.Tensor:
    """Run a block's kernels on planes."""
    packed = pack_wide(
        block, device, lower=0 if lower is None else lower.shape[1],
        beside=0 if beside is None else beside.shape[1],
    )  # fmt: skip
    x, lower, beside = (None if p is None else in_memory(p, poisoned) for p in (x, lower, beside))
    n, height, width, _ = x.shape
    down, across = -(-height // block.stride), -(-width // block.stride)
    expanded, convolved = (
        poisoned(n, *size, len(block.expand), dtype=torch.float16)
        for size in ((height, width), (down, across))
    )
    out = poisoned(n, down, across, len(block.project), dtype=torch.float16)
    assert expand(x, packed, expanded, lower, beside) is expanded
    residual = x if block.residual else None
    assert depthwise_project(expanded, packed, out, residual, convolved) is out
    assert convolved.isnan().all() != packed.separate  # written if it is needed
    return out.permute(0, 3, 1, 2)


# Odd sides, so that patches of 2 x 2 reach over the edges; in an enlarged image sides are even.
@pytest.mark.parametrize("name", [*AUDIO, *FUSE, *DOWN, *UP])
def test_block(demo, device, poisoned, name):
    lower = beside = None
    up, first = name.split(".")[0], name.endswith(".0")
    if up.startswith("up") and first:
        small, skip = demo.read[up]
        lower, x = crops(small, 3, 3, 4), crops(skip, 3, 6, 8)
        larger = F.interpolate(lower, scale_factor=2, mode="bilinear", align_corners=True)
        whole = torch.cat((larger, x), dim=1)
    else:
        whole = x = crops(*demo.read[name], 3, 7, 5)
        if name == FUSE[0]:
            x, beside = whole[:, :512], whole[:, 512:]
    want = demo.module.get_submodule(name)(whole)
    got = run(demo.layers[name], poisoned, device, x, lower, beside)
    assert_close(got, want, BLOCK)


@pytest.mark.parametrize("name", ["audio_model.conv3", "audio_model.conv5"])
def test_dense(demo, device, poisoned, name):
    x = crops(*demo.read[name], 3, 7, 5)
    number = name[-1]
    norm = demo.module.get_submodule(f"audio_model.bn{number}")
    want = norm(demo.module.get_submodule(name)(x)).relu()
    out = poisoned(3, *want.shape[2:], want.shape[1], dtype=torch.float16)
    packed = pack_dense(demo.layers[name], device)
    assert dense(in_memory(x, poisoned), packed, out) is out
    assert_close(out.permute(0, 3, 1, 2), want, DENSE)


SMALL = DOWN[0]  # 32 -> 64 channels, stride 2


@pytest.mark.parametrize("tile", wide.PROJECT_TILES, ids=str)
def test_project_tiles_as_launched(demo, device, poisoned, monkeypatch, tile):
    monkeypatch.setattr(wide, "PROJECT_TILES", (tile,))
    name = DOWN[2] if tile.channels == 128 else SMALL  # 128 output channels
    x = crops(*demo.read[name], 3, 9, 11)
    want = demo.module.get_submodule(name)(x)
    assert_close(run(demo.layers[name], poisoned, device, x), want, BLOCK)


@pytest.mark.parametrize("tile", products.TILES, ids=str)
def test_product_tiles_as_launched(demo, device, poisoned, monkeypatch, tile):
    """Of 128 to 256 channels, with an image beside or a smaller one before."""
    monkeypatch.setattr(products, "TILES", (tile,))
    block = demo.layers[DOWN[5]]  # made of 256 channels
    for kind in ("beside", "lower"):
        x, other = torch.rand(2, 3 * 32, 4, 6).half(), torch.rand(2, 160, 4, 6).half()
        if kind == "lower":
            other = other[:, :, :2, :3]
            larger = F.interpolate(
                other.float(), scale_factor=2, mode="bilinear", align_corners=True
            )
            whole = torch.cat((larger, x.float()), dim=1)
        else:
            whole = torch.cat((x, other), dim=1).float()
        want = F.conv2d(whole, block.expand[:, :, None, None], block.expand_bias).relu()
        out = poisoned(2, 4, 6, 512, dtype=torch.float16)
        packed = pack_wide(block, device, **{kind: 160})
        expand(in_memory(x, poisoned), packed, out, **{kind: in_memory(other, poisoned)})
        assert_close(out.permute(0, 3, 1, 2), want, BLOCK)


@pytest.mark.parametrize("tile", dense_kernels.DENSE_TILES[1:], ids=str)
def test_dense_tiles_as_launched(device, poisoned, monkeypatch, tile):
    from kernels.generator.weights import Dense

    monkeypatch.setattr(dense_kernels, "DENSE_TILES", (tile,))
    torch.manual_seed(0)
    weights = Dense(torch.randn(64, 128, 3, 3) / 34, torch.randn(64), 2, 3)
    x = torch.rand(2, 128, 5, 8).half().float()
    want = F.conv2d(x, weights.weight, weights.bias, 2, 3).relu()
    out = poisoned(2, *want.shape[2:], 64, dtype=torch.float16)
    dense(in_memory(x, poisoned), pack_dense(weights, device), out)
    assert_close(out.permute(0, 3, 1, 2), want, DENSE)


@pytest.mark.parametrize("name", [SMALL, FUSE[3]])  # one kernel behind the expand, and two
def test_neighbours_in_a_batch_change_nothing(demo, device, poisoned, name):
    block = demo.layers[name]
    x = crops(*demo.read[name], 5, 7, 5)
    together = run(block, poisoned, device, x)
    for i in (0, 4):
        assert_close(together[i : i + 1], run(block, poisoned, device, x[i : i + 1]), ITSELF)
    spoilt = x.clone()
    spoilt[[0, 2, 4]] = float("nan")
    assert torch.equal(run(block, poisoned, device, spoilt)[[1, 3]], together[[1, 3]])


def test_channels_that_do_not_fit_as_launched(demo):
    block = demo.layers[SMALL]
    with pytest.raises(
        ValueError, match="the block has 8 lower channels; expected a multiple of 32"
    ):
        pack_wide(block, torch.device("cpu"), lower=8)
    with pytest.raises(ValueError, match="the block has 0 input channels"):
        pack_wide(block, torch.device("cpu"), beside=32)
    weights = demo.layers["audio_model.conv3"]
    weights = type(weights)(weights.weight[:, :40], weights.bias)
    with pytest.raises(ValueError, match="the convolution has 40 input channels"):
        pack_dense(weights, torch.device("cpu"))


@pytest.mark.parametrize("pixels, channels, expected", [
    (2500, 64, 1), (160_000, 128, 132), (100, 512, 16),
])  # fmt: skip
def test_tiles_fill_the_gpu_as_launched(pixels, channels, expected):
    """Whatever the size, a launch has programs for most multiprocessors, or the smallest tiles."""
    tile = choose(products.TILES, pixels, channels, 256, products.OVERHEAD, 132)
    assert channels % tile.channels == 0
    assert tile.programs(pixels, channels) >= expected
    assert tile.programs(pixels, channels) * tile.pixels * tile.channels >= pixels * channels
