"""Pictures made out of frames of the drawn person."""

import json

import numpy as np
from PIL import Image

from engine.faces import Tracked, box_of
from examples import DEMO

BOXES = np.array(json.loads((DEMO / "boxes.json").read_text()), np.float64)
TRUE_WIDTH = 242  # of the boxes
# What the mesh's boxes differ by from the true ones: x0, y0, x1. The drawn jaw is not the mesh's.
OFFSET = np.array([-2.1, 5.3, 1.1])


def shrunk(frame: np.ndarray, width: float) -> np.ndarray:
    """The frame, (1280, 720, 3), with a face box of another width."""
    size = [round(side * width / TRUE_WIDTH) for side in (720, 1280)]
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))


def scene(*people: tuple[np.ndarray, tuple[int, int]], size=(1280, 720)) -> np.ndarray:
    """Pictures at places x, y before a gray wall."""
    wall = Image.new("RGB", size, (120, 130, 140))
    for picture, place in people:
        wall.paste(Image.fromarray(picture), place)
    return np.asarray(wall)


def boxes_of(found: list[Tracked]) -> np.ndarray:
    """(N, 4) boxes; NaN without a face."""
    none = np.full(4, np.nan)
    return np.stack([box_of(one.landmarks.points) if one.landmarks else none for one in found])
