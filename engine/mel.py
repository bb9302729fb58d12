"""The mel of a speech of any length, of which only the rows that are needed next are kept."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Protocol

import torch
from torch import Tensor

import kernels
from kernels.spec import HOP_LENGTH, MEL_BANDS, MEL_RATE, WIN_LENGTH

from .device.stopwatch import Stopwatch
from .pcm import PcmReader, Speech
from .rows import NewestRows

# Rows computed at once: 205 s, of 13 MB of samples. A multiple of `LEAD`.
PIECE = 1 << 14
# Rows computed before a piece's own, and dropped: the first ones lack the samples before them. Both
# implementations of `kernels.log_mel` work on blocks of rows that divide it, so that the blocks of
# a piece are those of the whole speech, to the last bit.
LEAD = 2048


class Read(Protocol):
    def __call__(self, first: int, last: int) -> Callable[[], Tensor]:
        """Begin to read samples `first` to `last`, and return what waits for them."""
        ...


class Mel:
    """The mel windows of a speech, in ascending order. See `open`.

    Args:
        speech: its samples are read when they are needed.
        fps: video frames per second.
        device: of the mel.
        upload: returns a copy of samples on the device.
        read: reads samples.
        start: the first window.
        most: windows that are cut at once.
        stopwatch: measures the stage "log_mel".
    """

    def __init__(
        self,
        speech: Speech,
        fps: float,
        device: torch.device,
        *,
        upload: Callable[[Tensor], list[Tensor]],
        read: Read,
        start: int,
        most: int,
        stopwatch: Stopwatch,
    ):
        self._fps, self._upload, self._read, self._stopwatch = fps, upload, read, stopwatch
        self._samples = speech.count
        self._count = kernels.mel_rows(speech.count)
        self._next = self._begin(start) // PIECE * PIECE  # row to compute next
        kept = int(most * MEL_RATE / fps) + kernels.MEL_WINDOW_ROWS + 1
        room = min(2 * kept + PIECE, self._count - self._next)
        self._rows = NewestRows(room, MEL_BANDS, torch.float32, device, first=self._next)
        self._ahead = self._submit()

    @classmethod
    @contextmanager
    def open(cls, speech: Speech, *arguments: object, **options: object) -> Iterator["Mel"]:
        """Open the mel. Until the block ends, a thread decodes what is not in memory, one piece
        ahead."""
        reader = speech.reader()
        with ExitStack() as stack:
            read: Read = _read_now(reader)
            if not speech.held:
                thread = stack.enter_context(ThreadPoolExecutor(1, "viseme-speech"))
                stack.callback(_close, reader, thread)
                read = _read_ahead(reader, thread)
            yield cls(speech, *arguments, read=read, **options)  # type: ignore[arg-type]

    def windows(self, start: int, count: int, out: Tensor) -> None:
        """Cut mel windows, see `kernels.mel_windows`. `start` never decreases."""
        begin = self._begin(start)
        needed = min(self._begin(start + count - 1) + kernels.MEL_WINDOW_ROWS, self._count)
        while self._rows.stop < needed:
            self._compute(begin)
        with self._stopwatch.stage("windows"):
            kernels.mel_windows(
                self._rows.rows(), fps=self._fps, start=start, count=count,
                dropped=self._rows.first, out=out,
            )  # fmt: skip

    def _begin(self, window: int) -> int:
        row = int(MEL_RATE * window / self._fps)
        return max(min(row, self._count - kernels.MEL_WINDOW_ROWS), 0)

    def _compute(self, keep: int) -> None:
        """Compute the next piece. Rows before `keep` are not needed any more."""
        first, last = self._next, min(self._next + PIECE, self._count)
        (pcm,) = self._upload(self._ahead())
        self._next = last
        if last < self._count:
            self._ahead = self._submit()
        lead = min(first, LEAD)
        with self._stopwatch.stage("log_mel"):
            mel = kernels.log_mel(pcm)
            self._rows.append(mel[lead : lead + last - first], keep)

    def _submit(self) -> Callable[[], Tensor]:
        """Begin to read the samples of the next piece."""
        first = max(self._next - LEAD, 0) * HOP_LENGTH
        last = self._samples
        if self._next + PIECE < self._count:
            last = (self._next + PIECE - 1) * HOP_LENGTH + WIN_LENGTH // 2
        return self._read(first, min(last, self._samples))


def _close(reader: PcmReader, thread: ThreadPoolExecutor) -> None:
    """Let the thread close the reader, which it may be using."""
    with suppress(RuntimeError):  # the interpreter is about to end, and has ended the thread
        thread.submit(reader.close)


def _read_now(reader: PcmReader) -> Read:
    return lambda first, last: lambda: reader.read(first, last)


def _read_ahead(reader: PcmReader, thread: ThreadPoolExecutor) -> Read:
    return lambda first, last: thread.submit(reader.read, first, last).result
