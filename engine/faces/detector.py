"""Find the faces in a picture, with MediaPipe's face detector."""

import math
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from .network import FaceNetwork

SIDE = 192  # pixels of the network's input
CELLS = 48  # a side of its grid of anchors, each in the middle of a cell
OUTPUTS = ["reshaped_regressor_face_4", "reshaped_classifier_face_4"]
LEAST_LOGIT = 0.0  # of a face: a score of 0.5
SAME_FACE = 0.3  # intersection over union, above which two boxes are of the same face
PART = 3.0  # size of the part around a face in which turns are compared, in the face's size
MOST_TURNED = math.radians(60)  # of an upright face

_MIDDLES = (np.arange(CELLS) + 0.5) / CELLS
ANCHORS = np.stack(np.meshgrid(_MIDDLES, _MIDDLES), axis=-1).reshape(-1, 2)  # x, y

Window = tuple[int, int, int, int]  # x0, y0, x1, y1
Mapping = tuple[np.ndarray, np.ndarray]  # factor and offset of x, y


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
    def angle(self) -> float:
        """How far the line through the eyes is turned, in radians, clockwise in the picture."""
        x, y = self.key_points[1] - self.key_points[0]
        return math.atan2(y, x)

    @property
    def center(self) -> tuple[float, float]:
        """x, y of the middle of the box."""
        return float(self.box[0] + self.box[2]) / 2, float(self.box[1] + self.box[3]) / 2


class Detector:
    """MediaPipe's face detector of full range.

    Args:
        path: the ONNX file, `face_networks().detector`.
        device: "cpu" or "cuda".

    Raises:
        InputError: ONNX Runtime cannot open the file.
    """

    def __init__(self, path: Path, device: str = "cpu"):
        self._run = FaceNetwork(path, OUTPUTS, device)

    def detect(self, rgb: np.ndarray, small: bool = True) -> list[Face]:
        """Find upright faces in a picture, the largest first.

        Args:
            rgb: (H, W, 3) uint8.
            small: if there are none in the whole picture, search it in overlapping squares of half
                its longer side, for faces that are otherwise too small for the network: under 4%
                of that side. It takes several times as long.
        """
        check_picture(rgb)
        height, width = rgb.shape[:2]
        faces = self._find(rgb, _whole(height, width))
        return self._find(rgb, _windows(height, width)) if small and not faces else faces

    def quarter_turns(self, rgb: np.ndarray) -> int | None:
        """Return how often the picture must be turned by 90 degrees, counterclockwise as by
        `numpy.rot90`, for its faces to be upright: 0 to 3, or None if no turn shows a face.

        A face on its side is found too, but with a lower score than an upright one, if it is large
        enough in the picture. Therefore the four scores are of a part around the face.
        """
        check_picture(rgb)
        for divide, turns in product((_whole, _windows), range(4)):
            turned = np.rot90(rgb, turns)
            if faces := self._find(turned, divide(*turned.shape[:2])):
                part = _around(turned, max(faces, key=lambda face: face.score))
                scores = [self._score(np.rot90(part, more)) for more in range(4)]
                return (turns + int(np.argmax(scores))) % 4
        return None

    def _score(self, rgb: np.ndarray) -> float:
        """Return the best score of a face in a picture; 0 without one."""
        return max((face.score for face in self._find(rgb, _whole(*rgb.shape[:2]))), default=0.0)

    def _find(self, rgb: np.ndarray, windows: list[Window]) -> list[Face]:
        """Return the faces in windows of a picture; one that is in several is returned once."""
        pictures, mappings = zip(*(_letterbox(rgb, window) for window in windows), strict=True)
        values = np.stack(pictures).astype(np.float32) / 127.5 - 1
        raw, logits = self._run(values)
        found = []
        for index, anchor in np.argwhere(logits[..., 0] > LEAST_LOGIT):
            # center, size and key points, all from 0 to 1 in the letterbox; all but the size are
            # relative to the anchor
            points = raw[index, anchor].astype(np.float64).reshape(-1, 2) / SIDE
            center, size, marks = points[0] + ANCHORS[anchor], points[1], points[2:]
            corners = np.stack([center - size / 2, center + size / 2])
            places = np.concatenate([corners, marks + ANCHORS[anchor]])
            scale, offset = mappings[index]
            score = 1 / (1 + math.exp(-float(logits[index, anchor, 0])))
            found.append((score, places * scale + offset))
        faces = [face for face in map(_face, _merged(found)) if abs(face.angle) <= MOST_TURNED]
        return sorted(faces, key=lambda face: -face.size)


