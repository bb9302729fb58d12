"""Take speech from a file or an array, check that it can be rendered, and read it in pieces."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

import kernels

from .errors import InputError
from .forks import keep_in_children
from .media.limits import MAX_AMPLITUDE

KEPT_SECONDS = 600  # of a file's speech. A longer one is decoded again while it is rendered.
CHECKED = 1 << 24  # samples whose values are checked at once


class PcmReader(Protocol):
    """Reads the samples of a speech in ascending order."""

    def read(self, first: int, last: int) -> Tensor:
        """Return samples `first` to `last` (exclusive), float32. `first` never decreases.

        Raises:
            InputError: the file cannot be read any more, or has changed.
        """
        ...

    def close(self) -> None: ...


class Speech:
    """Speech that can be rendered: PCM at 16 kHz. `open_speech` returns it.

    Attributes:
        count: number of samples.
        held: whether all samples are in memory; otherwise readers decode the file again.
    """

    def __init__(self, count: int, pcm: Tensor | None, pieces: "Pieces | None" = None):
        self.count, self.held = count, pcm is not None
        self._pcm, self._pieces = pcm, pieces

    def reader(self) -> PcmReader:
        """Return a reader, which starts at the first sample."""
        if self._pcm is not None:
            return _TensorReader(self._pcm)
        assert self._pieces is not None
        return _FileReader(self._pieces, self.count)


class Pieces(Protocol):
    """Decodes a file."""

    @property
    def path(self) -> str | os.PathLike[str]: ...
    def __call__(self) -> Iterator[Tensor]:
        """Yield the samples from the first one on, (n,) float32 each."""
        ...


def open_speech(
    speech: str | os.PathLike[str] | Tensor | np.ndarray | Speech, *, track: int | None = None
) -> Speech:
    """Read speech, and check that it can be rendered.

    Of a file of more than ten minutes only the length is kept, so that its memory does not grow
    with it.

    Args:
        speech: an audio or video file, or (S,) float32 at 16 kHz, a tensor or a NumPy array.
        track: the audio track of a file, as in `read_speech`.

    Raises:
        InputError: it is none of these, cannot be read, is shorter than one mel window (3000
            samples), or has a sample that is not finite or far beyond full scale.
    """
    if isinstance(speech, Speech):
        return speech
    if isinstance(speech, Tensor | np.ndarray):
        pcm = check_pcm(speech)
        return Speech(len(pcm), pcm)
    if not isinstance(speech, str | os.PathLike):
        raise InputError(
            f"speech is of the type {type(speech).__name__}; expected a file, or (S,) float32, a "
            "tensor or a NumPy array"
        )
    from .media.speech import scan_speech  # late, because PCM needs no FFmpeg

    found = scan_speech(speech, track=track, kept_seconds=KEPT_SECONDS)
    _check_length(speech, found.count)
    return Speech(found.count, None if found.pcm is None else torch.from_numpy(found.pcm), found)


def check_pcm(pcm: Tensor | np.ndarray) -> Tensor:
    """Check that speech can be rendered.

    Args:
        pcm: (S,) float32 at 16 kHz.

    Returns:
        The speech as a tensor without gradients, which shares the memory of `pcm` if it can.

    Raises:
        InputError: it has another shape or dtype, is shorter than one mel window (3000 samples), or
            has a sample that is not finite or far beyond full scale.
    """
    dtype = np.float32 if isinstance(pcm, np.ndarray) else torch.float32
    if pcm.ndim != 1 or pcm.dtype != dtype:
        found = str(pcm.dtype).removeprefix("torch.")
        raise InputError(f"speech is {tuple(pcm.shape)} {found}; expected (S,) float32")
    if isinstance(pcm, np.ndarray):  # PyTorch takes no negative strides, and warns of read-only
        pcm = torch.from_numpy(np.require(pcm, np.float32, ("C", "W")))
    pcm = pcm.detach()
    _check_length("speech", pcm.numel())
    for number, part in enumerate(pcm.split(CHECKED)):
        right = part.abs() <= MAX_AMPLITUDE  # not true of NaN
        if not right.all():
            sample = number * CHECKED + int((~right).nonzero()[0])
            value = float(pcm[sample])
            expected = "-1 to 1; scale integers" if math.isfinite(value) else "a finite value"
            raise InputError(f"speech: sample {sample} is {value:g}; expected {expected}")
    return pcm


def _check_length(name: str | os.PathLike[str], samples: int) -> None:
    if samples < kernels.MIN_SAMPLES:
        raise InputError(
            f"{name} is too short: {samples} samples at 16 kHz "
            f"({samples / kernels.SAMPLE_RATE:.3f} s); expected at least "
            f"{kernels.MIN_SAMPLES} ({kernels.MIN_SAMPLES / kernels.SAMPLE_RATE:.2f} s)"
        )


class _TensorReader:
    def __init__(self, pcm: Tensor):
        self._pcm = pcm

    def read(self, first: int, last: int) -> Tensor:
        return self._pcm[first:last]

    def close(self) -> None:
        pass


class _FileReader:
    """Decodes a file, and keeps the samples that may be read again."""

    def __init__(self, pieces: Pieces, count: int):
        keep_in_children(self)
        self._path, self._count = pieces.path, count
        self._pieces = pieces()
        self._kept: list[Tensor] = []
        self._first = self._last = 0  # of what is kept

    def read(self, first: int, last: int) -> Tensor:
        while self._last < last:
            piece = next(self._pieces, None)
            if piece is None:
                raise InputError(f"{self._path} changed while it was in use")
            self._last += len(piece)
            self._kept.append(piece)
            while self._first + len(self._kept[0]) <= first:
                self._first += len(self._kept.pop(0))
                if not self._kept:
                    break
        if last == self._count and (self._last > last or next(self._pieces, None) is not None):
            raise InputError(f"{self._path} changed while it was in use")
        return torch.cat(self._kept)[first - self._first : last - self._first]

    def close(self) -> None:
        with suppress(InputError):
            self._pieces.close()  # type: ignore[attr-defined]  # a generator
        self._kept.clear()
