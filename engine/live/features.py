"""Mel rows and features of one session's stream, computed as frames need them."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

import kernels

from .rolling import Rolling
from .timing import (
    HISTORY,
    HOP,
    LOOK_AHEAD,
    first_feature_of,
    first_row,
    first_row_of,
    frame_start,
    rows_needed,
)

SILENT = -4.0  # a mel row of digital silence, exactly
CONTEXT = 3  # mel rows before the first one whose samples the first rows of a slice see cut off


class MelSlice(NamedTuple):
    """Samples whose mel rows are needed.

    Attributes:
        first: the first row.
        rows: how many rows.
        samples: (200 (rows + 4),) from 200 (first - 3) on; the mel of them has row `first` as its
            row 3, and all rows up to the last one needed are those of the whole stream.
    """

    first: int
    rows: int
    samples: np.ndarray


class FeatureStream:
    """What of the features of an endless stream is known.

    Mel rows and features that saw samples which changed since are computed again. So the features
    that a frame reads are always those of the stream as it is when the frame is bound.

    Args:
        fps: frames a second.
        silence: (512,) the feature of a silent window.
    """

    def __init__(self, fps: Fraction, silence: np.ndarray):
        self._fps, self._silence = fps, silence
        self._mel = Rolling((kernels.MEL_BANDS,), fill=SILENT)
        self._features = Rolling((kernels.FEATURE_DIM,))
        self._rows = self._count = 0  # how many of each are those of the stream as it is
        self._last_voiced = -1  # no later feature among the known ones has a row that is not silent

    def invalidate(self, sample: int) -> None:
        """Note that the stream's samples from this position on have changed."""
        row = first_row_of(sample)
        self._rows = min(self._rows, row)
        self._count = min(self._count, first_feature_of(row, self._fps))
        self._last_voiced = min(self._last_voiced, self._count - 1)

    def mel_slice(self, frame: int, pcm: Rolling) -> MelSlice | None:
        """Return the samples whose mel rows a frame still needs; None if it needs none.

        Rows of digital silence are known without computing, and are filled in here.
        """
        first, count = self._rows, rows_needed(frame, self._fps) - self._rows
        if count <= 0:
            return None
        start = HOP * (first - CONTEXT)
        samples = pcm.read(start, start + HOP * (count + CONTEXT + 1))
        if not samples.any():
            silent = np.full((count, kernels.MEL_BANDS), SILENT, np.float32)
            self.set_mel(first, silent)
            return None
        return MelSlice(first, count, samples)

    def set_mel(self, first: int, rows: np.ndarray) -> None:
        """Take (n, 80) computed rows from row `first` on."""
        self._mel.write(first, rows)
        self._rows = first + len(rows)

    def windows(self, frame: int) -> tuple[int, np.ndarray]:
        """Return the mel windows that a frame still needs encoded: the first one's number, and
        (n, 1, 80, 16). Silent ones at the beginning are known, and are filled in here."""
        stop = frame + LOOK_AHEAD + 1
        while self._count < stop:
            row = first_row(self._count, self._fps)
            if (self._mel.read(row, row + kernels.MEL_WINDOW_ROWS) != SILENT).any():
                break
            self._features.write(self._count, self._silence[None])
            self._count += 1
        numbers = range(self._count, stop)
        windows = np.empty(
            (len(numbers), 1, kernels.MEL_BANDS, kernels.MEL_WINDOW_ROWS), np.float32
        )
        for window, number in zip(windows, numbers, strict=True):
            row = first_row(number, self._fps)
            window[0] = self._mel.read(row, row + kernels.MEL_WINDOW_ROWS).T
        return self._count, windows

    def set_features(self, first: int, features: np.ndarray) -> None:
        """Take (n, 512) encoded windows from number `first` on."""
        self._features.write(first, features)
        self._count = first + len(features)
        self._last_voiced = max(self._last_voiced, self._count - 1)

    def is_silent(self, frame: int) -> bool:
        """Whether all 16 features that a frame reads are those of silence."""
        return frame >= HISTORY and self._last_voiced < frame - HISTORY

    def feature_window(self, frame: int) -> np.ndarray:
        """Return the generator's audio input for a frame, (32, 16, 16)."""
        first = frame - HISTORY
        rows = self._features.read(first, frame + LOOK_AHEAD + 1)
        if first < 0:  # E[0] stands twice at the beginning of the padded sequence, zeros before it
            rows[-first - 1] = rows[-first]
        return rows.reshape(32, 16, 16)

    def forget(self, frame: int) -> None:
        """Drop what frames from this one on do not need."""
        feature = max(frame - HISTORY, 0)
        self._features.forget(feature)
        self._mel.forget(first_row(feature, self._fps))


def first_sample(frame: int, fps: Fraction) -> int:
    """Return the first 16 kHz sample that frames from this one on may need computed again."""
    return frame_start(frame, kernels.SAMPLE_RATE, fps) - HOP * (CONTEXT + 4)
