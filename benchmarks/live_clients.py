"""Clients of live sessions: speech pushed in real time, frames taken by one asyncio loop."""

import asyncio
import threading
import time
import wave
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import kernels
from examples import DEMO

STEP = 320  # samples that are pushed at once: 20 ms
NEEDED = 7200  # samples that the first frame of an utterance depends on
UTTERANCE, PAUSE = 4.0, 1.0  # seconds
TAIL = 1.0  # seconds between the last event and the end of a conversation
ENCODING = 4  # frames of a session that may wait to be encoded
AHEAD = 3  # frames


class Event(NamedTuple):
    """What is done with a session: "push", "flush" or "interrupt", some seconds after the begin."""

    seconds: float
    action: str
    samples: np.ndarray
    begins: bool  # whether it begins an utterance


class Arrival(NamedTuple):
    """A piece that a client got.

    Attributes:
        number: of the frame.
        taken: when it was taken.
        ready: the same; or when its frame was encoded.
        shown: whether it has a frame.
        speaking: whether it plays speech.
    """

    number: int
    taken: float
    ready: float
    shown: bool
    speaking: bool


def demo_speech() -> np.ndarray:
    """Read the demo's speech, (S,) float32 at 16 kHz, without FFmpeg."""
    with wave.open(str(DEMO / "speech.wav")) as file:  # 16-bit, mono, 16 kHz
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return samples.astype(np.float32) / 32768


