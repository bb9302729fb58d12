"""Resample sound piece by piece."""

import av
import numpy as np

import kernels

from ..forks import keep_in_children
from .speech import audio_frame


class Resampler:
    """Resamples mono sound in pieces of any length. At 16 kHz the result equals `read_speech`'s.

    Args:
        sample_rate: rate of the sound in Hz.
        wanted: rate of the result in Hz.
    """

    def __init__(self, sample_rate: int, wanted: int = kernels.SAMPLE_RATE):
        keep_in_children(self)
        self._rate, self._count = sample_rate, 0
        self._resampler = av.AudioResampler("flt", "mono", wanted)

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """Resample (n,) float32 samples, and return the (m,) samples that are ready."""
        if not len(sound):
            return sound
        frame = audio_frame(sound[None], self._rate, self._count)
        self._count += len(sound)
        return _joined(self._resampler.resample(frame))

    def flush(self) -> np.ndarray:
        """Return the samples that were held back."""
        if not self._count:
            return np.empty(0, np.float32)
        return _joined(self._resampler.resample(None))


def _joined(frames: list[av.AudioFrame]) -> np.ndarray:
    parts = [frame.to_ndarray()[0] for frame in frames]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)
