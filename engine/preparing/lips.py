"""Compare the movement of the lips with the sound: are they together?"""

from typing import NamedTuple

import numpy as np

REACH = 0.6  # seconds that the sound may be early or late
WINDOW = 1.0  # seconds whose mean is removed
FEWEST = 50  # frames to compare; with fewer, chance decides


class Lips(NamedTuple):
    """How the lips fit the sound.

    Attributes:
        lag: by how many frames the sound is later than the lips; negative if it is earlier.
        correlation: of both, with this lag.
    """

    lag: int
    correlation: float


def compare_lips(openness: np.ndarray, loudness: np.ndarray, fps: float) -> Lips | None:
    """Find the lag with which the lips fit the sound best.

    Both are compared without their mean of a second around each frame.

    Args:
        openness: (N,) of the lips; NaN where it is not known.
        loudness: (N,) of the sound of each frame, in dB.
        fps: frames a second.

    Returns:
        None if there are too few frames, or nothing moves.
    """
    count = min(len(openness), len(loudness))
    lips = _without_mean(openness[:count], fps)
    sound = _without_mean(loudness[:count], fps)
    reach = round(REACH * fps)
    found = []
    for lag in range(-reach, reach + 1):
        if count - abs(lag) < FEWEST:
            continue
        first = lips[max(-lag, 0) : count - max(lag, 0)]
        second = sound[max(lag, 0) : count - max(-lag, 0)]
        known = ~np.isnan(first) & ~np.isnan(second)
        if known.sum() < FEWEST:
            continue
        one, two = first[known] - first[known].mean(), second[known] - second[known].mean()
        scale = np.sqrt((one @ one) * (two @ two))
        found.append(Lips(lag, float(one @ two / scale) if scale > 1e-9 else 0.0))
    best = max(found, key=lambda lips: (lips.correlation, -abs(lips.lag)), default=None)
    return None if best is None or best.correlation == 0 else best


def _without_mean(values: np.ndarray, fps: float) -> np.ndarray:
    """Remove the mean of `WINDOW` around each value; NaNs count for nothing and stay."""
    side = max(round(WINDOW * fps / 2), 1)
    known = ~np.isnan(values)
    total = np.concatenate([[0.0], np.where(known, values, 0).cumsum()])
    count = np.concatenate([[0], known.cumsum()])
    place = np.arange(len(values))
    begin, end = (place - side).clip(0), (place + side + 1).clip(max=len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return values - (total[end] - total[begin]) / (count[end] - count[begin])
