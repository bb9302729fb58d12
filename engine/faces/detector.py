"""Find the faces in a picture, with MediaPipe's face detector."""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Face(NamedTuple):
    """A detected face.

    Attributes:
        box: (4,) float32: x0, y0, x1, y1 in pixels, around the face from the brow to the chin.
        score: from 0 to 1.
        key_points: (6, 2) float32: x, y in pixels of the eyes (the left one in the picture first),
            the nose, the mouth, the ears.
    """

    box: np.ndarray
    score: float
    key_points: np.ndarray

    @property
    def size(self) -> float:
        """The longer side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    @property
    def center(self) -> tuple[float, float]:
        """x, y of the middle of the box."""
        return float(self.box[0] + self.box[2]) / 2, float(self.box[1] + self.box[3]) / 2


class Detector:
    """MediaPipe's face detector of full range.

    Args:
        path: the ONNX file, `face_networks().detector`.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: Path, device: str = "cpu"):
        raise NotImplementedError

    def detect(self, rgb: np.ndarray) -> list[Face]:
        """Find upright faces in a picture, the largest first.

        Args:
            rgb: (H, W, 3) uint8.
        """
        raise NotImplementedError

    def quarter_turns(self, rgb: np.ndarray) -> int | None:
        """Return how often the picture must be turned by 90 degrees, counterclockwise as by
        `numpy.rot90`, for its faces to be upright: 0 to 3, or None if no turn shows a face."""
        raise NotImplementedError
