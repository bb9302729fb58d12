"""A small avatar whose networks are `plain`'s, with its frames on the host or in memory, as on a
GPU."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import Avatar, Pipeline
from engine.batches import SharedBatches
from tests.engine.batches import plain

BOXES = [[20 + k, 30, 120 + k, 130] for k in range(6)] + [[90, 60, 230, 200]]  # one leaves it


@pytest.fixture(scope="session")
def shown(small) -> np.ndarray:
    """7 frames of 140 x 200, RGB."""
    return np.ascontiguousarray(small[0][:7, :140, :200])


@pytest.fixture(scope="session")
def folder(shown, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("batches") / "person"
    write_avatar(root, shown)
    return root


def write_avatar(root: Path, frames: np.ndarray) -> None:
    (root / "frames").mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(root / "frames" / f"{number}.png")
    (root / "boxes.json").write_text(json.dumps(BOXES))
    record = {"name": "person", "fps": 25, "frames": "frames", "boxes": "boxes.json"}
    for kind, path in plain.write_networks(root).items():
        record[kind] = path.name
    (root / "avatar.json").write_text(json.dumps(record))


def pipeline_of(folder: Path, place: str, batch_size: int = 8) -> Pipeline:
    avatar = Avatar.load(folder)
    if place == "memory":
        avatar._frames = avatar.batch(list(range(len(avatar))))[0]
    return Pipeline(avatar, batch_size=batch_size)


@pytest.fixture(scope="session")
def formulas(shown) -> plain.Formulas:
    return plain.Formulas(shown, BOXES)


@pytest.fixture(scope="session")
def on_host(folder) -> Pipeline:
    return pipeline_of(folder, "host")


@pytest.fixture(scope="session")
def in_memory(folder) -> Pipeline:
    return pipeline_of(folder, "memory")


def pixels(rgb: np.ndarray) -> bytes:
    """A file that is the frame."""
    return rgb.tobytes()


@pytest.fixture(scope="session", params=["host", "memory"])
def batches(request, on_host, in_memory):
    pipeline = on_host if request.param == "host" else in_memory
    with SharedBatches(pipeline, encode=pixels) as batches:
        yield batches


def frames_of(result, shape=(140, 200, 3)) -> np.ndarray:
    return np.stack([np.frombuffer(file, np.uint8).reshape(shape) for file in result.files])
