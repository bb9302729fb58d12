"""The sound of an utterance, converted as it comes to what the networks hear."""

from typing import TYPE_CHECKING

import numpy as np

import kernels

if TYPE_CHECKING:
    import av


class SpeechConverter:
    """Mixes down and resamples to 16 kHz mono, giving the samples that `read_speech` gives.

    Args:
        sample_rate: of the sound, Hz.
    """

    def __init__(self, sample_rate: int):
        self._rate, self._first = sample_rate, 0
        self._resampler: av.AudioResampler | None = None
        if sample_rate != kernels.SAMPLE_RATE:
            import av  # late, because speech at 16 kHz needs no FFmpeg

            self._resampler = av.AudioResampler("flt", "mono", kernels.SAMPLE_RATE)

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        mono = sound.mean(axis=0, dtype=np.float32)
        if self._resampler is None or not len(mono):
            return mono
        from ..media.speech import audio_frame

        frame = audio_frame(mono[None], self._rate, self._first)
        self._first += len(mono)
        return self._joined(self._resampler.resample(frame))

    def flush(self) -> np.ndarray:
        if self._resampler is None or not self._first:
            return np.empty(0, np.float32)
        return self._joined(self._resampler.resample(None))

    @staticmethod
    def _joined(frames: "list[av.AudioFrame]") -> np.ndarray:
        parts = [frame.to_ndarray()[0] for frame in frames]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)
