"""Shared fixtures: speech, frames of a person, and networks with random but usable weights.

Each fixture imports its libraries itself, because the kernels' tests run on GPU hosts without those
for media files and networks.
"""

import fcntl
import os
import shutil
import signal
import wave
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from examples import DEMO

ROOT = Path(__file__).parents[1]

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before ONNX Runtime is loaded

# A shell's background jobs and their children ignore Ctrl-C, which some tests need.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(scope="session")
def speech() -> torch.Tensor:
    """About 6 s of English, (S,) float32 at 16 kHz."""
    if find_spec("av"):
        from engine.media.speech import read_speech

        return read_speech(DEMO / "speech.wav")
    with wave.open(str(DEMO / "speech.wav")) as file:  # 16-bit, mono, 16 kHz
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return torch.from_numpy(samples.astype(np.float32) / 32768)


@pytest.fixture(scope="session")
def person() -> torch.Tensor:
    """(24, 1280, 720, 3) uint8: frames of the drawn person, every tenth one."""
    read = _read_with_av if find_spec("av") else _read_with_opencv
    frames = [frame for number, frame in enumerate(read(DEMO / "frames.mp4")) if number % 10 == 0]
    return torch.from_numpy(np.stack(frames[:24]))


def _read_with_av(path: Path) -> Iterator[np.ndarray]:
    from engine.media.video import Video

    video = Video(path)
    return (video.pixels(frame) for _, frame in video.frames())


def _read_with_opencv(path: Path) -> Iterator[np.ndarray]:
    cv2 = pytest.importorskip("cv2", reason="neither PyAV nor OpenCV to read a video with")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        pytest.skip("this OpenCV reads no H.264, and PyAV is not there")
    while (frame := capture.read()[1]) is not None:
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of both networks whose outputs depend on all inputs and fill their range."""
    from models import AudioEncoder, Generator, checkpoint

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
def fp16_safe_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints whose values fit float16, as those of trained ones do. The shared ones exceed
    it."""
    from models import AudioEncoder, Generator, checkpoint

    folder = tmp_path_factory.mktemp("fp16_safe_checkpoints")
    torch.manual_seed(2)
    paths = {}
    for kind, module in {"generator": Generator(), "audio_encoder": AudioEncoder()}.items():
        paths[kind] = folder / f"{kind}.safetensors"
        checkpoint.save(module.eval(), paths[kind])
    return paths


def _spread(generator: torch.nn.Module) -> None:
    """Scale the last layer so that the output has pixels of all brightness."""
    logits = []
    generator.outc.register_forward_hook(lambda *hook: logits.append(hook[2]))
    generator(torch.rand(1, 6, 320, 320), torch.randn(1, 32, 16, 16))
    generator.outc._forward_hooks.clear()
    deviation, mean = torch.std_mean(logits[0], dim=(0, 2, 3))
    generator.outc.conv.weight *= (1.5 / deviation)[:, None, None, None]
    generator.outc.conv.bias.copy_((generator.outc.conv.bias - mean) * 1.5 / deviation)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function of (name, make) that returns a folder filled by `make`, once for all of
    pytest's processes.

    For files that take long to make, are the same in each process, and are only read.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, part = root / f"once-{name}", root / f"once-{name}.part"
        with open(root / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                shutil.rmtree(part, ignore_errors=True)  # of one that failed
                part.mkdir()
                make(part)
                part.rename(folder)
        return folder

    return once


@pytest.fixture(scope="session")
def networks(checkpoints: dict[str, Path], shared_folder) -> dict[str, Path]:
    """The same as float32 ONNX files with a free batch size."""

    def make(folder: Path) -> None:
        from export import export

        for kind, path in checkpoints.items():
            export(kind, path, folder / f"{kind}.onnx", precision="fp32")

    folder = shared_folder("networks", make)
    return {kind: folder / f"{kind}.onnx" for kind in checkpoints}


@pytest.fixture(scope="session")
def demo_cache(shared_folder) -> Path:
    """An XDG_CACHE_HOME with the demo's networks as float32 ONNX files, as the engine exports
    them."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(folder))
            export_demo()

    return shared_folder("demo", make)


@pytest.fixture(scope="session")
def demo_networks(demo_cache) -> dict[str, Path]:
    """The same two files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(demo_cache))
        return export_demo()


def export_demo() -> dict[str, Path]:
    """Return the demo's networks as ONNX files, which are made if the cache does not have them."""
    from engine.runtime.exported import exported
    from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
    from examples import network_files

    files = network_files()
    return {s.kind: exported(s, files[s.kind], "fp32") for s in (AUDIO_ENCODER, GENERATOR)}
