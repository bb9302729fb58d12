"""The speech of an avatar: a film's sound at 16 kHz in mono, frame by frame with the pictures."""

import os
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

from kernels.spec import SAMPLE_RATE

from ..errors import InputError
from ..media import limits
from ..media.files import open_media
from ..media.mixdown import Meter
from ..media.speech import mixed, resampled
from ..media.track import read_track

FULL_SCALE = 0.999  # a sample of at least this is clipped
SILENT = 1e-3  # a track whose largest sample is smaller, -60 dB, has no speech
QUIETEST = -60.0  # dB of a frame; less is the same silence
SPEECH = 25.0  # dB below the loud frames that still count as speech


@dataclass
class Survey:
    """What a track is like, found by reading it once.

    Attributes:
        rate, channels: of the track.
        seconds: from the film's first frame to the end of the sound.
        peak: the largest sample.
        clipped: fraction of the samples at full scale, in the worst channel.
        alone: the channel to use alone, because the mix loses it; None to mix all.
        notes: warnings about damage.
    """

    rate: int
    channels: int
    seconds: float
    peak: float
    clipped: float
    alone: int | None
    notes: list[str] = field(default_factory=list)


def survey_sound(path: str | os.PathLike, zero: float | None) -> Survey:
    """Read the sound of a film once, and check it.

    Args:
        zero: as in `read_track`.

    Raises:
        InputError: the film has no sound, or only silence, or too much; or it cannot be read.
    """
    with open_media(path) as container:
        if not container.streams.audio:
            raise InputError(f"{path} has no sound; if that is meant, add --no-audio")
    notes: list[str] = []
    meter = Meter()
    rate = channels = end = 0
    peak, clipped = 0.0, np.zeros(0, np.int64)
    blocks = read_track(path, from_first_frame=True, zero=zero, notes=notes)
    for _, block in mixed(path, blocks, None, meter):
        size = np.abs(block.samples)
        if len(size) > len(clipped):
            clipped = np.pad(clipped, (0, len(size) - len(clipped)))
        clipped[: len(size)] += (size >= FULL_SCALE).sum(axis=1)
        peak = max(peak, float(size.max()))
        rate, channels, end = block.rate, len(size), block.first + size.shape[1]
        if end > limits.MAX_SECONDS * rate:
            raise InputError(
                f"{path} has sound of more than {limits.MAX_SECONDS} s; expected at most so much"
            )
    if peak < SILENT:
        found = "no sound after its first frame" if not end else "silence for its sound"
        raise InputError(f"{path} has {found}; if that is meant, add --no-audio")
    lost = meter.lost_channel()
    if lost:
        channel, kept = lost
        notes.append(
            f"{path}: the mono mix keeps {kept:.1%} of the energy of channel {channel}, the "
            f"loudest; channel {channel} is used alone"
        )
    return Survey(
        rate=rate,
        channels=channels,
        seconds=end / rate,
        peak=peak,
        clipped=float(clipped.max() / end),
        alone=lost[0] if lost else None,
        notes=notes,
    )


def write_speech(
    path: Path,
    film: str | os.PathLike,
    survey: Survey,
    *,
    zero: float | None,
    fps: Fraction,
    kept: np.ndarray,
) -> np.ndarray:
    """Write the speech of the frames that are kept: 16 bits, 16 kHz, mono.

    It is exactly as long as the frames, rounded to a sample. Where the film has no sound, it is
    silent.

    Args:
        path: the .wav file.
        survey: of the same film.
        zero: as in `read_track`.
        kept: (N,) bool: which frames of the film, at `fps`, are kept.

    Returns:
        (N,) the loudness of all frames, kept or not, in dB of full scale.
    """
    loudness = np.full(len(kept), QUIETEST)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        pieces = _pieces(film, survey, zero)
        written = frames = 0
        for number, samples in enumerate(_by_frame(pieces, fps, len(kept))):
            power = float(np.mean(np.square(samples, dtype=np.float64))) if samples.size else 0.0
            loudness[number] = max(10 * np.log10(max(power, 1e-12)), QUIETEST)
            if kept[number]:
                frames += 1
                # Where frames were cut out, the number of samples a frame may differ by one.
                length = sample_of(frames, fps) - written
                samples = np.pad(samples, (0, max(length - len(samples), 0)), "edge")[:length]
                file.writeframesraw(_int16(samples))
                written += length
    return loudness


def speech_fraction(loudness: np.ndarray) -> float:
    """Return the fraction of the frames in which someone speaks: those that are not much quieter
    than the loud ones."""
    loud = float(np.percentile(loudness, 95))
    return float((loudness > max(loud - SPEECH, QUIETEST + 5)).mean())


def sample_of(frame: int, fps: Fraction) -> int:
    """Return the first sample of a frame."""
    return round(frame * SAMPLE_RATE / fps)


def _pieces(path: str | os.PathLike, survey: Survey, zero: float | None) -> Iterator[np.ndarray]:
    """Read the sound in pieces of mono at 16 kHz, from the film's first frame on."""
    blocks = read_track(path, from_first_frame=True, zero=zero)
    return resampled(mixed(path, blocks, survey.alone))


def _by_frame(pieces: Iterable[np.ndarray], fps: Fraction, count: int) -> Iterator[np.ndarray]:
    """Divide samples into those of each frame, with silence after their end."""
    source, rest = iter(pieces), np.zeros(0, np.float32)
    ended = False
    for frame in range(count):
        length = sample_of(frame + 1, fps) - sample_of(frame, fps)
        parts, held = [rest], len(rest)
        while held < length and not ended:
            piece = next(source, None)
            ended = piece is None
            if piece is not None:
                parts.append(piece)
                held += len(piece)
        joined = np.concatenate(parts)
        if len(joined) < length:
            joined = np.pad(joined, (0, length - len(joined)))
        rest = joined[length:]
        yield joined[:length]


def _int16(samples: np.ndarray) -> bytes:
    return np.round(samples.clip(-1, 1) * 32767).astype("<i2").tobytes()