def speech_for(session: int, seconds: float) -> np.ndarray:
    """Return the demo's speech, repeated; each session begins elsewhere in it."""
    speech = demo_speech()
    start, samples = 7919 * session % len(speech), int(seconds * kernels.SAMPLE_RATE)
    return np.tile(speech, 2 + samples // len(speech))[start : start + samples]


def conversation(speech: np.ndarray) -> Iterator[Event]:
    """Speak in utterances with pauses, then a last one that is interrupted halfway."""
    rate, at = kernels.SAMPLE_RATE, 0.0
    most = round(UTTERANCE * rate)
    for first in range(0, len(speech), most):
        utterance = speech[first : first + most]
        yield from _spoken(utterance, at)
        at += len(utterance) / rate
        yield Event(at, "flush", speech[:0], False)
        at += PAUSE
    half = speech[: most // 2]
    yield from _spoken(half, at)
    yield Event(at + len(half) / rate, "interrupt", speech[:0], False)


def _spoken(utterance: np.ndarray, begin: float) -> Iterator[Event]:
    for first in range(0, len(utterance), STEP):
        part = utterance[first : first + STEP]
        # as a microphone gives it: when its last sample has been spoken
        at = begin + (first + len(part)) / kernels.SAMPLE_RATE
        yield Event(at, "push", part, first == 0)


@dataclass
class Client:
    """A session and what its client saw. Times are those of `time.monotonic`.

    Attributes:
        begin: when frame 0 was due, or up to a millisecond before.
        arrivals: the pieces.
        pushed: when each utterance began to be pushed.
        needed: when what the first frame of each utterance depends on had been pushed.
        interrupted: when the interruption had returned.
        encoder: a queue of `EncoderPool`, or None.
    """

    session: Any
    begin: float
    encoder: Any = None
    arrivals: list[Arrival] = field(default_factory=list)
    pushed: list[float] = field(default_factory=list)
    needed: list[float] = field(default_factory=list)
    interrupted: float | None = None
    samples: int = 0  # of the utterance, pushed so far

    def act(self, event: Event) -> None:
        """Do what an event says, and note the time."""
        if event.action == "interrupt":
            self.session.interrupt()
            self.interrupted = time.monotonic()
            return
        if event.action == "flush":
            self.session.flush()
            if self.samples < NEEDED:
                self.needed.append(time.monotonic())
            return
        if event.begins:
            self.samples = 0
            self.pushed.append(time.monotonic())
        before = self.samples
        self.samples += len(event.samples)
        self.session.push(event.samples)
        if before < NEEDED <= self.samples:
            self.needed.append(time.monotonic())

    async def take(self, feeder: "Feeder") -> None:
        """Take pieces as they come until the conversation is over or the session is closed."""
        encoding: deque[Future] = deque()
        async for piece in self.session:
            now = time.monotonic()
            shown = len(piece.frames) > 0
            if self.encoder is not None and shown:
                if len(encoding) == ENCODING:
                    await asyncio.wrap_future(encoding.popleft())
                future = self.encoder.submit(piece.frames[0].numpy())
                future.add_done_callback(partial(self._encoded, piece.number, now, piece.speaking))
                encoding.append(future)
            else:
                self.arrivals.append(Arrival(piece.number, now, now, shown, piece.speaking))
            if feeder.end is not None and now > feeder.end:
                break
        for future in encoding:
            await asyncio.wrap_future(future)

    def _encoded(self, number: int, taken: float, speaking: bool, future: Future) -> None:
        self.arrivals.append(Arrival(number, taken, time.monotonic(), True, speaking))

    @property
    def shown(self) -> list[Arrival]:
        """The arrivals that have a frame."""
        return [arrival for arrival in self.arrivals if arrival.shown]

    @property
    def lateness(self) -> list[float]:
        """Seconds from when each frame was due until it was ready; negative if it was early."""
        fps = self.session.fps
        return [a.ready - self.begin - float(a.number / fps) for a in self.shown]

    @property
    def first_frames(self) -> list[float]:
        """Seconds from when an utterance's first frame could be made until it was ready.

        An utterance of which no frame came is left out.
        """
        delays = []
        for pushed, needed in zip(self.pushed, self.needed, strict=False):
            came = (a.ready for a in self.shown if a.speaking and a.taken > pushed)
            with suppress(StopIteration):
                delays.append(next(came) - needed)
        return delays

    @property
    def old_frames(self) -> list[float]:
        """Seconds from the interruption to the arrival of each frame that still spoke."""
        if self.interrupted is None:
            return []
        after = [a.taken - self.interrupted for a in self.arrivals if a.speaking]
        return [seconds for seconds in after if seconds > 0]


class Feeder(threading.Thread):
    """Does the events of all sessions when their time has come.

    Attributes:
        end: when the conversation is over: `TAIL` seconds after the last event.
        failure: what ended it early.
    """

    def __init__(self, clients: list[Client], scripts: list[Iterator[Event]]):
        super().__init__(daemon=True)
        events = [(number, event) for number, script in enumerate(scripts) for event in script]
        self._events = sorted(events, key=lambda numbered: numbered[1].seconds)
        self._clients, self._stopped = clients, threading.Event()
        self.end: float | None = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        begin = time.monotonic()
        try:
            for number, event in self._events:
                if self._stopped.wait(max(begin + event.seconds - time.monotonic(), 0)):
                    return
                self._clients[number].act(event)
        except BaseException as error:
            self.failure = error
        self.end = time.monotonic() + (0 if self.failure else TAIL)

    def stop(self) -> None:
        """Do no more events."""
        self._stopped.set()
        if self.is_alive():
            self.join()


async def converse(live: Any, speeches: list[np.ndarray], pool: Any = None) -> list[Client]:
    """Open a session for each of the speeches, push them in real time and take all frames.

    Args:
        live: the `Live`.
        pool: an `EncoderPool`, if frames are to be encoded.

    Raises:
        DeviceError: the device has no room for so many sessions.
    """
    clients: list[Client] = []
    takers = []
    feeder = Feeder(clients, [conversation(speech) for speech in speeches])
    try:
        for _ in speeches:
            clients.append(open_client(live, pool))
            takers.append(asyncio.ensure_future(clients[-1].take(feeder)))
            # frames of the sessions are due at different times
            await asyncio.sleep(float(1 / live.avatar.fps) / len(speeches))
        feeder.start()
        await asyncio.gather(*takers)
    finally:
        feeder.stop()
        for client in clients:
            client.session.close()
        await asyncio.gather(*takers, return_exceptions=True)
    if feeder.failure is not None:
        raise feeder.failure
    return clients


def open_client(live: Any, pool: Any = None) -> Client:
    """Open a session in real time whose frames are encoded in the pool, if there is one."""
    now = time.monotonic()
    session = live.open(ahead=AHEAD)
    encoder = None if pool is None else pool.queue(_h264(live))
    return Client(session, now + float(AHEAD / live.avatar.fps), encoder)


async def take_all(live: Any, speeches: list[np.ndarray], pool: Any = None) -> int:
    """Push whole speeches into sessions that wait for their takers; return the frames taken."""

    async def take(speech: np.ndarray) -> int:
        with live.open(clock="taken") as session:
            encoder = None if pool is None else pool.queue(_h264(live))
            session.push(speech)
            session.flush()
            frames, encoding = 0, deque[Future]()
            async for piece in session:
                frames += 1
                if encoder is not None:
                    if len(encoding) == ENCODING:
                        await asyncio.wrap_future(encoding.popleft())
                    encoding.append(encoder.submit(piece.frames[0].numpy()))
                if piece.end:
                    break
            for future in encoding:
                await asyncio.wrap_future(future)
            return frames

    return sum(await asyncio.gather(*map(take, speeches)))


def _h264(live: Any) -> Any:
    from engine.media.encode import H264Encoder  # late, because GPU hosts may lack FFmpeg

    return H264Encoder(live.avatar.height, live.avatar.width, live.avatar.fps)


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Return the median, the 99th percentile and the largest; None of nothing."""
    if not seconds:
        return None
    p50, p99, most = np.percentile(seconds, (50, 99, 100)).tolist()
    return {"p50": p50, "p99": p99, "max": most}


def figures(clients: list[Client]) -> dict:
    """Sum up what the clients of a conversation saw."""
    counts = [client.session.counts for client in clients]
    shown = sum(len(client.shown) for client in clients)
    stream = sum(Fraction(len(client.arrivals)) / client.session.fps for client in clients)
    interrupted = [client.old_frames for client in clients if client.interrupted is not None]
    return {
        "frames a second": shown / float(stream) if stream else 0.0,
        "lateness, s": percentiles([s for client in clients for s in client.lateness]),
        "first frame, s": percentiles([s for client in clients for s in client.first_frames]),
        "late": sum(count.late for count in counts),
        "skipped": sum(count.skipped for count in counts),
        "underruns": sum(count.underruns for count in counts),
        "interruptions": len(interrupted),
        "old frames after an interruption": max(map(len, interrupted), default=None),
        "last old frame, s": max((max(s, default=0.0) for s in interrupted), default=None),
    }
