"""What clients of a session say, sound and texts, on its way into the session."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from fractions import Fraction
from typing import Protocol

import numpy as np

from engine.errors import InputError, one_line
from engine.live import Piece, Session
from engine.media.limits import MAX_AMPLITUDE

from ..refused import Refused, refused
from ..speech import INLINE_SECONDS, Backlog

MOST_TEXTS = 20  # that may wait to be spoken

_log = logging.getLogger(__name__)


class Voice(Protocol):
    """Text to speech."""

    @property
    def max_characters(self) -> int: ...

    def speak(self, text: str, sample_rate: int) -> AsyncGenerator[np.ndarray, None]:
        """Yield (n,) samples, int16 or float32, at that rate, as they are made.

        Raises:
            InputError: the voice fails, in one line for the client.
        """
        ...

    async def close(self) -> None:
        """Free what it holds."""
        ...


FLUSH = object()
Said = np.ndarray | str | object  # samples, a text to be spoken, or FLUSH


class Feed:
    """Puts into a session what is said to it, in order, and never so much at a time that others
    wait for its conversion. For the event loop.

    Args:
        session: of the engine.
        voice: speaks texts; None if there is none.
        woken: called when there is new speech.

    Attributes:
        backlog: speech that was pushed and not shown yet.
        fault: why the last text was not spoken; None if it was.
    """

    def __init__(self, session: Session, voice: Voice | None, woken: Callable[[], None]):
        self.backlog = Backlog(session.sample_rate, session.channels)
        self.fault: str | None = None
        self._session, self._voice, self._woken = session, voice, woken
        self._said: deque[Said] = deque()  # what is not in the session yet
        self._ends = 0  # of utterances, among it
        self._feeding: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._closed: str | None = None  # why

    def push(self, samples: np.ndarray) -> None:
        """As `WebSession.push`."""
        samples = self._checked(samples)
        if not self.backlog.has_room(samples.shape[1], self._ends):
            raise Refused(429, self.backlog.full)
        self._append(samples)

    async def push_waiting(self, samples: np.ndarray) -> None:
        """As `WebSession.push_waiting`."""
        samples = self._checked(samples)
        await self._wait_for_room(samples.shape[1], pushed=True)
        self._append(samples)

    def flush(self) -> None:
        """As `WebSession.flush`."""
        self.check_open()
        if self._feeding is None:
            self._flush()
        elif not (self._said and self._said[-1] is FLUSH):
            self._ends += 1
            self._say(FLUSH)

    def say(self, text: str) -> None:
        """As `WebSession.say`."""
        self.check_open()
        if self._voice is None:
            line = "this server has no voice; expected one in its configuration (web.voice)"
            raise Refused(501, line)
        most = self._voice.max_characters
        if len(text) > most:
            line = f"the text has {len(text)} characters; expected at most {most}"
            raise Refused(413, line)
        waiting = sum(isinstance(said, str) for said in self._said)
        if waiting >= MOST_TEXTS:
            line = f"{waiting} texts wait to be spoken; expected fewer than {MOST_TEXTS}"
            raise Refused(429, line)
        if text.strip():
            self._say(text)

    def interrupt(self) -> Fraction:
        """As `WebSession.interrupt`."""
        self.check_open()
        self._stop()
        with _refusing():
            position = self._session.interrupt()
        self.backlog.clear()
        self._room.set()
        return position

    def take(self, piece: Piece) -> None:
        """Note a piece that was taken."""
        self.backlog.take(piece)
        self._room.set()

    def close(self, reason: str) -> None:
        """Refuse all that comes from now on."""
        self._closed = reason
        self._stop()
        self._room.set()

    def check_open(self) -> None:
        if self._closed is not None:
            raise Refused(410, self._closed)

    # ---------------------------------------------------------------------------------------------

    def _checked(self, samples: np.ndarray) -> np.ndarray:
        """Return samples as (C, S)."""
        self.check_open()
        channels = self._session.channels
        if samples.ndim == 1:
            samples = samples[None]
        if samples.ndim != 2 or samples.shape[0] != channels:
            line = f"sound has the shape {samples.shape}; expected ({channels}, S)"
            raise Refused(400, line)
        if samples.dtype not in (np.int16, np.float32):
            line = f"sound is {samples.dtype}; expected int16 or float32"
            raise Refused(400, line)
        if samples.dtype == np.float32 and samples.size:
            # Much larger ones would make the networks' outputs infinite.
            worst = max(float(samples.max()), -float(samples.min()))
            if not worst <= MAX_AMPLITUDE:
                line = f"sound has a sample of {worst:g}; expected -1 to 1"
                raise Refused(400, line)
        return samples

    def _append(self, samples: np.ndarray) -> None:
        """Append samples for which there is room."""
        count = samples.shape[1]
        if not count:
            return
        self.backlog.waiting += count
        if self._feeding is None and count <= INLINE_SECONDS * self._session.sample_rate:
            self._push(samples)
        else:
            self._say(samples.copy())

    def _say(self, said: Said) -> None:
        self._said.append(said)
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed())

    async def _feed(self) -> None:
        try:
            while self._said:
                said = self._said.popleft()
                if said is FLUSH:
                    self._ends -= 1
                    self._flush()
                elif isinstance(said, str):
                    await self._speak(said)
                elif isinstance(said, np.ndarray):
                    await self._push_parts(said)
        except Refused as error:  # the session has ended
            _log.debug("speech was dropped: %s", error)
        finally:
            if asyncio.current_task() is self._feeding:
                self._feeding = None

    async def _push_parts(self, samples: np.ndarray) -> None:
        step = int(INLINE_SECONDS * self._session.sample_rate)
        for first in range(0, samples.shape[1], step):
            self._push(samples[:, first : first + step])
            await asyncio.sleep(0)

    async def _speak(self, text: str) -> None:
        """Make an utterance of a text."""
        assert self._voice is not None
        self._flush()
        try:
            spoken = self._voice.speak(text, self._session.sample_rate)
            async with aclosing(spoken):
                async for part in spoken:
                    samples = np.repeat(part.reshape(1, -1), self._session.channels, axis=0)
                    samples = self._checked(samples)
                    await self._wait_for_room(samples.shape[1])
                    self.backlog.waiting += samples.shape[1]
                    await self._push_parts(samples)
            self.fault = None
        except InputError as error:
            self.fault = one_line(error)
            _log.warning("a text was not spoken: %s", self.fault)
        except Refused:
            raise
        except Exception:
            self.fault = "the voice failed, as the server's log describes"
            _log.exception("a text was not spoken")
        self._flush()

    async def _wait_for_room(self, count: int, *, pushed: bool = False) -> None:
        """Wait for room in the session; for what is pushed, behind all that is on its way to it."""
        while not self.backlog.has_room(count, self._ends if pushed else 0):
            if count > self.backlog.most:
                raise Refused(413, self.backlog.full)
            self._room.clear()
            await self._room.wait()
            self.check_open()

    def _push(self, samples: np.ndarray) -> None:
        with _refusing():
            self._session.push(samples)
        self.backlog.begin()
        self._woken()

    def _flush(self) -> None:
        if self.backlog.open:
            with _refusing():
                self._session.flush()
            self.backlog.flush()
            self._woken()

    def _stop(self) -> None:
        """Forget what is not in the session yet."""
        self._said.clear()
        self._ends = 0
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None


@contextmanager
def _refusing() -> Iterator[None]:
    """Give errors of the engine their status."""
    try:
        yield
    except InputError as error:
        raise refused(error) from error
