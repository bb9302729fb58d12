"""Weights of the generator: folded, scaled, checked."""

import copy
from dataclasses import fields

import pytest
import torch

from engine.plans.comparison import measure
from engine.runtime.torch import read_folded
from examples import network_files
from kernels.generator import reference
from kernels.generator.network import FusedGenerator
from kernels.generator.weights import (
    Block,
    convolution_shapes,
    generator_weights,
    scaled,
)
from tests.kernels.generator.rounding import rounded_of

CPU = torch.device("cpu")
SIZES = (1e-6, 1e6)  # of variances


@pytest.fixture(scope="module")
def folded():
    return read_folded(network_files()["generator"], "generator")


def a_block(seed: int, channels: int = 8) -> Block:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=rng)

    wide = 2 * channels
    return Block(
        normal(wide, channels), normal(wide), normal(wide, 3, 3), normal(wide),
        normal(channels, wide), normal(channels), 1, True,
    )  # fmt: skip


def test_a_scaled_block_computes_the_same():
    block = a_block(1)
    block.depthwise[0] *= 1e-5
    block.project[:, 1] *= 3e5
    block.project[:, 2] = 0
    x = torch.randn(2, 5, 6, 8, generator=torch.Generator().manual_seed(2))
    expected, found = reference.block(x, block), reference.block(x, _float(scaled(block)))
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    for weight in (scaled(block).project.abs().amax(0), scaled(block).depthwise.abs().amax((1, 2))):
        live = weight[weight > 0]
        assert len(live) >= 15 and ((live >= 1) & (live < 2)).all()


def _float(block: Block) -> Block:
    values = [getattr(block, field.name) for field in fields(block)]
    return Block(*(v.float() if isinstance(v, torch.Tensor) else v for v in values))


def scale_variances(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Give the norms before each ReLU variances from 1e-6 to 1e6, and let what reads their channels
    undo it, so that the network computes the same."""
    for block in module.modules():
        if type(block).__name__ != "InvertedResidual":
            continue
        for norm, reader in ((block.conv[1], block.conv[3]), (block.conv[4], block.conv[6])):
            low, high = map(torch.tensor, SIZES)
            share = torch.rand(norm.num_features, generator=generator)
            variance = torch.exp(low.log() + share * (high.log() - low.log()))
            factor = ((norm.running_var + norm.eps) / (variance + norm.eps)).sqrt()
            norm.running_var.copy_(variance)
            norm.bias.mul_(factor)
            read = factor if reader.groups == 1 else factor[:, None]
            reader.weight.div_(
                read[None, :, None, None] if reader.groups == 1 else read[..., None, None]
            )


def test_any_variances(module, samples):
    """The same network with other norms: as exact as with its own, and useless if not scaled."""
    changed = copy.deepcopy(module)
    scale_variances(changed, torch.Generator().manual_seed(3))
    variances = torch.cat([n.running_var for n in changed.modules() if hasattr(n, "running_var")])
    assert variances.min() < 1e-5 and variances.max() > 1e5
    one = [tensor[1:] for tensor in (samples.inputs, samples.audio, samples.expected)]
    assert (changed(*one[:2]) - one[2]).abs().max() < 1e-4  # it computes the same in float32
    from models.batch_norm import fold_batch_norms

    fold_batch_norms(changed.double())
    convolutions = {
        name: (layer.weight, layer.bias)
        for name, layer in changed.named_modules()
        if isinstance(layer, torch.nn.Conv2d)
    }
    network = FusedGenerator(generator_weights(convolutions), CPU, rounded_of)
    out = network(one[0].half(), one[1].half(), torch.empty(1, 3, 320, 320))
    found = measure("generator", [out.numpy()], [one[2].numpy()])
    assert found.psnr >= 55 and found.largest <= 3e-2, found


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("name", "part"), [("up5.conv.double_conv.0.conv.3", 0), ("outc.conv", 1)])
def test_weights_that_are_not_finite(folded, name, part, bad):
    broken = dict(folded)
    broken[name] = tuple(tensor.clone() for tensor in broken[name])
    broken[name][part].view(-1)[1] = bad
    with pytest.raises(ValueError, match=f"^{name} has weights that are not finite") as caught:
        generator_weights(broken)
    assert "\n" not in str(caught.value)


def test_weights_that_float16_cannot_hold(folded):
    broken = dict(folded)
    weight, bias = broken["audio_model.conv3"]
    broken["audio_model.conv3"] = weight * 1e6, bias
    with pytest.raises(ValueError, match="^audio_model.conv3 has a weight of .*; float16 ends at"):
        generator_weights(broken)


def test_missing_and_wrong_convolutions(folded):
    assert set(folded) == set(convolution_shapes())
    broken = dict(folded)
    del broken["fuse_conv.1.double_conv.0.conv.6"]
    with pytest.raises(ValueError, match="^there is no convolution fuse_conv.1.double_conv.0.conv"):
        generator_weights(broken)
    broken = folded | {"inc.inconv.0.conv.0": folded["inc.inconv.0.conv.3"]}
    with pytest.raises(ValueError, match=r"^inc.inconv.0.conv.0 has a weight of \(12, 1, 3, 3\)"):
        generator_weights(broken)
