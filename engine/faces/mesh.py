"""Find 468 points of a face, with MediaPipe's face mesh."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from .detector import Face

PRESENT = 0.5  # a smaller presence: there is no face


class Landmarks(NamedTuple):
    """The points of a face.

    Attributes:
        points: (468, 3) float32: x, y in pixels of the picture (half-pixel centers: the first
            pixel's center is at 0.5), and z, smaller towards the camera, in the same unit.
        presence: probability that there is a face, 0 to 1.
    """

    points: np.ndarray
    presence: float


class Region(NamedTuple):
    """A turned square of a picture.

    Attributes:
        x, y: its center in pixels.
        size: its side in pixels.
        angle: how far it is turned, in radians, clockwise in the picture.
    """

    x: float
    y: float
    size: float
    angle: float


def region_of_face(face: Face) -> Region:
    """Return 1.5 times the longer side of the face's box, turned by the eyes."""
    raise NotImplementedError


def region_of_points(points: np.ndarray) -> Region:
    """Return 1.5 times the extent of (468, 2 or 3) points, turned by points 33 and 263."""
    raise NotImplementedError


class Mesh:
    """MediaPipe's face mesh.

    Args:
        path: the ONNX file, `face_networks().mesh`.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: Path, device: str = "cpu"):
        raise NotImplementedError

    def fit(self, rgb: np.ndarray, region: Region, passes: int = 2) -> Landmarks:
        """Find the points of the face in a region.

        Args:
            rgb: (H, W, 3) uint8.
            region: where to look, from `region_of_face` or `region_of_points`.
            passes: how often the network runs; each time but the first in the region of the points
                that it found before. The second time halves the error.
        """
        raise NotImplementedError
