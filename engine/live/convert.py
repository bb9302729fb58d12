"""The sound of an utterance, converted as it comes to what the networks hear."""

import numpy as np

import kernels


class SpeechConverter:
    """Mixes down and resamples to 16 kHz mono, giving the samples that `read_speech` gives.

    Args:
        sample_rate: of the sound, Hz.
    """

    def __init__(self, sample_rate: int):
        self._resampler = None
        if sample_rate != kernels.SAMPLE_RATE:
            from ..media.resampling import Resampler  # late, because 16 kHz needs no FFmpeg

            self._resampler = Resampler(sample_rate)

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        mono = sound.mean(axis=0, dtype=np.float32)
        return mono if self._resampler is None else self._resampler(mono)

    def flush(self) -> np.ndarray:
        return np.empty(0, np.float32) if self._resampler is None else self._resampler.flush()
