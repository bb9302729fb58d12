"""Read speech from audio and video files, through FFmpeg's libraries (PyAV)."""

import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

from kernels.spec import SAMPLE_RATE

from ..errors import InputError
from . import limits
from .mixdown import Meter, to_mono, to_stereo
from .track import Block, read_track

if TYPE_CHECKING:
    from torch import Tensor


def read_speech(
    path: str | os.PathLike,
    *,
    track: int | None = None,
    from_first_frame: bool = False,
    max_seconds: float = limits.MAX_SECONDS,
) -> "Tensor":
    """Read an audio track of a media file, as PCM.

    The channels are mixed to mono (see `mixdown.to_mono`), then resampled to 16 kHz. If the mix
    keeps almost nothing of the loudest channel, that channel is used alone. `read_track` defines
    sample 0 and the treatment of gaps. Warnings report damage, jumps in time, and a channel that is
    used alone.

    Args:
        path: an audio file or a film.
        track: number of the audio track, from 0; by default the first one that is marked as the
            default, else the first.
        from_first_frame: drop the sound before the first frame of a film, so that speech and frames
            begin together.
        max_seconds: the longest speech to read. A second takes 64 kB.

    Returns:
        (S,) float32, nominally in [-1, 1].

    Raises:
        InputError: there is no such file or track, FFmpeg cannot read it, it has no samples, it is
            longer than `max_seconds`, or a sample is not finite or far beyond full scale.
    """
    import torch  # late, because `read_samples` runs in processes without it

    pcm = read_samples(
        path, track=track, from_first_frame=from_first_frame, max_seconds=max_seconds
    )
    return torch.from_numpy(pcm)


def read_samples(
    path: str | os.PathLike,
    *,
    track: int | None = None,
    from_first_frame: bool = False,
    max_seconds: float = limits.MAX_SECONDS,
) -> np.ndarray:
    """Read an audio track as `read_speech` does, as a NumPy array. It needs no PyTorch."""
    found = _scan(
        path,
        track,
        from_first_frame=from_first_frame,
        max_seconds=max_seconds,
        kept_seconds=max_seconds,
    )
    assert found.pcm is not None
    return found.pcm


@dataclass(frozen=True)
class SpeechScan:
    """Speech that was decoded once, with all warnings about it. Calling it decodes it again.

    Attributes:
        path, track: the file, and the number of its audio track.
        count: number of samples at 16 kHz.
        pcm: all of them, (S,) float32; None if they are too many.
        channel: the channel to use alone; None for the mix.
        state: of the file before it was decoded.
    """

    path: str | os.PathLike
    track: int | None
    count: int
    pcm: np.ndarray | None
    channel: int | None
    state: "State | None" = None

    def __call__(self) -> Iterator["Tensor"]:
        """Yield the samples, (n,) float32 each.

        Raises:
            InputError: as `read_speech`, or the file is not as it was.
        """
        import torch

        self._check()
        blocks = mixed(self.path, read_track(self.path, self.track), self.channel)
        for piece in resampled(blocks):
            yield torch.from_numpy(piece)
        self._check()

    def _check(self) -> None:
        if _state(self.path) != self.state:
            raise InputError(f"{self.path} changed while it was in use")


State = tuple[int, int, int, int]


def _state(path: str | os.PathLike) -> State | None:
    """Return what differs after a file was replaced or written to; None if there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def scan_speech(
    path: str | os.PathLike, *, track: int | None = None, kept_seconds: float
) -> SpeechScan:
    """Decode speech as `read_speech` does, but keep only its length if it is longer than
    `kept_seconds`."""
    return _scan(
        path,
        track,
        from_first_frame=False,
        max_seconds=limits.MAX_SECONDS,
        kept_seconds=kept_seconds,
    )


def _scan(
    path: str | os.PathLike,
    track: int | None,
    *,
    from_first_frame: bool,
    max_seconds: float,
    kept_seconds: float,
) -> SpeechScan:
    notes: list[str] = []
    meter, pcm, channel = Meter(), _Pcm(path, max_seconds, kept_seconds), None
    state = _state(path)
    blocks = read_track(path, track, from_first_frame=from_first_frame, notes=notes)
    for piece in resampled(mixed(path, blocks, None, meter)):
        pcm.add(piece)
    if lost := meter.lost_channel():
        channel, kept = lost
        pcm = _Pcm(path, max_seconds, kept_seconds)
        blocks = read_track(path, track, from_first_frame=from_first_frame)
        for piece in resampled(mixed(path, blocks, channel)):
            pcm.add(piece)
        notes.append(
            f"{path}: the mono mix keeps {kept:.1%} of the energy of channel {channel}, the "
            f"loudest; channel {channel} is used alone"
        )
    for note in notes:
        warnings.warn(note, stacklevel=4)
    if pcm.count == 0:
        raise InputError(f"{path} has an audio stream of 0 samples")
    return SpeechScan(path, track, pcm.count, pcm.samples(), channel, state)


def mixed(
    path: str | os.PathLike,
    blocks: Iterable[Block],
    channel: int | None,
    meter: Meter | None = None,
) -> Iterator[tuple[np.ndarray, Block]]:
    """Yield each block's mono samples: its mix, or a channel alone, where the block has it.

    Args:
        meter: it measures what the mix keeps of the channels.

    Raises:
        InputError: as `check_samples`.
    """
    for block in blocks:
        check_samples(path, block)
        samples = block.samples
        alone = channel is not None and channel < len(samples)
        mono = samples[channel] if alone else to_mono(samples, block.names)
        if meter is not None:
            meter.add(samples, block.names, mono)
        yield mono, block


def audio_blocks(
    path: str | os.PathLike, *, track: int | None = None
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Read the sound for the video: the track of `read_speech` in mono or stereo, at its own rate.

    More than two channels are mixed to stereo (see `mixdown.to_stereo`). They are read twice,
    because players clip samples beyond 1: the first pass measures the peak, and the second scales
    the whole mix if the peak exceeds 1. Mono and stereo are not scaled.

    Yields:
        Samples (1 or 2, n) float32, the rate in Hz, and the number of the first sample.

    Raises:
        InputError: as `read_speech`, except that tracks may be empty or of any length.
    """
    channels, surround = 0, None
    for block in read_track(path, track):
        check_samples(path, block)
        samples, names, gain = block.samples, block.names, np.float32(1)
        channels = channels or min(len(samples), 2)
        if len(samples) > 2:
            surround = surround or _stereo_mix(path, track)
            alone, gain = surround
            if alone is not None:
                samples = samples[alone : alone + 1]
        if len(samples) != 1 or channels != 1:
            samples = to_stereo(samples, names)
        if len(samples) > channels:
            samples = samples.mean(axis=0, keepdims=True, dtype=np.float32)
        yield samples * gain if gain != 1 else samples, block.rate, block.first