def check_picture(rgb: np.ndarray) -> None:
    """Raise ValueError if this is not a picture, (H, W, 3) uint8."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
        raise ValueError(f"a picture is {rgb.dtype} {rgb.shape}; expected uint8 (H, W, 3)")


def _around(rgb: np.ndarray, face: Face) -> np.ndarray:
    """Return the part of a picture around a face, of PART times its size."""
    height, width = rgb.shape[:2]
    (x, y), reach = face.center, PART * face.size / 2
    x0, y0 = max(int(x - reach), 0), max(int(y - reach), 0)
    return rgb[y0 : min(int(y + reach) + 1, height), x0 : min(int(x + reach) + 1, width)]


def _whole(height: int, width: int) -> list[Window]:
    return [(0, 0, width, height)]


def _windows(height: int, width: int) -> list[Window]:
    """Return squares of half the longer side. They overlap by half of theirs, and cover all."""
    side = max((max(height, width) + 1) // 2, 1)

    def starts(length: int) -> list[int]:
        count = max(-(-2 * (length - side) // side), 0) + 1
        return sorted({round(step * (length - side) / max(count - 1, 1)) for step in range(count)})

    return [
        (x, y, min(x + side, width), min(y + side, height))
        for y in starts(height)
        for x in starts(width)
    ]


def _letterbox(rgb: np.ndarray, window: Window) -> tuple[np.ndarray, Mapping]:
    """Fit a window of a picture into the network's square, with black bars.

    Returns:
        (SIDE, SIDE, 3) uint8, and what maps x, y in the square (0 to 1) to pixels of the picture.
    """
    x0, y0, x1, y1 = window
    part = Image.fromarray(np.ascontiguousarray(rgb[y0:y1, x0:x1]))
    scale = SIDE / max(part.size)
    width, height = (max(round(side * scale), 1) for side in part.size)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    square = np.zeros((SIDE, SIDE, 3), np.uint8)
    small = part.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    square[top : top + height, left : left + width] = np.asarray(small)
    factor = np.array([part.width / width, part.height / height])
    return square, (SIDE * factor, np.array([x0, y0]) - factor * [left, top])


def _merged(found: list[tuple[float, np.ndarray]]) -> list[tuple[float, np.ndarray]]:
    """Merge the boxes that overlap with a better one, as MediaPipe does: each face is the mean of
    its boxes and key points, weighted by their scores, with the best score."""
    left = sorted(found, key=lambda one: -one[0])
    faces = []
    while left:
        best, places = left[0]
        same = [one for one in left if _overlap(one[1], places) > SAME_FACE]
        same = same or left[:1]  # an empty box overlaps with nothing
        weights = np.array([score for score, _ in same])
        mean = np.average([one for _, one in same], axis=0, weights=weights)
        faces.append((best, mean))
        chosen = {id(one) for one in same}
        left = [one for one in left if id(one) not in chosen]
    return faces


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the intersection over the union of two boxes: rows 0 and 1 are their corners."""
    inner = np.prod(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None))
    union = np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - inner
    return float(inner / union) if union > 0 else 0.0


def _face(found: tuple[float, np.ndarray]) -> Face:
    score, places = found
    places = places.astype(np.float32)
    return Face(places[:2].reshape(4), score, places[2:])
