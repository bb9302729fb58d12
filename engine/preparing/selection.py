"""Which frame of a film becomes which frame of the avatar. Pure functions on arrays."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def choose_frames(
    times: Sequence[int],
    time_base: Fraction,
    source_fps: Fraction | None,
    fps: Fraction,
    unusable: frozenset[int] = frozenset(),
) -> np.ndarray:
    """Choose for each frame at a constant rate the frame of the film that is nearest in time.

    If the film already has this constant rate, its frames are kept as they are, because jitter of
    the timestamps must not double or drop one.

    Args:
        times: presentation times of the film's frames, in units of `time_base` seconds, ascending.
        source_fps: the film's rate; None if it is variable.
        fps: the rate to choose for.
        unusable: numbers of frames that are never chosen; the nearest other one is.

    Returns:
        (N,) int64 ascending numbers of the film's frames. N / fps is the length of the film.

    Raises:
        ValueError: all frames are unusable.
    """
    seconds = (np.array(times, np.float64) - times[0]) * float(time_base)
    usable = np.array([n for n in range(len(times)) if n not in unusable], np.int64)
    if not usable.size:
        raise ValueError(f"{len(unusable)} of {len(times)} frames are unusable; expected fewer")
    if source_fps == fps:
        wanted = np.arange(len(times), dtype=np.float64)
        at = usable.astype(np.float64)
    else:
        steps = np.diff(seconds) if len(times) > 1 else np.array([1 / float(fps)])
        last = 1 / float(source_fps) if source_fps else float(np.median(steps))
        count = max(round((seconds[-1] + last) * float(fps)), 1)
        wanted = np.arange(count) / float(fps)
        at = seconds[usable]
    after = np.searchsorted(at, wanted).clip(0, len(at) - 1)
    before = (after - 1).clip(0)
    # Of two that are equally near, the earlier one: 1e-9 is for rounding errors.
    nearer = np.where(
        np.abs(at[before] - wanted) <= np.abs(at[after] - wanted) + 1e-9, before, after
    )
    return usable[nearer]


def time_errors(
    chosen: np.ndarray, times: Sequence[int], time_base: Fraction, fps: Fraction
) -> np.ndarray:
    """Return how far each chosen frame is from its place, (N,) float64 in seconds."""
    seconds = (np.array(times, np.float64) - times[0]) * float(time_base)
    return np.abs(seconds[chosen] - np.arange(len(chosen)) / float(fps))
