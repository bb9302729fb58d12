"""Measure each frame while the film is read. Only numbers are kept, a few for each frame."""

from array import array

import numpy as np

from ..faces import Landmarks, box_of

# Points of the face mesh.
CHIN, NOSE, LEFT, RIGHT = 152, 1, 234, 454
UPPER_LIP, LOWER_LIP, LEFT_EYE, RIGHT_EYE = 13, 14, 33, 263
LUMA = np.array([0.2126, 0.7152, 0.0722])  # BT.709
STEP = 4  # every fourth pixel of every fourth row is enough for means
# A face moves at its edges, where pixels change by many levels. What a codec changes in a repeated
# frame is spread over all pixels, by few levels. So of the changes of all pixels this one is used:
CHANGE = 0.997
# A frame repeats the one before if each half of its face, above and below the nose, changes by less
# than this fraction of what it does in the two frames before and in the two after. Lips stand still
# for a frame when they turn, but not the rest of the face too.
REPEATED, AROUND = 0.45, 2
COLUMNS, FLAGS = 11, 3


class Measures:
    """The figures of all frames. Frames without a face have NaN.

    Attributes:
        boxes: (N, 4): face boxes as of `box_of`.
        turned: (N,): 0 to 1 from the left cheek to the right one is where the nose is; 0.5 for a
            head that looks into the camera.
        openness: (N,): distance of the lips by that of the eyes' outer corners.
        chin: (N, 2): x, y of the chin in pixels.
        luma: (N,): mean luma of the face, 0 to 255.
        others: (N,): number of other faces.
        cuts: (N,) bool: the film was cut before this frame.
        repeated: (N,) bool: the frame shows what the one before does.
        missing: (N,) bool: the film has no picture near the frame's time.
    """

    def __init__(self) -> None:
        self._rows = array("d")
        self._flags = array("b")
        self._last: np.ndarray | None = None

    def add(self, rgb: np.ndarray, landmarks: Landmarks | None, *, others: int, cut: bool) -> None:
        """Measure a frame, (H, W, 3) uint8, of which the person's landmarks are known."""
        change = self._change(rgb, landmarks)
        if landmarks is None:
            self._rows.extend([np.nan] * COLUMNS)
        else:
            p = landmarks.points.astype(np.float64)
            eyes = np.hypot(*(p[LEFT_EYE, :2] - p[RIGHT_EYE, :2]))
            lips = np.hypot(*(p[UPPER_LIP, :2] - p[LOWER_LIP, :2]))
            box = box_of(p)
            self._rows.extend(box.tolist())
            self._rows.append(nose_place(p))
            self._rows.append(lips / eyes if eyes else np.nan)
            self._rows.extend(p[CHIN, :2].tolist())
            self._rows.append(_luma(rgb, box))
            self._rows.extend(change)
        self._flags.extend((min(others, 100), cut, 0))

    def repeat(self) -> None:
        """Add a frame that is the last one again."""
        self._rows.extend([*self._rows[-COLUMNS:-2], 0.0, 0.0])
        self._flags.extend((self._flags[-FLAGS], 0, 0))

    def skip(self) -> None:
        """Add a frame of which there is no picture."""
        self._rows.extend([np.nan] * COLUMNS)
        self._flags.extend((0, 0, 1))
        self._last = None

    def __len__(self) -> int:
        return len(self._flags) // FLAGS

    @property
    def _table(self) -> np.ndarray:
        return np.array(self._rows).reshape(-1, COLUMNS)

    @property
    def boxes(self) -> np.ndarray:
        return self._table[:, :4]

    @property
    def turned(self) -> np.ndarray:
        return self._table[:, 4]

    @property
    def openness(self) -> np.ndarray:
        return self._table[:, 5]

    @property
    def chin(self) -> np.ndarray:
        return self._table[:, 6:8]

    @property
    def luma(self) -> np.ndarray:
        return self._table[:, 8]

    @property
    def others(self) -> np.ndarray:
        return self._flag(0).astype(np.int64)

    @property
    def cuts(self) -> np.ndarray:
        return self._flag(1).astype(bool)

    @property
    def missing(self) -> np.ndarray:
        return self._flag(2).astype(bool)

    @property
    def repeated(self) -> np.ndarray:
        return find_repeated(self._table[:, 9:])

    def _flag(self, column: int) -> np.ndarray:
        return np.array(self._flags).reshape(-1, FLAGS)[:, column]

    def _change(self, rgb: np.ndarray, landmarks: Landmarks | None) -> list[float]:
        """Return by how many levels the face has changed since the last frame, above and below the
        nose; NaN if it was not there."""
        last, green = self._last, rgb[::2, ::2, 1].copy()
        self._last = None if landmarks is None else green
        if landmarks is None or last is None:
            return [np.nan, np.nan]
        points = landmarks.points[:, :2] / 2
        x0, y0 = np.floor(points.min(axis=0)).astype(int).clip(0)
        x1, y1 = np.ceil(points.max(axis=0)).astype(int).clip(0)
        nose = max(int(points[NOSE, 1]), 0)
        places = np.s_[y0:nose, x0:x1], np.s_[nose:y1, x0:x1]
        return [_large_change(green[place], last[place]) for place in places]


def _large_change(now: np.ndarray, before: np.ndarray) -> float:
    """Return the change that few pixels exceed; NaN if there are no pixels."""
    changes = np.abs(now.astype(np.int16) - before).ravel()
    index = int(CHANGE * (changes.size - 1))
    return float(np.partition(changes, index)[index]) if changes.size else np.nan


def find_repeated(change: np.ndarray) -> np.ndarray:
    """Find the frames that show what the one before does.

    Args:
        change: (N, parts) by how much each part of a frame differs from the one before; NaN if that
            is not known.

    Returns:
        (N,) bool.
    """
    known = np.nan_to_num(change)
    before, after = np.zeros_like(known), np.zeros_like(known)
    for k in range(1, AROUND + 1):
        before[k:] = np.maximum(before[k:], known[:-k])
        after[:-k] = np.maximum(after[:-k], known[k:])
    least = np.minimum(before, after)
    return ((change == 0) | (change < REPEATED * least)).all(axis=1)


def nose_place(points: np.ndarray) -> float:
    """Return where the nose is in a face of (468, 2 or 3) points: 0 at its left edge in the
    picture, 1 at the right one."""
    left, right = points[LEFT, 0], points[RIGHT, 0]
    return float((points[NOSE, 0] - left) / (right - left)) if right != left else 0.0


def _luma(rgb: np.ndarray, box: np.ndarray) -> float:
    """Return the mean luma in a box, as far as it is in the frame; NaN if it is not."""
    x0, y0, x1, y1 = np.round(box).astype(int).clip(0)
    face = rgb[y0:y1:STEP, x0:x1:STEP]
    return float(face.reshape(-1, 3).mean(axis=0) @ LUMA) if face.size else np.nan
