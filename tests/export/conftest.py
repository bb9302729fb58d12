"""Fixtures: networks with the statistics of trained ones, their checkpoints, and an export of
each."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from export import Report, export
from models import AudioEncoder, Generator, checkpoint

ROOT = Path(__file__).parents[2]


def as_if_trained(network: nn.Module, make_inputs, seed: int) -> nn.Module:
    """Set norm statistics half-way between a new network's and the data's, with varying scales.

    With the data's statistics, a network of random weights amplifies rounding errors a
    thousandfold: float32 then differs from float64 by 1e-4, unlike in a trained network.
    """
    torch.manual_seed(seed)
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.momentum = 0.3
    with torch.no_grad():
        for _ in range(2):
            network(*make_inputs())
    return network.eval()


@dataclass
class Exported:
    network: nn.Module
    checkpoint: Path
    file: Path
    report: Report


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="session")
def generator_checkpoint(folder):
    torch.manual_seed(5)
    network = Generator()
    # Logits with the spread of a real picture, because the tolerance is on pixels.
    network.outc.conv.weight.data *= 4
    network = as_if_trained(
        network, lambda: (torch.rand(2, 6, 320, 320), torch.randn(2, 32, 16, 16).relu()), 5
    )
    checkpoint.save(network, folder / "generator.safetensors")
    return network, folder / "generator.safetensors"


@pytest.fixture(scope="session")
def audio_encoder_checkpoint(folder):
    torch.manual_seed(6)
    network = as_if_trained(AudioEncoder(), lambda: (8 * torch.rand(16, 1, 80, 16) - 4,), 6)
    torch.save({"model": network.state_dict()}, folder / "audio_encoder.pth")
    return network, folder / "audio_encoder.pth"


def _export(kind, source, folder, precision):
    network, path = source
    file = folder / f"{kind}_{precision}.onnx"
    report = export(kind, path, file, precision=precision, max_batch=8)
    return Exported(network, path, file, report)


@pytest.fixture(scope="session")
def generator_fp16(generator_checkpoint, folder):
    return _export("generator", generator_checkpoint, folder, "fp16")


@pytest.fixture(scope="session")
def generator_fp32(generator_checkpoint, folder):
    return _export("generator", generator_checkpoint, folder, "fp32")


@pytest.fixture(scope="session")
def audio_encoder_fp16(audio_encoder_checkpoint, folder):
    return _export("audio_encoder", audio_encoder_checkpoint, folder, "fp16")


@pytest.fixture(scope="session")
def audio_encoder_fp32(audio_encoder_checkpoint, folder):
    return _export("audio_encoder", audio_encoder_checkpoint, folder, "fp32")


@pytest.fixture(params=["generator", "audio_encoder"])
def kind(request):
    return request.param


@pytest.fixture(params=["fp16", "fp32"])
def exported(request, kind):
    return request.getfixturevalue(f"{kind}_{request.param}")


@pytest.fixture(scope="session")
def command():
    def run(*arguments):
        line = [sys.executable, "-m", "export", *map(str, arguments)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)

    return run
