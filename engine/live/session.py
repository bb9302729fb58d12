"""One live stream: speech in as it is spoken, frames and their sound out."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from fractions import Fraction

import numpy as np
from torch import Tensor

from ..errors import DeviceError, InputError
from ..forks import check_fork
from ..media.limits import MAX_AMPLITUDE
from .features import FeatureStream, first_sample
from .job import Renderer
from .piece import Counts, Piece
from .stream import MOST_UTTERANCES, SpeechStream

CLOCKS = ("wall", "taken")

Waiter = tuple[asyncio.AbstractEventLoop, asyncio.Future]


class SessionState:
    """A session as the scheduler sees it. `lock` guards all of it but the features, which are the
    scheduler's.

    Args:
        renderer: makes its features and frames.
        stream: the session's speech.
        features: of that speech.
        picture: makes the avatar's frame number out of a frame's number.
        clock: "wall" or "taken".
        begin: time at which frame 0 is due.
        ahead: frames that may be made before they are due or asked for.
        wake: called with the session when the scheduler may have something to do for it, and
            whether at once.
    """

    def __init__(
        self,
        renderer: Renderer,
        stream: SpeechStream,
        features: FeatureStream,
        picture: Callable[[int], int],
        *,
        fps: Fraction,
        clock: str,
        begin: float,
        ahead: int,
        wake: Callable[["SessionState", bool], None],
    ):
        self.lock = threading.RLock()
        self.renderer, self.stream, self.features = renderer, stream, features
        self.picture = picture
        self.fps, self.clock, self.begin, self.ahead, self._wake = fps, clock, begin, ahead, wake
        self.seconds_ahead = ahead / float(fps)
        self.patience = max(ahead, 1) / float(fps)  # a frame that is later has no picture
        self.counts, self.generation, self.closed = Counts(), 0, False
        self.failure: BaseException | None = None  # why it is closed, if nobody wanted that
        self.queue: deque[Piece] = deque()
        self.waiting_since = begin  # when a piece was taken, or the first one came
        self.taken = 0  # the first frame that nobody got
        self.speaks_to = 0  # the end of the frames with speech that are bound
        # without a picture, and therefore there before those that are still being made
        self._early: deque[Piece] = deque()
        self._next = 0  # number of the next piece in the queue
        self._arrived = threading.Condition(self.lock)
        self._waiters: list[Waiter] = []
        self.wanted = 0  # takers that wait
        self.in_flight = 0  # frames that are bound and not delivered

    def due(self, frame: int) -> float:
        """Return the time at which a frame is to be handed out."""
        return self.begin + frame * self.fps.denominator / self.fps.numerator

    def wake(self, *, now: bool = True) -> None:
        """Let the scheduler look at this session, now or when it looks again anyway: with a
        session in real time, a few milliseconds later."""
        self._wake(self, now)

    def deliver(self, piece: Piece, now: float) -> "list[Waiter]":
        """Queue a piece, after those of the frames before it. A client that is slow loses pictures,
        never sound.

        Returns:
            Who waits for it, to be called by `finish`.
        """
        if piece.number != self._next:
            self._early.append(piece)
            return []
        self._enqueue(piece, now)
        while self._early and self._early[0].number == self._next:
            self._enqueue(self._early.popleft(), now)
        return self._notify()

    def _enqueue(self, piece: Piece, now: float) -> None:
        if not self.queue:
            self.waiting_since = now
        self.queue.append(piece)
        self._next += 1
        if self.clock == "wall" and now > self.due(piece.number):
            self.counts.late += 1
        extra = len(self.queue) - 2 * self.ahead - 2
        if extra > 0 and len(self.queue[extra - 1].frames):
            old = self.queue[extra - 1]
            # not a view, which would keep the picture's memory
            old.frames = old.frames.new_empty(0, *old.frames.shape[1:])
            self.counts.skipped += 1

    def take(self, now: float) -> Piece | None:
        """Return the next piece, None if there is none yet."""
        if not self.queue:
            return None
        piece = self.queue.popleft()
        self.taken, self.waiting_since = piece.number + 1, now
        self.counts.frames += 1
        if self.clock == "taken":
            self.wake()
        return piece

    def wait(self, timeout: float | None) -> bool:
        """Wait until there is a piece or the session is closed."""
        self.wanted += 1
        if self.clock == "taken":
            self.wake()
        try:
            return self._arrived.wait_for(lambda: self.closed or bool(self.queue), timeout)
        finally:
            self.wanted -= 1

    def waiter(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future:
        future = loop.create_future()
        self.wanted += 1
        if self.clock == "taken":
            self.wake()
        self._waiters.append((loop, future))
        return future

    def leave(self, future: asyncio.Future) -> None:
        """Forget a waiter that was cancelled; nothing if it got what it waited for."""
        others = [waiter for waiter in self._waiters if waiter[1] is not future]
        self.wanted -= len(self._waiters) - len(others)
        self._waiters = others

    def interrupt(self) -> None:
        if self.stream.waiting or self.speaks_to > self.taken:
            self.counts.interruptions += 1
        self.speaks_to = 0
        self.generation += 1
        self.queue.clear()
        self._early.clear()
        self._next = self.taken
        self.stream.interrupt(self.taken)

    def close(self, failure: BaseException | None = None) -> None:
        self.closed, self.failure = True, failure
        self.queue.clear()
        self._early.clear()
        self.stream.clear()
        finish(self._notify())
        self.wake()

    def forget(self) -> None:
        """Drop what no frame needs any more, even after an interruption."""
        self.stream.forget(self.taken, first_sample(self.taken, self.fps))

    def _notify(self) -> "list[Waiter]":
        self._arrived.notify_all()
        waiters = list(self._waiters)
        self._waiters.clear()
        self.wanted -= len(waiters)
        return waiters


def finish(waiters: list[Waiter]) -> None:
    """Let coroutines go on that waited. Each event loop is called once, because a call wakes it."""
    futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future]] = {}
    for loop, future in waiters:
        futures.setdefault(loop, []).append(future)
    for loop, waiting in futures.items():
        with suppress(RuntimeError):  # the loop is closed, and so is whoever waited
            loop.call_soon_threadsafe(_finish, waiting)


def _finish(futures: list[asyncio.Future]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class Session:
    """A live stream with one avatar. Made by `Live.open`; any thread or coroutine may use it.

    Iterate over it, with `for` or `async for`, to get its pieces until it is closed.

    Attributes:
        sample_rate: of the sound in and out, Hz.
        channels: of the sound in and out.
        fps: frames a second.
    """

    def __init__(
        self,
        state: SessionState,
        *,
        sample_rate: int,
        channels: int,
        now: Callable[[], float],
    ):
        self._state, self._now = state, now
        self._pushing = threading.Lock()  # one push or flush after another
        self.sample_rate, self.channels, self.fps = sample_rate, channels, state.fps

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        self._state.counts.underruns = self._state.stream.underruns
        return self._state.counts

    @property
    def closed(self) -> bool:
        """Whether the session has ended."""
        return self._state.closed

    def due(self, number: int) -> float:
        """Return the time, of `time.monotonic()`, at which a frame of a session in real time is to
        be shown."""
        return self._state.due(number)

    def push(self, sound: np.ndarray | Tensor) -> None:
        """Append speech to the utterance that has not ended, or begin one. No samples begin none.

        Args:
            sound: (S,) or (C, S), int16 or float32 in [-1, 1], at the session's rate.

        Raises:
            InputError: another shape or dtype, a sample that is not finite or far beyond full
                scale, more than ten minutes or 1000 utterances that wait, or a closed session.
        """
        check_fork()  # before the lock, which a thread of the parent may have held
        samples, state = _as_float(sound, self.channels), self._state
        with self._pushing:
            with state.lock:
                self._check_open()
                if not samples.shape[1]:
                    return
                utterance = state.stream.utterance(samples.shape[1])
                if utterance is None:
                    waiting = f"{state.stream.waiting_samples / self.sample_rate:.0f} s of speech"
                    if state.stream.waiting_utterances >= MOST_UTTERANCES:
                        waiting = f"{MOST_UTTERANCES} utterances"
                    raise InputError(f"{waiting} wait to be shown; push more when some are taken")
            for first in range(0, samples.shape[1], self.sample_rate):
                part = samples[:, first : first + self.sample_rate]
                pcm = utterance.convert(part)  # without the lock, for which all sessions may wait
                with state.lock:
                    utterance.append(part, pcm)
                state.wake(now=state.clock == "taken")

    def flush(self) -> None:
        """End the utterance: what follows it is silence, and it waits for no more speech."""
        with self._pushing, self._state.lock:
            self._check_open()
            self._state.stream.flush()
        self._state.wake()

    def interrupt(self) -> Fraction:
        """Drop all speech that nobody got. Its sound fades out over 10 ms, the mouth closes.

        LiveKit calls this `clear_buffer`.

        Returns:
            Seconds from the session's beginning to the end of what was handed out.
        """
        with self._state.lock:
            self._check_open()
            self._state.interrupt()
            position = self._state.taken / self.fps
        self._state.wake()
        return position

    def take(self, timeout: float | None = None) -> Piece | None:
        """Wait for the next piece. None after `timeout` seconds, or when the session is closed.

        Raises:
            InputError, DeviceError: the session ended because nobody took its pieces for too long,
                a network returned NaN, a frame could not be decoded, or the device failed.
        """
        check_fork()
        state = self._state
        with state.lock:
            while not state.queue:
                if state.closed:
                    self._raise_failure()
                    return None
                if not state.wait(timeout):
                    return None
            return state.take(self._now())

    def close(self) -> None:
        """End the session and free what it holds. Closing twice does nothing."""
        with self._state.lock:
            if not self._state.closed:
                self._state.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self.take()) is not None:
            yield piece

    async def __aiter__(self) -> AsyncIterator[Piece]:
        check_fork()
        state, loop = self._state, asyncio.get_running_loop()
        while True:
            with state.lock:
                piece = state.take(self._now())
                if piece is None and state.closed:
                    self._raise_failure()
                    return
                future = state.waiter(loop) if piece is None else None
            if piece is not None:
                yield piece
            elif future is not None:
                try:
                    await future
                finally:
                    with state.lock:
                        state.leave(future)

    def _check_open(self) -> None:
        if self._state.closed:
            self._raise_failure()
            raise InputError("the session is closed")

    def _raise_failure(self) -> None:
        """Raise why the session ended, if nobody closed it."""
        failure = self._state.failure
        if isinstance(failure, InputError | DeviceError):
            raise type(failure)(str(failure)) from failure
        if failure is not None:
            raise DeviceError(f"live sessions failed: {failure!r}") from failure


def _as_float(sound: np.ndarray | Tensor, channels: int) -> np.ndarray:
    """Return (C, n) float32 samples, copied."""
    samples = sound.detach().cpu().numpy() if isinstance(sound, Tensor) else np.asarray(sound)
    if samples.ndim == 0:  # bytes, None
        raise InputError(
            f"sound is of the type {type(sound).__name__}; expected an array of int16 or float32, "
            "as numpy.frombuffer(sound, numpy.int16) makes of bytes"
        )
    if samples.ndim == 1:
        samples = samples[None]
    if samples.ndim != 2 or samples.shape[0] != channels:
        expected = "(S,)" if channels == 1 else f"({channels}, S)"
        raise InputError(f"sound has the shape {np.shape(sound)}; expected {expected}")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / 32768
    if samples.dtype != np.float32:
        raise InputError(f"sound is {samples.dtype}; expected int16 or float32")
    wrong = ~(np.abs(samples) <= MAX_AMPLITUDE)  # not true of NaN
    if wrong.any():
        value = samples[wrong][0]
        raise InputError(
            f"sound has a sample of {value:g}; expected -1 to 1; scale integers"
            if np.isfinite(value)
            else "sound has a sample that is not finite"
        )
    return samples.copy()
