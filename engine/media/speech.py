"""Speech out of audio and video files, through FFmpeg's libraries (PyAV)."""

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch

from kernels import SAMPLE_RATE

from ..errors import InputError
from .files import open_media, reading


def read_speech(path: str | os.PathLike) -> torch.Tensor:
    """Read the first audio stream of any file that FFmpeg reads, as PCM.

    Channels are averaged, then resampled to 16 kHz.

    Returns:
        (S,) float32, nominally in [-1, 1].

    Raises:
        InputError: no such file, nothing FFmpeg can read, no audio stream, no samples, or a
            sample that is not finite.
    """
    resampler, blocks = None, []
    for channels, rate, first in audio_blocks(path):
        _check_finite(path, channels, rate, first)
        mono = channels.mean(axis=0, dtype=np.float32)
        if rate == SAMPLE_RATE:
            blocks.append(mono)
            continue
        resampler = resampler or av.AudioResampler("flt", "mono", SAMPLE_RATE)
        blocks += _resampled(resampler, audio_frame(mono[None], rate, first))
    if resampler is not None:
        blocks += _resampled(resampler, None)
    pcm = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    if pcm.size == 0:
        raise InputError(f"{path} has an audio stream of 0 samples")
    return torch.from_numpy(pcm)


def audio_blocks(path: str | os.PathLike) -> Iterator[tuple[np.ndarray, int, int]]:
    """The samples of a file as they are decoded: (channels, n) float32, rate in Hz, first's number.

    Mixing down is left to the caller: FFmpeg's own lets loud stereo pass 1.
    """
    with open_media(path) as container:
        if not container.streams.audio:
            held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise InputError(f"{path} has no audio stream (it holds {held})")
        stream = container.streams.audio[0]
        begin = now = None  # layout and rate of the first frame; format, layout and rate of this
        first = 0
        with reading(path):
            for frame in _audio_frames(container, stream):
                begin = begin or (frame.layout.name, frame.rate)
                if now != (now := (frame.format.name, frame.layout.name, frame.rate)):
                    # also in the middle: joined files may change, and become like their beginning
                    converter = av.AudioResampler("fltp", *begin)
                frame.pts = None
                for part in converter.resample(frame):
                    block = part.to_ndarray()
                    yield block, part.sample_rate, first
                    first += block.shape[1]


def _audio_frames(container: Any, stream: Any) -> Iterator[av.AudioFrame]:
    """What can be decoded: a damaged packet is passed over, unless all are."""
    damaged = None
    decoded = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            damaged = error
            continue
        decoded = decoded or bool(frames)
        yield from frames
    if damaged and not decoded:
        raise damaged


def audio_frame(block: np.ndarray, rate: int, first: int) -> av.AudioFrame:
    """(channels, n) float32 as a frame; one channel or two."""
    layout = "mono" if block.shape[0] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), "fltp", layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
    return frame


def _resampled(resampler: av.AudioResampler, frame: av.AudioFrame | None) -> list[np.ndarray]:
    return [part.to_ndarray()[0] for part in resampler.resample(frame)]


def _check_finite(path: str | os.PathLike, channels: np.ndarray, rate: int, first: int) -> None:
    if np.isfinite(channels).all():
        return
    sample, channel = np.argwhere(~np.isfinite(channels.T))[0]
    raise InputError(
        f"{path}: sample {first + sample} ({(first + sample) / rate:.3f} s) of channel {channel} "
        f"is {channels[channel, sample]}, samples must be finite"
    )
