"""Find 468 points of a face, with MediaPipe's face mesh."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .detector import Face, check_picture
from .network import FaceNetwork

SIDE = 192  # pixels of the network's input
POINTS = 468
OUTPUTS = ["conv2d_21", "conv2d_31"]  # the points, the presence
MARGIN = 1.5  # of a region around a face
LEFT_CORNER, RIGHT_CORNER = 33, 263  # the outer corners of the eyes, by their side in the picture
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
    return Region(*face.center, MARGIN * face.size, face.angle)


def region_of_points(points: np.ndarray) -> Region:
    """Return 1.5 times the extent of (468, 2 or 3) points, turned by points 33 and 263."""
    x, y = (points[RIGHT_CORNER, :2] - points[LEFT_CORNER, :2]).tolist()
    angle = math.atan2(y, x)
    turn = _rotation(angle)
    upright = points[:, :2].astype(np.float64) @ turn  # each row turned back by the angle
    low, high = upright.min(0), upright.max(0)
    center_x, center_y = (turn @ ((low + high) / 2)).tolist()
    return Region(center_x, center_y, MARGIN * float((high - low).max()), angle)


class Mesh:
    """MediaPipe's face mesh.

    Args:
        path: the ONNX file, `face_networks().mesh`.
        device: "cpu" or "cuda".

    Raises:
        InputError: ONNX Runtime cannot open the file.
    """

    def __init__(self, path: Path, device: str = "cpu"):
        self._run = FaceNetwork(path, OUTPUTS, device)

    def fit(self, rgb: np.ndarray, region: Region, passes: int = 2) -> Landmarks:
        """Find the points of the face in a region.

        Args:
            rgb: (H, W, 3) uint8.
            region: where to look, from `region_of_face` or `region_of_points`.
            passes: how often the network runs; each time but the first in the region of the points
                that it found before. The second time halves the error.
        """
        check_picture(rgb)
        found = self._fit(rgb, region)
        for _ in range(passes - 1):
            found = self._fit(rgb, region_of_points(found.points))
        return found

    def _fit(self, rgb: np.ndarray, region: Region) -> Landmarks:
        values = warp(rgb, region, SIDE).astype(np.float32)[None] / 255
        raw, logit = self._run(values)
        points = raw.reshape(POINTS, 3).astype(np.float64) * (region.size / SIDE)
        points[:, :2] -= region.size / 2
        points[:, :2] = points[:, :2] @ _rotation(region.angle).T + [region.x, region.y]
        presence = 0.5 + 0.5 * math.tanh(float(logit.item()) / 2)  # a sigmoid without overflow
        return Landmarks(points.astype(np.float32), presence)


def warp(rgb: np.ndarray, region: Region, side: int) -> np.ndarray:
    """Return a region of a picture, upright and with `side` pixels a side: bilinear, black outside.

    A region of more than twice as many pixels is first reduced, by means of k x k pixels, so that
    no pixel is left out.

    Args:
        rgb: (H, W, 3) uint8.

    Returns:
        (side, side, 3) uint8.
    """
    height, width = rgb.shape[:2]
    turn = _rotation(region.angle)
    reach = region.size / 2 * float(np.abs(turn[0]).sum())  # of the square, right and down
    step = max(int(region.size / side), 1)  # pixels that become one
    edge = 2 * step
    x0, y0 = (max(int(middle - reach) - edge, 0) for middle in (region.x, region.y))
    x1 = min(int(region.x + reach) + edge, width)
    y1 = min(int(region.y + reach) + edge, height)
    if x0 >= x1 or y0 >= y1:
        return np.zeros((side, side, 3), np.uint8)
    part = Image.fromarray(np.ascontiguousarray(rgb[y0:y1, x0:x1]))
    if step > 1:
        part = part.reduce(step)
    # what maps pixels of the result to pixels of the part
    matrix = turn * (region.size / side / step)
    middle = np.array([region.x - x0, region.y - y0]) / step
    offset = middle - matrix @ [side / 2, side / 2]
    (a, b), (d, e) = matrix.tolist()
    c, f = offset.tolist()
    method, resample = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.asarray(part.transform((side, side), method, (a, b, c, d, e, f), resample))


def _rotation(angle: float) -> np.ndarray:
    """Return the matrix that turns a column x, y by an angle, clockwise in a picture."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])