def _stereo_mix(path: str | os.PathLike, track: int | None) -> tuple[int | None, np.float32]:
    """Return the channel to use alone (None: mix all), and the gain that keeps the mix within 1."""
    meter, peak = Meter(), 1.0
    for block in read_track(path, track):
        meter.add(block.samples, block.names, to_mono(block.samples, block.names))
        if len(block.samples) > 2:
            peak = max(peak, float(np.abs(to_stereo(block.samples, block.names)).max()))
    lost = meter.lost_channel()
    return (lost[0], np.float32(1)) if lost else (None, np.float32(1 / peak))


def audio_frame(block: np.ndarray, rate: int, first: int) -> av.AudioFrame:
    """Make an audio frame of (1 or 2, n) float32 samples."""
    layout = "mono" if block.shape[0] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "fltp", layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
    return frame


def resampled(blocks: Iterable[tuple[np.ndarray, Block]]) -> Iterator[np.ndarray]:
    """Resample mono samples to 16 kHz; each comes with its block, which has the rate."""
    resampler = None
    for mono, block in blocks:
        if block.rate == SAMPLE_RATE:
            yield mono
            continue
        resampler = resampler or av.AudioResampler("flt", "mono", SAMPLE_RATE)
        frame = audio_frame(mono[None], block.rate, block.first)
        for part in resampler.resample(frame):
            yield part.to_ndarray()[0]
    if resampler is not None:
        for part in resampler.resample(None):
            yield part.to_ndarray()[0]


class _Pcm:
    """Collects samples at 16 kHz in one array, which takes half the memory of joining parts.

    Args:
        path: for the error.
        max_seconds: more of them are an error.
        kept_seconds: more of them are only counted.
    """

    def __init__(self, path: str | os.PathLike, max_seconds: float, kept_seconds: float):
        self._path, self._max_seconds, self._kept_seconds = path, max_seconds, kept_seconds
        self._array: np.ndarray | None = np.empty(0, np.float32)
        self.count = 0

    def add(self, part: np.ndarray) -> None:
        first, self.count = self.count, self.count + len(part)
        if self.count > self._max_seconds * SAMPLE_RATE:
            raise InputError(
                f"{self._path} is longer than {self._max_seconds:g} s; split it into shorter files"
            )
        if self.count > self._kept_seconds * SAMPLE_RATE:
            self._array = None
        if self._array is None:
            return
        if self.count > len(self._array):
            # By a minute: the operating system moves an array of this size without a copy.
            self._array.resize(self.count + 60 * SAMPLE_RATE, refcheck=False)
        self._array[first : self.count] = part

    def samples(self) -> np.ndarray | None:
        if self._array is not None:
            self._array.resize(self.count, refcheck=False)
        return self._array


def check_samples(path: str | os.PathLike, block: Block) -> None:
    """Raise InputError if a sample is not finite, or far beyond full scale."""
    samples, most = block.samples, limits.MAX_AMPLITUDE
    if samples.min() >= -most and samples.max() <= most:  # neither is true of NaN
        return
    number, channel = np.argwhere(~(np.abs(samples.T) <= most))[0]
    sample, value = block.first + number, samples[channel, number]
    expected = "a finite value"
    if np.isfinite(value):
        expected = "-1 to 1; scale integers, for example: ffmpeg -i IN -af volume=1/32768 OUT.wav"
    raise InputError(
        f"{path}: sample {sample} ({sample / block.rate:.3f} s) of channel {channel} "
        f"is {value:g}; expected {expected}"
    )
