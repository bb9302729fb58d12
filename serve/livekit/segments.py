"""Speech as LiveKit's frames, in and out."""

import time

import numpy as np
from livekit import rtc

from engine.live import Piece
from engine.media.resampling import Resampler

FADE_SECONDS = 0.01


class SpeechIn:
    """Reads LiveKit's frames as mono samples of one rate.

    Attributes:
        open: whether a segment has begun and not ended.
    """

    def __init__(self, sample_rate: int):
        self._rate, self.open, self._some = sample_rate, False, False
        self._from: int | None = None  # rate of what is being resampled
        self._resample: Resampler | None = None

    def push(self, frame: rtc.AudioFrame) -> np.ndarray:
        """Return (n,) samples, int16 or float32, that a frame makes ready. They are a copy."""
        self.open = True
        samples = np.frombuffer(frame.data, np.int16)[: _size(frame)]
        samples = samples.reshape(-1, frame.num_channels)
        if frame.num_channels == 1 and frame.sample_rate == self._rate and self._from is None:
            return self._noted(samples[:, 0].copy())
        mono = samples.mean(1, dtype=np.float32) / 32768
        rest = np.empty(0, np.float32)
        if self._resample is None or frame.sample_rate != self._from:
            rest = self._flush()
            self._from = frame.sample_rate
            self._resample = Resampler(frame.sample_rate, self._rate)
        return self._noted(np.concatenate([rest, self._resample(mono)]))

    def end(self) -> np.ndarray:
        """Return the last samples of the segment, of which there is at least one."""
        rest = self._noted(self._flush())
        if not self._some:
            rest = np.zeros(1, np.float32)
        self.clear()
        return rest

    def clear(self) -> None:
        """Forget the segment."""
        self.open = self._some = False
        self._from = self._resample = None

    def _flush(self) -> np.ndarray:
        return np.empty(0, np.float32) if self._resample is None else self._resample.flush()

    def _noted(self, samples: np.ndarray) -> np.ndarray:
        self._some = self._some or len(samples) > 0
        return samples


class SpeechOut:
    """Makes LiveKit's frames of the sound of pieces, and knows when they are heard.

    The source of sound plays what it gets at once, or when what it got before has been played. The
    last 10 ms of a piece are kept, to be faded out if speech is interrupted.

    Attributes:
        ends_at: when the last sound of a segment has been played, of `time.monotonic()`; None while
            none has been given.
    """

    def __init__(self, sample_rate: int):
        self._rate, self._first = sample_rate, 0
        self._played_at = 0.0  # when all that was given has been played
        self._rest = np.empty(0, np.float32)
        self.ends_at: float | None = None

    def hear(self, piece: Piece) -> tuple[list[rtc.AudioFrame], float]:
        """Return the speech that a piece adds, and when its own first sample is heard; 0 if it has
        none. Pieces from before an interruption add nothing."""
        if piece.number < self._first or not (piece.speaking or piece.end or len(self._rest)):
            return [], 0.0
        begin = max(self._played_at, time.monotonic()) + len(self._rest) / self._rate
        samples = np.concatenate([self._rest, piece.sound[0, : piece.spoken]])
        kept = min(round(FADE_SECONDS * self._rate), len(samples))
        if piece.end or not piece.speaking:  # nothing follows at once
            kept = 0
        self._rest = samples[len(samples) - kept :].copy()
        frames = self._frames(samples[: len(samples) - kept])
        if piece.end:
            self.ends_at = self._played_at
        return frames, begin if piece.speaking else 0.0

    def drop_before(self, number: int) -> None:
        """Give no sound of pieces before this one any more, and no end of what was given."""
        self._first, self.ends_at = number, None

    def cut(self) -> list[rtc.AudioFrame]:
        """Return the sound that was kept, faded out."""
        fade = np.linspace(1, 0, len(self._rest), dtype=np.float32)
        frames, self._rest = self._frames(self._rest * fade), np.empty(0, np.float32)
        return frames

    def _frames(self, samples: np.ndarray) -> list[rtc.AudioFrame]:
        count = len(samples)
        if not count:
            return []
        self._played_at = max(self._played_at, time.monotonic()) + count / self._rate
        data = np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16)
        return [rtc.AudioFrame(data.tobytes(), self._rate, 1, count)]


def _size(frame: rtc.AudioFrame) -> int:
    return frame.samples_per_channel * frame.num_channels
