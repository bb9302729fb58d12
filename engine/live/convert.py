"""The sound of an utterance, converted as it comes to what the networks hear."""

import numpy as np

import kernels

from ..media.mixdown import Mixer


class SpeechConverter:
    """Mixes down and resamples to 16 kHz mono, giving the samples that `read_speech` gives.

    Where the mix loses the loudest channel, they differ in the first moments, see `Mixer`.

    Args:
        sample_rate: of the sound, Hz.
    """

    def __init__(self, sample_rate: int):
        self._mixer = Mixer(sample_rate)
        self._resampler = None
        if sample_rate != kernels.SAMPLE_RATE:
            from ..media.resampling import Resampler  # late, because 16 kHz needs no FFmpeg

            self._resampler = Resampler(sample_rate)

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        mono = self._mixer(sound)
        return mono if self._resampler is None else self._resampler(mono)

    def flush(self) -> np.ndarray:
        return np.empty(0, np.float32) if self._resampler is None else self._resampler.flush()
