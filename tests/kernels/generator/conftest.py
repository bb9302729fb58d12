"""The demo's generator, inputs that look like real ones, and what PyTorch makes of them."""

import json
from types import SimpleNamespace

import pytest
import torch

import kernels
from examples import DEMO, network_files
from kernels.generator.weights import GeneratorWeights


@pytest.fixture(scope="session")
def module():
    """The demo's generator, in float32."""
    from models import checkpoint

    return checkpoint.load(network_files()["generator"], "generator").requires_grad_(False)


@pytest.fixture(scope="session")
def demo_weights() -> GeneratorWeights:
    from engine.runtime.fused import read_weights

    return read_weights(network_files()["generator"])


@pytest.fixture(scope="session")
def samples(module) -> SimpleNamespace:
    """A frame of the demo's, and one of random blocks and noise: inputs, audio and PyTorch's
    result."""
    from engine.media.video import Video
    from engine.plans.comparison import random_inputs

    video = Video(DEMO / "frames.mp4")
    person = torch.from_numpy(video.pixels(next(frame for _, frame in video.frames())))
    boxes = torch.tensor(json.loads((DEMO / "boxes.json").read_text())[:1], dtype=torch.int32)
    faces, _ = kernels.face_input(person[None], boxes, torch.zeros(1).long())
    pictures, audio = (torch.from_numpy(value) for value in random_inputs("generator", 1))
    inputs = torch.cat((faces.float(), pictures))
    audio = torch.cat((audio.flip(2), audio))
    return SimpleNamespace(inputs=inputs, audio=audio, expected=module(inputs, audio))
