"""Mouth shapes of every video frame, from phonemes.

Each sound has a target and a strength for each of the five fields of `examples.person.Mouth`. The
mouth shows the mean of the targets, weighted by strength and by a Gaussian of the distance in time.
So a /k/, which is weak in the lip fields, takes the lip shape of the vowels around it, and the lips
are already round before an /u:/. The method is that of M. M. Cohen and D. W. Massaro, "Modeling
coarticulation in synthetic visual speech", 1993, with a Gaussian instead of their exponential,
because it has no corner. Closed lips and the mouth at rest then override the mean.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np

from .espeak import PAUSE, Phoneme
from .targets import CLOSED, bare, target

FIELDS = ("openness", "width", "rounding", "teeth", "tongue")
REST = np.array([0, 0.44, 0, 0, 0], np.float32)  # closed lips, the mean of `idle_mouth`
_STEP = 0.005  # time step of the weighted mean, s
# Standard deviation of the Gaussian, s: protruding lips are slow, the tip of the tongue is fast.
_SPREAD = (0.034, 0.055, 0.052, 0.030, 0.030)
_LEAD = (0.010, 0.025, 0.030, 0.005, 0.005)  # time by which a shape precedes its sound, s
_REST_STRENGTH = 1e-3  # strength of REST far from any sound
_CLOSING_TIME = 0.055  # s from open to closed lips
_CLOSED_ROUNDING = 0.2  # upper bound: more rounding would part closed lips
_SHORTEST_REST = 0.25  # s; in a longer pause the mouth comes to rest
_EASE = 0.15  # s from speech to rest, and back


def _track(phonemes: Sequence[Phoneme], times: np.ndarray) -> np.ndarray:
    """Return the weighted mean of all targets at `times`: float64 (len(times), 5)."""
    grid = np.arange(-0.2, max(phonemes[-1].end, times[-1]) + 0.3, _STEP)  # longer than a kernel
    strength = np.full((len(FIELDS), len(grid)), _REST_STRENGTH)
    pulled = strength * REST[:, None]
    for phoneme in phonemes:
        parts = target(phoneme.name)
        edges = np.linspace(phoneme.start, phoneme.end, len(parts) + 1)
        for (shape, weights), start, stop in zip(parts, edges, edges[1:], strict=False):
            for field in range(len(FIELDS)):
                inside = (grid >= start - _LEAD[field]) & (grid < stop - _LEAD[field])
                pulled[field, inside] += weights[field] * shape[field]
                strength[field, inside] += weights[field]
    out = np.empty((len(times), len(FIELDS)))
    for field, spread in enumerate(_SPREAD):
        reach = np.arange(-ceil(4 * spread / _STEP), ceil(4 * spread / _STEP) + 1) * _STEP
        kernel = np.exp(-0.5 * (reach / spread) ** 2)
        blend = np.convolve(pulled[field], kernel, "same") / np.convolve(
            strength[field], kernel, "same"
        )
        out[:, field] = np.interp(times, grid, blend)
    return out


def _smooth(x: np.ndarray) -> np.ndarray:
    """Return the cubic ramp from 0 to 1 over [0, 1]."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _closure(phonemes: Sequence[Phoneme], times: np.ndarray) -> np.ndarray:
    """Return how far the lips are closed, 0 to 1, at `times`: float64 (len(times),)."""
    pressed = np.zeros(len(times))
    for phoneme in phonemes:
        share = CLOSED.get(bare(phoneme.name))
        if share is None:
            continue
        start, stop = phoneme.start, phoneme.start + share * (phoneme.end - phoneme.start)
        if not ((times >= start) & (times <= stop)).any():
            # No frame falls into the closure: extend it to the nearest one.
            shown = times[np.argmin(np.abs(times - (start + stop) / 2))]
            start, stop = min(start, shown), max(stop, shown)
        away = np.maximum(np.maximum(start - times, times - stop), 0)
        pressed = np.maximum(pressed, _smooth(1 - away / _CLOSING_TIME))
    return pressed


def closing(phonemes: Sequence[Phoneme], frames: int, fps: float = 25) -> list[range]:
    """Return, for each p, b and m, the video frames in which its lips may be closed.

    Args:
        phonemes: in order.
        frames: number of video frames.
        fps: frames per second.
    """
    return [
        range(max(int(one.start * fps) - 1, 0), min(ceil(one.end * fps) + 1, frames))
        for one in phonemes
        if bare(one.name) in CLOSED
    ]


def _pauses(phonemes: Sequence[Phoneme]) -> list[tuple[float, float]]:
    """Return start and end of each silence in seconds. The last one never ends."""
    runs: list[tuple[float, float]] = []
    silence = Phoneme(PAUSE, phonemes[-1].end, np.inf)
    for phoneme in (*phonemes, silence):
        if phoneme.name != PAUSE:
            continue
        start = -np.inf if phoneme is phonemes[0] else phoneme.start
        if runs and runs[-1][1] >= start - 1e-6:
            start = runs.pop()[0]
        runs.append((start, phoneme.end))
    return runs


def _rest(phonemes: Sequence[Phoneme], times: np.ndarray) -> np.ndarray:
    """Return how far the mouth is at rest, 0 to 1, at `times`: float64 (len(times),)."""
    rest = np.zeros(len(times))
    for start, stop in _pauses(phonemes):
        if stop - start >= _SHORTEST_REST:
            rest = np.maximum(rest, _smooth(np.minimum(times - start, stop - times) / _EASE))
    return rest


def mouths(phonemes: Sequence[Phoneme], frames: int, fps: float = 25) -> np.ndarray:
    """Return the mouth shape of every video frame.

    Row i is the mouth at (i + 0.5) / fps seconds, the middle of frame i. If the lips close for less
    than a frame, the nearest frame shows them closed. In pauses of 0.25 s and more the mouth moves
    to `REST` within 0.15 s and leaves it 0.15 s before the next sound; rows between equal REST
    exactly.

    Args:
        phonemes: in order, without gaps, starting at 0 s.
        frames: number of rows; after the last phoneme the mouth is at rest.
        fps: frames per second.

    Returns:
        (frames, 5) float32: the fields of `examples.person.Mouth`.

    Raises:
        ValueError: a phoneme has no mouth shape.
    """
    if not phonemes or not frames:
        return np.tile(REST, (frames, 1))
    times = (np.arange(frames) + 0.5) / fps
    shapes = _track(phonemes, times)
    pressed = _closure(phonemes, times)[:, None]
    closed = shapes * np.array([0.0, 1, 1, 0, 0])
    closed[:, 2] = np.minimum(closed[:, 2], _CLOSED_ROUNDING)
    shapes = shapes + pressed * (closed - shapes)
    rest = _rest(phonemes, times)[:, None]
    shapes = ((1 - rest) * shapes + rest * REST).astype(np.float32)
    shapes[rest[:, 0] == 1] = REST
    return shapes
