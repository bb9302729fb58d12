"""What tests share: speech, frames of a person, networks that are not trained but not trivial."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.media import Video, read_speech
from export import export
from models import AudioEncoder, Generator, checkpoint

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "demo"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(scope="session")
def speech() -> torch.Tensor:
    """About 6 s of English, (S,) float32 at 16 kHz."""
    return read_speech(DEMO / "speech.wav")


@pytest.fixture(scope="session")
def person() -> torch.Tensor:
    """(24, 1280, 720, 3) uint8: frames of the drawn person, every tenth one."""
    video = Video(DEMO / "frames.mp4")
    frames = [video.pixels(frame) for number, frame in video.frames() if number % 10 == 0]
    return torch.from_numpy(np.stack(frames[:24]))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of both networks whose outputs depend on all inputs and fill their range."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(1)
    modules = {"generator": Generator().eval(), "audio_encoder": AudioEncoder().eval()}
    with torch.no_grad():
        for module in modules.values():
            for layer in module.modules():
                if isinstance(layer, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.running_mean.normal_(0, 0.1)
                    layer.running_var.uniform_(0.7, 1.4)
                    layer.weight.uniform_(0.8, 1.2)
                    layer.bias.normal_(0, 0.1)
        _spread(modules["generator"])
    paths = {}
    for kind, module in modules.items():
        paths[kind] = folder / f"{kind}.safetensors"
        checkpoint.save(module, paths[kind])
    return paths


@pytest.fixture(scope="session")
def gentle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that float16 suits, as it suits trained ones: the shared ones are too steep."""
    folder = tmp_path_factory.mktemp("gentle")
    torch.manual_seed(2)
    paths = {}
    for kind, module in {"generator": Generator(), "audio_encoder": AudioEncoder()}.items():
        paths[kind] = folder / f"{kind}.safetensors"
        checkpoint.save(module.eval(), paths[kind])
    return paths


def _spread(generator: Generator) -> None:
    """Scale the last layer so that pixels of all brightness come out."""
    logits = []
    generator.outc.register_forward_hook(lambda *hook: logits.append(hook[2]))
    generator(torch.rand(1, 6, 320, 320), torch.randn(1, 32, 16, 16))
    generator.outc._forward_hooks.clear()
    deviation, mean = torch.std_mean(logits[0], dim=(0, 2, 3))
    generator.outc.conv.weight *= (1.5 / deviation)[:, None, None, None]
    generator.outc.conv.bias.copy_((generator.outc.conv.bias - mean) * 1.5 / deviation)


@pytest.fixture(scope="session")
def networks(checkpoints: dict[str, Path]) -> dict[str, Path]:
    """The same as float32 ONNX files with a free batch size."""
    paths = {}
    for kind, path in checkpoints.items():
        paths[kind] = path.with_suffix(".onnx")
        export(kind, path, paths[kind], precision="fp32")
    return paths
