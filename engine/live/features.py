"""Which features of an endless stream are known, and what the others are computed from."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from .rolling import Rolling
from .timing import HISTORY, LOOK_AHEAD, WINDOW_SAMPLES, first_feature_of, window_start

# Features that are kept of a stream. A frame reads 16; a batch has at most 52 frames of a stream.
RING_ROWS = 128


class Window(NamedTuple):
    """A feature that is to be computed.

    Attributes:
        row: of the flattened rings, where the feature goes.
        samples: (4000,) float32, of which the mel's rows 3 to 18 are the window; None if all are 0.
    """

    row: int
    samples: np.ndarray | None


class FeatureStream:
    """Which features of one endless stream its ring holds.

    Features that saw samples which changed since are computed again. So the features that a frame
    reads are always those of the stream as it is when the frame is bound.

    Args:
        fps: frames a second.
        slot: number of the stream's ring.
    """

    def __init__(self, fps: Fraction, slot: int):
        self._fps, self.slot = fps, slot
        self._first = self._stop = 0  # these features are in the ring

    def invalidate(self, sample: int) -> None:
        """Note that the stream's samples from this position on have changed."""
        self._stop = min(self._stop, first_feature_of(sample, self._fps))
        self._first = min(self._first, self._stop)

    def is_silent(self, frame: int, last_voiced: int) -> bool:
        """Whether all 16 features that a frame reads are those of silence.

        Args:
            last_voiced: the stream's last sample that is not 0.
        """
        return frame >= HISTORY and last_voiced < first_sample(frame, self._fps)

    def windows(self, frame: int, pcm: Rolling) -> list[Window]:
        """Return what has to be computed before a frame's features are all in the ring.

        They count as computed from then on. Frames of one batch come in order.
        """
        first, stop = max(frame - HISTORY, 0), frame + LOOK_AHEAD + 1
        if not self._first <= first <= self._stop:  # after silence, or after an interruption
            self._first = self._stop = first
        windows = [
            Window(self._row(feature), self._samples(feature, pcm))
            for feature in range(self._stop, stop)
        ]
        self._stop = max(self._stop, stop)
        self._first = max(self._first, self._stop - RING_ROWS)
        return windows

    def _row(self, feature: int) -> int:
        return self.slot * RING_ROWS + feature % RING_ROWS

    def _samples(self, feature: int, pcm: Rolling) -> np.ndarray | None:
        start = window_start(feature, self._fps)
        samples = pcm.read(start, start + WINDOW_SAMPLES)
        return samples if samples.any() else None


def first_sample(frame: int, fps: Fraction) -> int:
    """Return the first 16 kHz sample that frames from this one on depend on, or 0."""
    return max(window_start(max(frame - HISTORY, 0), fps), 0)
