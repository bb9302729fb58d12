"""Face boxes from the points of a mesh, and their smoothing. Pure functions on arrays."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

LEFT, RIGHT, TOP = 93, 323, 195  # the points of a mesh that give the box
LONGEST_GAP = 5  # frames that are interpolated
JUMP = 0.1  # of the box's size, from one frame to the next: a cut
SIGMA_PLACE, SIGMA_SIZE = 2.0, 12.0  # frames
HELD = 0.75  # pixels


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
    x0, x1 = (points[..., point, 0].astype(np.float64) for point in (LEFT, RIGHT))
    y0 = points[..., TOP, 1].astype(np.float64)
    return np.stack([x0, y0, x1, y0 + x1 - x0], axis=-1)


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
    boxes = np.array(boxes, np.float64).reshape(-1, 4)  # a copy
    count = len(boxes)
    found = np.logical_and.reduce(np.isfinite(boxes), axis=1)
    starts = np.zeros(count, bool) if cuts is None else np.array(cuts, bool)
    gaps = []
    for start, stop in _runs(~found):
        inside = start > 0 and stop < count and stop - start <= longest_gap
        filled = inside and not starts[start : stop + 1].any()
        if filled and _jumps(boxes[start - 1], boxes[stop], stop - start + 1):
            filled, starts[stop] = False, True
        if filled:
            boxes[start:stop] = _between(boxes[start - 1], boxes[stop], stop - start)
        gaps.append(Gap(start, stop, filled))
    valid = np.logical_and.reduce(np.isfinite(boxes), axis=1)
    for frame in range(1, count):
        if found[frame - 1] and found[frame] and _jumps(boxes[frame - 1], boxes[frame], 1):
            starts[frame] = True
    starts[:1] = False
    made = np.zeros((count, 4), np.int32)
    for start, stop in _runs(valid):
        edges = [start, *(start + 1 + np.flatnonzero(starts[start + 1 : stop])).tolist(), stop]
        for first, last in pairwise(edges):
            made[first:last] = _steady(boxes[first:last])
    return Boxes(made, valid, gaps, np.flatnonzero(starts).tolist())


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """Return the ranges (start, stop) of successive True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _jumps(before: np.ndarray, after: np.ndarray, frames: int) -> bool:
    """Return whether a box jumps: its center, top or size changes by more than 10% of its size a
    frame, or by more than 30%."""
    size = before[2] - before[0]
    change = np.abs(_measures(after[None]) - _measures(before[None])).max()
    return bool(change > JUMP * min(frames, 3) * size)


def _between(before: np.ndarray, after: np.ndarray, count: int) -> np.ndarray:
    """Return `count` boxes at equal steps between two others."""
    weights = np.arange(1, count + 1)[:, None] / (count + 1)
    return before + weights * (after - before)


def _measures(boxes: np.ndarray) -> np.ndarray:
    """Return (N, 3): the x of the middle, the y of the top, the size."""
    x0, y0, x1, _ = boxes.T
    return np.stack([(x0 + x1) / 2, y0, x1 - x0], axis=1)


def _steady(boxes: np.ndarray) -> np.ndarray:
    """Return the (N, 4) whole boxes of one shot."""
    middle, top, size = _measures(boxes).T
    sizes = np.maximum(_held(_gaussian(size, SIGMA_SIZE)), 1)
    x0 = _held(_gaussian(middle, SIGMA_PLACE) - sizes / 2)
    y0 = _held(_gaussian(top, SIGMA_PLACE))
    return np.stack([x0, y0, x0 + sizes, y0 + sizes], axis=1).astype(np.int32)


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    """Smooth (N,) values. The first and the last one are repeated beyond the ends."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(values, reach, mode="edge")
    return np.convolve(padded, weights / weights.sum(), mode="valid")


def _held(values: np.ndarray) -> np.ndarray:
    """Round (N,) values. A whole number stays until the value is more than HELD away from it."""
    held = np.empty(len(values), np.int64)
    last = round(float(values[0]))
    for index, value in enumerate(values.tolist()):
        if abs(value - last) > HELD:
            last = round(value)
        held[index] = last
    return held
