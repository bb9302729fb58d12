"""Sound in messages: bytes, and the samples that they are."""

from typing import Any

import numpy as np

from engine.live import SAMPLE_RATES
from engine.media.limits import MAX_AMPLITUDE

from .calls import invalid
from .protos import viseme_pb2 as pb

TYPES: dict[int, str] = {pb.SAMPLE_FORMAT_S16: "<i2", pb.SAMPLE_FORMAT_F32: "<f4"}
NAMES: dict[int, str] = {pb.SAMPLE_FORMAT_S16: "int16", pb.SAMPLE_FORMAT_F32: "float32"}


class SoundFormat:
    """How samples are written as bytes: little-endian, channels interleaved.

    Args:
        format: a `SampleFormat`; unspecified is S16.
        rate: Hz; 0 is 16000.
        channels: 0 is 1.

    Raises:
        Refused: one is out of range.
    """

    def __init__(self, format: int, rate: int, channels: int):
        self.format = format or pb.SAMPLE_FORMAT_S16
        self.rate, self.channels = rate or 16000, channels or 1
        if self.format not in TYPES:
            raise invalid(f"sample format is {format}; expected 1 (S16) or 2 (F32)")
        if not SAMPLE_RATES[0] <= self.rate <= SAMPLE_RATES[1]:
            raise invalid(f"sample rate is {rate}; expected {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]}")
        if self.channels not in (1, 2):
            raise invalid(f"channels is {channels}; expected 1 or 2")
        self._type = np.dtype(TYPES[self.format])
        self.frame_bytes = self._type.itemsize * self.channels

    def check(self, data: bytes, most: float) -> None:
        """Check how many bytes there are.

        Raises:
            Refused: more than so many seconds, or the last sample is cut.
        """
        if len(data) > most * self.rate * self.frame_bytes:
            seconds = len(data) / self.frame_bytes / self.rate
            raise invalid(f"pcm has {seconds:.1f} s; expected at most {most:g} s")
        if len(data) % self.frame_bytes:
            raise invalid(
                f"pcm has {len(data)} bytes; expected a multiple of {self.frame_bytes}, "
                f"{self.channels} x {NAMES[self.format]}"
            )

    def samples(self, data: bytes) -> np.ndarray:
        """Return the (C, n) samples, int16 or float32, of bytes that were checked.

        Raises:
            Refused: one is not finite or far beyond full scale.
        """
        samples = np.frombuffer(data, self._type).reshape(-1, self.channels).T
        # Much larger ones would make the networks' outputs infinite.
        if self._type.kind == "f" and not (np.abs(samples) <= MAX_AMPLITUDE).all():
            worst = samples[~(np.abs(samples) <= MAX_AMPLITUDE)][0]
            raise invalid(f"pcm has a sample of {worst:g}; expected -1 to 1")
        return samples

    def bytes(self, samples: np.ndarray) -> bytes:
        """Return (C, n) float32 samples as bytes. Those that came as int16 come back as they
        were."""
        if self._type.kind == "i":
            samples = np.rint(samples * 32768).clip(-32768, 32767)
        return np.ascontiguousarray(samples.T.astype(self._type)).tobytes()


def as_float(samples: np.ndarray) -> np.ndarray:
    """Return int16 or float32 samples as float32."""
    return samples.astype(np.float32) / 32768 if samples.dtype.kind == "i" else samples


def sound_format(message: Any) -> SoundFormat:
    """Return the format that a message states: `Pcm` or `OpenSession`."""
    format = message.format if isinstance(message, pb.Pcm) else message.sample_format
    return SoundFormat(format, message.sample_rate, message.channels)
