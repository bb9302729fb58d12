"""An avatar in every layout, small enough to render often."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import DEMO
from tests.engine.files import Folders


@pytest.fixture(scope="session")
def small(person) -> tuple[np.ndarray, list[list[int]]]:
    """12 frames of 500 x 391 around the person's face, and their boxes."""
    boxes = json.loads((DEMO / "boxes.json").read_text())[::10][:12]
    left, top = 200, 330
    frames = person[:12, top : top + 391, left : left + 500].numpy()
    return frames, [[x0 - left, y0 - top, x1 - left, y1 - top] for x0, y0, x1, y1 in boxes]


@pytest.fixture(scope="session")
def folders(tmp_path_factory, small, networks) -> Folders:
    """For tests that only read."""
    return Folders(tmp_path_factory.mktemp("avatars"), *small, networks)


@pytest.fixture(scope="session")
def native(folders) -> Path:
    return folders.native("shared")


@pytest.fixture
def own(tmp_path, small, networks) -> Folders:
    """For tests that damage what they read."""
    frames, _ = small
    return Folders(tmp_path / "avatars", frames[:4, :200, :200], [[20, 30, 120, 130]] * 4, networks)
