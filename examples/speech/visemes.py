"""Phonemes -> the shape of the mouth in every video frame.

Every sound pulls each of the five fields of `examples.person.Mouth` towards a target, with a
strength of its own, for as long as it lasts; what the mouth shows is the mean of the targets,
weighted by strength and by nearness in time. So a /k/, which leaves the lips alone, takes the shape
of the vowels around it, and lips are round before an /u:/ is heard. The idea is M. M. Cohen and
D. W. Massaro, "Modeling coarticulation in synthetic visual speech", 1993, with a Gaussian in place
of their exponential: jaws have mass. Closed lips and rest are not blended but laid over the rest.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np

from .espeak import PAUSE, Phoneme
from .targets import CLOSED, bare, target

FIELDS = ("openness", "width", "rounding", "teeth", "tongue")
REST = np.float32([0, 0.44, 0, 0, 0])  # closed lips, the mean of `idle_mouth`
_STEP = 0.005  # s, grid of the blend
# s; how far a sound reaches: lips that protrude are slow, the tip of the tongue is quick
_SPREAD = (0.034, 0.055, 0.052, 0.030, 0.030)
_LEAD = (0.010, 0.025, 0.030, 0.005, 0.005)  # s; shapes precede their sounds
_SLACK = 1e-3  # strength of rest, where no sound is near
_LIPS_MEET = 0.055  # s from open to closed
_CLOSED_ROUNDING = 0.2  # more of it would part the lips
_STILL = 0.25  # s; in a longer pause the mouth comes to rest
_EASE = 0.15  # s


def _track(phonemes: Sequence[Phoneme], times: np.ndarray) -> np.ndarray:
    """Blend of all targets at `times`: float64 (len(times), 5)."""
    grid = np.arange(-0.2, max(phonemes[-1].end, times[-1]) + 0.3, _STEP)  # longer than a kernel
    strength = np.full((len(FIELDS), len(grid)), _SLACK)
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
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _closure(phonemes: Sequence[Phoneme], times: np.ndarray, fps: float) -> np.ndarray:
    """How far the lips are pressed together, 0 .. 1, at `times`: float64 (len(times),)."""
    pressed = np.zeros(len(times))
    for phoneme in phonemes:
        share = CLOSED.get(bare(phoneme.name))
        if share is None:
            continue
        start, stop = phoneme.start, phoneme.start + share * (phoneme.end - phoneme.start)
        if not ((times >= start) & (times <= stop)).any():
            # Too short to be seen: it is stretched to the frame it is nearest to.
            shown = times[np.argmin(np.abs(times - (start + stop) / 2))]
            start, stop = min(start, shown), max(stop, shown)
        away = np.maximum(np.maximum(start - times, times - stop), 0)
        pressed = np.maximum(pressed, _smooth(1 - away / _LIPS_MEET))
    return pressed


def closing(phonemes: Sequence[Phoneme], frames: int, fps: float = 25) -> list[range]:
    """For each p, b and m, the video frames in which its lips may close; frames: there are."""
    return [
        range(max(int(one.start * fps) - 1, 0), min(ceil(one.end * fps) + 1, frames))
        for one in phonemes
        if bare(one.name) in CLOSED
    ]


def _pauses(phonemes: Sequence[Phoneme]) -> list[tuple[float, float]]:
    """Start and end of each silence, seconds; it is silent for ever after the last sound."""
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
    """How much of the mouth is at rest, 0 .. 1, at `times`: float64 (len(times),)."""
    rest = np.zeros(len(times))
    for start, stop in _pauses(phonemes):
        if stop - start >= _STILL:
            rest = np.maximum(rest, _smooth(np.minimum(times - start, stop - times) / _EASE))
    return rest


def mouths(phonemes: Sequence[Phoneme], frames: int, fps: float = 25) -> np.ndarray:
    """Shapes of the mouth, one a video frame.

    Row i is what frame i shows, the mouth at (i + 0.5) / fps seconds: the middle of the time for
    which the frame is seen, and of the audio that is heard meanwhile. A closure of the lips too
    short to have such a moment is shown by the frame nearest to it. In pauses of 0.25 s and more
    the mouth goes to `REST` within 0.15 s and leaves it 0.15 s before the next sound; between, rows
    equal REST exactly.

    Args:
        phonemes: in order, without gaps, from 0 s on.
        frames: number of rows; beyond the last phoneme the mouth rests.
        fps: frames a second.

    Returns:
        (frames, 5) float32: openness, width, rounding, teeth and tongue, as `Mouth` has them.

    Raises:
        ValueError: a phoneme has no shape.
    """
    if not phonemes or not frames:
        return np.tile(REST, (frames, 1))
    times = (np.arange(frames) + 0.5) / fps
    shapes = _track(phonemes, times)
    pressed = _closure(phonemes, times, fps)[:, None]
    closed = shapes * np.float64([0, 1, 1, 0, 0])
    closed[:, 2] = np.minimum(closed[:, 2], _CLOSED_ROUNDING)
    shapes = shapes + pressed * (closed - shapes)
    rest = _rest(phonemes, times)[:, None]
    shapes = ((1 - rest) * shapes + rest * REST).astype(np.float32)
    shapes[rest[:, 0] == 1] = REST
    return shapes
