"""Face boxes from the points of a mesh, and their smoothing. Pure functions on arrays."""

from typing import NamedTuple

import numpy as np

LONGEST_GAP = 5  # frames that are interpolated


class Gap(NamedTuple):
    """Successive frames without a face: `start` to `stop`, exclusive.

    `filled`: they have interpolated boxes. Otherwise they have none: there are too many of them, a
    cut is among them, or they are at an end of the film.
    """

    start: int
    stop: int
    filled: bool


class Boxes(NamedTuple):
    """The face boxes of a film.

    Attributes:
        boxes: (N, 4) int32: x0, y0, x1, y1, end-exclusive, square; zeros where `valid` is False.
        valid: (N,) bool: False in gaps that were not filled.
        gaps: all gaps, in order.
        cuts: ascending numbers of the frames with which a new shot begins; not 0.
    """

    boxes: np.ndarray
    valid: np.ndarray
    gaps: list[Gap]
    cuts: list[int]


def box_of(points: np.ndarray) -> np.ndarray:
    """Return the face box of a mesh, (..., 468, 2 or 3) points -> (..., 4) float64.

    x0 = p[93].x, x1 = p[323].x, y0 = p[195].y, y1 = y0 + x1 - x0.
    """
    raise NotImplementedError


def smooth(
    boxes: np.ndarray, cuts: np.ndarray | None = None, longest_gap: int = LONGEST_GAP
) -> Boxes:
    """Make steady boxes of whole pixels.

    Each shot and each part between gaps that are not filled is smoothed by itself.

    Args:
        boxes: (N, 4) x0, y0, x1, y1 as of `box_of`; NaN for frames without a face.
        cuts: (N,) bool: frames known to begin a shot (`Tracked.cut`). A jump of the box by more
            than 10% of its size is a cut too.
        longest_gap: how many successive frames without a face are interpolated.
    """
    raise NotImplementedError
