"""A tiny avatar and speech, for tests of many renders and of commands: both take no time."""

import json
import os
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import ROOT

CASES = ROOT / "tests" / "cases"
NETWORKS = {
    "generator": CASES / "meter.onnx",
    "audio_encoder": CASES / "loudness_encoder.onnx",
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def write_avatar(root: Path, *, frames: int = 6, height: int = 96, width: int = 80) -> Path:
    """Write a native avatar folder with tiny networks, whose frames are PNGs of noise."""
    (root / "frames").mkdir(parents=True)
    random = np.random.default_rng(1)
    for number in range(frames):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(root / "frames" / f"{number}.png")
    boxes = [[10 + number, 20, 60 + number, 70] for number in range(frames)]
    (root / "boxes.json").write_text(json.dumps(boxes))
    record = {"name": "tiny", "fps": 25, "frames": "frames", "boxes": "boxes.json"}
    for kind, path in NETWORKS.items():
        shutil.copy(path, root / path.name)
        record[kind] = path.name
    (root / "avatar.json").write_text(json.dumps(record))
    return root


def write_speech(path: Path, seconds: float) -> Path:
    """Write a 16 kHz wav of noise whose loudness rises and falls."""
    count = int(seconds * 16000)
    level = 8000 * (1 + np.sin(np.arange(count) / 3000))
    samples = level * np.random.default_rng(2).uniform(-1, 1, count)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.astype(np.int16).tobytes())
    return path


def command(avatar: Path, audio: Path, output: Path, *options: object) -> list[str]:
    """Return a command that renders on the CPU. Run it with `ENVIRONMENT`."""
    parts = ["--avatar", avatar, "--audio", audio, "-o", output, "--device", "cpu"]
    return [sys.executable, "-m", "engine.render", *map(str, [*parts, "--no-progress", *options])]
