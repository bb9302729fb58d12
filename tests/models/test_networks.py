"""The networks against the published names, and against a second implementation from the tables."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from models import AudioEncoder, Generator
from tests.tolerances import TOLERANCES, assert_close

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("file", "network", "parameters"),
    [
        ("generator_state_dict.json", Generator, 12_186_935),
        ("audio_encoder_state_dict.json", AudioEncoder, 2_812_672),
    ],
)
def test_names_and_shapes_are_the_published_ones(file, network, parameters):
    module = network()
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes == json.loads((HERE / file).read_text())
    assert sum(p.numel() for p in module.parameters()) == parameters


def norm(weights, name, x):
    mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, weights[f"{name}.weight"], weights[f"{name}.bias"])


@torch.inference_mode()
def test_audio_encoder_is_its_table(audio_encoder):
    weights = audio_encoder.state_dict()
    strides = {3: (3, 1), 6: 3, 9: (3, 2)}
    residual = {1, 2, 4, 5, 7, 8, 10}
    mel = 8 * torch.rand(3, 1, 80, 16) - 4
    x = mel
    for i in range(13):
        block = f"{i}.conv_block"
        padding = 0 if i > 10 else 1
        weight, bias = weights[f"{block}.0.weight"], weights[f"{block}.0.bias"]
        y = norm(weights, f"{block}.1", F.conv2d(x, weight, bias, strides.get(i, 1), padding))
        x = F.relu(y + x) if i in residual else F.relu(y)
    assert x.shape == (3, 512, 1, 1)
    assert x.std() > 0.01
    formula = TOLERANCES["audio_encoder", torch.float32, "formula"]
    assert_close(audio_encoder(mel), x[:, :, 0, 0], formula)


@torch.inference_mode()
def test_a_batch_of_one_keeps_its_dimension(audio_encoder):
    assert audio_encoder(torch.zeros(1, 1, 80, 16)).shape == (1, 512)


def inverted(weights, name, x, stride=1, residual=False):
    w = [weights[f"{name}.conv.{i}.weight"] for i in (0, 3, 6)]
    y = F.relu(norm(weights, f"{name}.conv.1", F.conv2d(x, w[0])))
    y = F.conv2d(y, w[1], stride=stride, padding=1, groups=len(w[1]))
    y = F.relu(norm(weights, f"{name}.conv.4", y))
    y = norm(weights, f"{name}.conv.7", F.conv2d(y, w[2]))
    return x + y if residual else y


def double(weights, name, x, stride=1):
    x = inverted(weights, f"{name}.double_conv.0", x, stride)
    return inverted(weights, f"{name}.double_conv.1", x, residual=True)


def plain(weights, conv, bn, x, stride, padding):
    weight, bias = weights[f"audio_model.{conv}.weight"], weights[f"audio_model.{conv}.bias"]
    y = F.conv2d(x, weight, bias, stride, padding)
    return F.relu(norm(weights, f"audio_model.{bn}", y))


def twice_as_large(x):
    """Double the size with aligned corners: output pixel i of 2n is at i (n - 1) / (2n - 1) of the
    input."""
    for dim in (2, 3):
        n = x.shape[dim]
        at = torch.arange(2 * n, dtype=torch.float64) * (n - 1) / (2 * n - 1)
        low = at.floor().long().clamp(max=n - 2)
        part = (at - low).float().reshape((-1, 1) if dim == 2 else (-1,))
        x = x.index_select(dim, low) * (1 - part) + x.index_select(dim, low + 1) * part
    return x


@torch.inference_mode()
def test_generator_is_its_table(generator):
    w = generator.state_dict()
    image, audio = torch.rand(2, 6, 320, 320), torch.rand(2, 32, 16, 16)

    a = inverted(w, "audio_model.conv1", audio)
    a = plain(w, "conv3", "bn3", inverted(w, "audio_model.conv2", a), 1, 1)
    a = plain(w, "conv5", "bn5", inverted(w, "audio_model.conv4", a, residual=True), 2, 3)
    for i in (6, 7):
        a = inverted(w, f"audio_model.conv{i}", a, residual=True)
    assert a.shape == (2, 512, 10, 10)

    path = [inverted(w, "inc.inconv.0", image)]
    for i in range(1, 6):
        path.append(double(w, f"down{i}.maxpool_conv.0", path[-1], stride=2))
    x = torch.cat((path.pop(), a), dim=1)
    for i in range(2):
        x = double(w, f"fuse_conv.{i}", x)
    for i in range(1, 6):
        x = double(w, f"up{i}.conv", torch.cat((twice_as_large(x), path.pop()), dim=1))
    x = torch.sigmoid(F.conv2d(x, w["outc.conv.weight"], w["outc.conv.bias"]))

    assert x.std() > 0.01
    assert_close(generator(image, audio), x, TOLERANCES["generator", torch.float32, "formula"])


@torch.inference_mode()
def test_sizes_inside_the_generator(generator):
    sizes = {}
    hooks = [
        module.register_forward_hook(
            lambda module, args, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
        for name, module in generator.named_children()
    ]
    generator(torch.rand(1, 6, 320, 320), torch.rand(1, 32, 16, 16))
    for hook in hooks:
        hook.remove()
    assert sizes == {
        "inc": (32, 320, 320),
        "down1": (32, 160, 160),
        "down2": (64, 80, 80),
        "down3": (128, 40, 40),
        "down4": (256, 20, 20),
        "down5": (512, 10, 10),
        "audio_model": (512, 10, 10),
        "fuse_conv": (256, 10, 10),
        "up1": (128, 20, 20),
        "up2": (64, 40, 40),
        "up3": (32, 80, 80),
        "up4": (32, 160, 160),
        "up5": (16, 320, 320),
        "outc": (3, 320, 320),
    }


@torch.inference_mode()
def test_output_stays_in_range_for_extreme_input(generator):
    output = generator(1e3 * torch.randn(1, 6, 320, 320), 1e3 * torch.randn(1, 32, 16, 16))
    assert output.min() >= 0 and output.max() <= 1 and output.max() - output.min() > 0.5
