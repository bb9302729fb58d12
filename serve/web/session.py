"""A live session that HTTP clients opened: speech and text in, pieces to all who watch."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from http import HTTPStatus
from typing import Any, Literal, Protocol

import numpy as np

from engine.errors import InputError, one_line
from engine.live import Counts, Piece, Session
from engine.media.encode import EncoderPool, EncoderQueue, H264Encoder
from engine.media.limits import MAX_AMPLITUDE

from ..errors import INTERNAL
from ..refused import Refused, refused
from ..speech import INLINE_SECONDS, Backlog

LEFT_SECONDS = 5.0  # that a session goes on which nobody holds
KEYFRAME_SECONDS = 0.3  # between two keyframes that somebody asked for
MOST_TEXTS = 20  # that may wait to be spoken

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class EncodedPiece:
    """A frame with the sound that belongs to it.

    Attributes:
        number: counts the session's frames from 0, without gaps.
        time: seconds from the session's beginning to the frame's, exactly.
        picture: an H.264 access unit in Annex B format; empty if the picture was skipped, or nobody
            wants H.264.
        keyframe: whether the picture can be decoded without those before it.
        frame: (H, W, 3) uint8 RGB; None if the picture was skipped, or nobody wants RGB.
        sound: (C, n) float32, the frame's samples at the session's rate.
        speaking: whether the frame plays samples of an utterance.
        end: whether it plays the last samples of an utterance.
    """

    number: int
    time: Fraction
    picture: bytes
    keyframe: bool
    frame: np.ndarray | None
    sound: np.ndarray
    speaking: bool
    end: bool


class Sink(Protocol):
    """Who gets the pieces of a session: a player, a recording, a socket. All is called in the event
    loop.

    Attributes:
        wants: what must be made for it. The first picture of H.264 that it gets is a keyframe.
    """

    @property
    def wants(self) -> Literal["h264", "rgb", "none"]: ...

    def put(self, piece: EncodedPiece) -> None:
        """Take a piece, without waiting. What a slow sink has no room for, it drops."""
        ...

    async def room(self) -> None:
        """Wait until there is room for a piece. Only sessions whose clock is "taken" ask."""
        ...

    def end(self, reason: str | None) -> None:
        """The session has ended; with a reason, if nobody wanted that."""
        ...


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


class Served(Protocol):
    """An avatar that is loaded."""

    @property
    def name(self) -> str: ...
    @property
    def avatar(self) -> Any: ...
    @property
    def live(self) -> Any: ...


FLUSH = object()
Said = np.ndarray | str | object  # samples, a text to be spoken, or FLUSH


class WebSession:
    """A live session of HTTP clients. One task takes its pieces, also if nobody watches.

    Each picture is encoded once, for all who want it. Made by `WebSessions.open`; all methods are
    for the event loop.

    Args:
        session: of the engine.
        pool: encodes pictures.
        metrics: `serve.metrics.Metrics`.
        clock: "wall" or "taken", as of the session.
        most_seconds: length of the session at most.

    Attributes:
        id: 1 to 2^53 - 1, which cannot be guessed.
        avatar: its name.
        sample_rate, channels: of the sound in and out.
        voice: speaks texts; None if there is none.
        speaking: whether the last frame played samples of an utterance.
        fault: why the last text was not spoken; None if all were.
        peer: the player with a WebRTC connection; None if there is none.
        task: hands out its pieces.
        ended: set when the session has ended and everything is freed.
    """

    def __init__(
        self,
        id: int,
        session: Session,
        served: Served,
        *,
        pool: EncoderPool,
        metrics: Any,
        voice: Voice | None,
        clock: str,
        most_seconds: float,
    ):
        self.id, self.avatar, self.served, self.voice = id, served.name, served, voice
        self.sample_rate, self.channels = session.sample_rate, session.channels
        self.fps: Fraction = session.fps
        self.height: int = served.avatar.height
        self.width: int = served.avatar.width
        self.clock, self.speaking = clock, False
        self.fault: str | None = None
        self.peer: Any = None
        self.task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self._session, self._pool, self._most_seconds = session, pool, most_seconds
        self._backlog = Backlog(session.sample_rate, session.channels)
        self._sinks: dict[Sink, bool] = {}  # and whether each has got a keyframe
        self._encoder: EncoderQueue | None = None
        self._h264: H264Encoder | None = None
        self._bitrate: int | None = None
        self._keyframe_wanted, self._since_keyframe = False, 0  # frames
        self._said: deque[Said] = deque()  # what is not in the session yet
        self._feeding: asyncio.Task[None] | None = None
        self._stirred, self._room = asyncio.Event(), asyncio.Event()
        self._holders = 0
        self._leaving: asyncio.TimerHandle | None = None
        self._closing = False
        self._reason: str | None = None
        self._told = Counts()
        name = served.name
        self._frames = metrics.frames.labels(avatar=name, kind="live")
        self._counters = {
            "late": metrics.late.labels(avatar=name),
            "skipped": metrics.skipped.labels(avatar=name),
            "underruns": metrics.underruns.labels(avatar=name),
        }

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        return self._session.counts

    @property
    def backlog(self) -> Backlog:
        """Speech that was pushed and not shown yet."""
        return self._backlog

    # --- speech in -------------------------------------------------------------------------------

    def push(self, samples: np.ndarray) -> None:
        """Append speech to the utterance that has not ended, or begin one.

        Args:
            samples: (S,) or (C, S), int16 or float32 in [-1, 1], at the session's rate.

        Raises:
            Refused: another shape or dtype, a sample far beyond full scale, too much that waits, or
                a session that has ended.
        """
        samples = self._checked(samples)
        if not self._backlog.has_room(samples.shape[1]):
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, self._backlog.full)
        self._append(samples)

    async def push_waiting(self, samples: np.ndarray) -> None:
        """Append speech as `push`, when there is room for it.

        Raises:
            Refused: as `push`; more than there may ever be.
        """
        samples = self._checked(samples)
        await self._wait_for_room(samples.shape[1])
        self._append(samples)

    def flush(self) -> None:
        """End the utterance: what follows it is silence, and it waits for no more speech."""
        self._check_open()
        if self._said or self._feeding is not None:
            self._say(FLUSH)
        else:
            self._flush()

    def say(self, text: str) -> None:
        """Speak a text, after what is being said.

        Raises:
            Refused: there is no voice, the text is too long, too many wait, or the session has
                ended.
        """
        self._check_open()
        if self.voice is None:
            line = "this server has no voice; expected one in its configuration (web.voice)"
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, line)
        if len(text) > self.voice.max_characters:
            most = self.voice.max_characters
            line = f"the text has {len(text)} characters; expected at most {most}"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
        waiting = sum(isinstance(said, str) for said in self._said)
        if waiting >= MOST_TEXTS:
            line = f"{waiting} texts wait to be spoken; expected fewer than {MOST_TEXTS}"
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, line)
        if text.strip():
            self._say(text)

    def interrupt(self) -> Fraction:
        """Drop all speech that was not handed out, also texts. The sound fades out over 10 ms.

        Returns:
            Seconds from the session's beginning to the end of what was handed out.

        Raises:
            Refused: the session has ended.
        """
        self._check_open()
        self._said.clear()
        if self._feeding is not None:
            self._feeding.cancel()
            self._feeding = None
        try:
            position = self._session.interrupt()
        except InputError as error:
            raise refused(error) from error
        self._backlog.clear()
        self._room.set()
        return position

    # --- who watches -----------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Give a sink the pieces that come from now on."""
        self._check_open()
        self._sinks[sink] = False
        if sink.wants == "h264":
            self.request_keyframe()
        self._stirred.set()

    def detach(self, sink: Sink) -> None:
        self._sinks.pop(sink, None)
        self._stirred.set()

    def request_keyframe(self) -> None:
        """Make the next picture a keyframe, or one soon, if there was one just now."""
        self._keyframe_wanted = True

    def set_bitrate(self, bits_per_second: int) -> None:
        """Set how many bits the pictures may have from now on."""
        self._bitrate = bits_per_second

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the session in the block. It ends 5 s after nobody holds it any more."""
        release = self.held()
        try:
            yield
        finally:
            release()

    def held(self) -> Callable[..., None]:
        """Keep the session until the function that this returns is called, which may be told how
        many seconds ago it was really left."""
        self._holders += 1
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        there = True

        def release(ago: float = 0.0) -> None:
            nonlocal there
            if there:
                there = False
                self._holders -= 1
                if not self._holders:
                    self._leave(max(LEFT_SECONDS - ago, 0.0))

        return release

    async def close(self, reason: str | None = None) -> None:
        """End the session. Returns when everything is freed."""
        self.end(reason)
        await self.ended.wait()

    # --- the session's task ----------------------------------------------------------------------

    async def run(self) -> None:
        """Hand out the pieces until the session is closed. Its sinks are told the end."""
        self._leave(LEFT_SECONDS)
        loop = asyncio.get_running_loop()
        longest = loop.call_later(self._most_seconds, self._end_longest)
        try:
            with self._session:
                await self._hand_out()
        except InputError as error:
            self.end(one_line(error))
        except Exception:
            _log.exception("a session failed")
            self.end(INTERNAL)
        finally:
            longest.cancel()
            self.end("the avatar was unloaded; open another session")
            await self._clear()

    async def _hand_out(self) -> None:
        pieces = aiter(self._session)
        while not self._closing:
            if self.clock == "taken" and not await self._asked():
                continue
            piece = await anext(pieces, None)
            if piece is None:
                return
            self._count(piece)
            made = await self._make(piece)
            self.speaking = made.speaking
            for sink, started in list(self._sinks.items()):
                if sink in self._sinks:  # not detached by another one
                    self._give(sink, started, made)

    async def _asked(self) -> bool:
        """Wait until the next piece is wanted. False if that has to be looked at again."""
        if not self._backlog.utterances or not self._sinks:
            self._stirred.clear()
            await self._stirred.wait()
            return False
        for sink in list(self._sinks):
            await sink.room()
        return bool(self._backlog.utterances and self._sinks)

    def _give(self, sink: Sink, started: bool, piece: EncodedPiece) -> None:
        if sink.wants == "h264" and not started:
            if piece.keyframe:
                self._sinks[sink] = True
            elif piece.picture:
                piece = replace(piece, picture=b"")
        try:
            sink.put(piece)
        except Exception:
            _log.exception("a client of a session failed")
            self.detach(sink)
            sink.end(INTERNAL)

    async def _make(self, piece: Piece) -> EncodedPiece:
        wanted = {sink.wants for sink in self._sinks}
        rgb: np.ndarray | None = piece.frames[0].numpy() if len(piece.frames) else None
        picture, keyframe = b"", False
        if "h264" in wanted and rgb is not None:
            picture, keyframe = await self._encode(rgb)
        return EncodedPiece(
            piece.number,
            piece.time,
            picture,
            keyframe,
            rgb if "rgb" in wanted else None,
            piece.sound,
            piece.speaking,
            piece.end,
        )

    async def _encode(self, rgb: np.ndarray) -> tuple[bytes, bool]:
        if self._encoder is None:
            self._h264 = await asyncio.to_thread(H264Encoder, self.height, self.width, self.fps)
            self._encoder = self._pool.queue(self._h264)
        forced = self._keyframe_wanted and self._since_keyframe >= KEYFRAME_SECONDS * self.fps
        encoded = await asyncio.wrap_future(self._encoder.submit(rgb, keyframe=forced))
        self._since_keyframe += 1
        if encoded.keyframe:
            self._keyframe_wanted, self._since_keyframe = False, 0
        return encoded.data, encoded.keyframe

    def _count(self, piece: Piece) -> None:
        self._frames.inc()
        self._backlog.take(piece)
        self._room.set()
        now, told = self._session.counts, self._told
        for name, counter in self._counters.items():
            total = getattr(now, name)
            if more := total - getattr(told, name):
                setattr(told, name, total)
                counter.inc(more)

    # --- feeding ---------------------------------------------------------------------------------

    def _checked(self, samples: np.ndarray) -> np.ndarray:
        """Return samples as (C, S)."""
        self._check_open()
        if samples.ndim == 1:
            samples = samples[None]
        if samples.ndim != 2 or samples.shape[0] != self.channels:
            line = f"sound has the shape {samples.shape}; expected ({self.channels}, S)"
            raise Refused(HTTPStatus.BAD_REQUEST, line)
        if samples.dtype not in (np.int16, np.float32):
            line = f"sound is {samples.dtype}; expected int16 or float32"
            raise Refused(HTTPStatus.BAD_REQUEST, line)
        if samples.dtype == np.float32 and samples.size:
            worst = max(float(samples.max()), -float(samples.min()))
            if not worst <= MAX_AMPLITUDE:
                line = f"sound has a sample of {worst:g}; expected -1 to 1"
                raise Refused(HTTPStatus.BAD_REQUEST, line)
        return samples

    def _append(self, samples: np.ndarray) -> None:
        """Append samples for which there is room, in parts, because converting them takes time."""
        count = samples.shape[1]
        if not count:
            return
        self._backlog.waiting += count
        if self._feeding is None and count <= INLINE_SECONDS * self.sample_rate:
            self._push(samples)
        else:
            self._say(samples.copy())

    def _push(self, samples: np.ndarray) -> None:
        try:
            self._session.push(samples)
        except InputError as error:
            raise refused(error) from error
        self._backlog.begin()
        self._stirred.set()

    def _flush(self) -> None:
        if self._backlog.open:
            try:
                self._session.flush()
            except InputError as error:
                raise refused(error) from error
            self._backlog.flush()
            self._stirred.set()

    def _say(self, said: Said) -> None:
        self._said.append(said)
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed())

    async def _feed(self) -> None:
        """Put into the session what was said, in order, and never much at a time."""
        try:
            while self._said:
                said = self._said.popleft()
                if said is FLUSH:
                    self._flush()
                elif isinstance(said, str):
                    await self._speak(said)
                elif isinstance(said, np.ndarray):
                    await self._push_parts(said)
        except Refused as error:  # the session has ended, or something is wrong with it
            _log.warning("session of %s: %s", self.avatar, error)
        if asyncio.current_task() is self._feeding:
            self._feeding = None

    async def _push_parts(self, samples: np.ndarray) -> None:
        step = int(INLINE_SECONDS * self.sample_rate)
        for first in range(0, samples.shape[1], step):
            self._push(samples[:, first : first + step])
            await asyncio.sleep(0)

    async def _speak(self, text: str) -> None:
        assert self.voice is not None
        self._flush()
        try:
            async with aclosing(self.voice.speak(text, self.sample_rate)) as spoken:
                async for samples in spoken:
                    both = self._checked(np.repeat(samples.reshape(1, -1), self.channels, axis=0))
                    await self._wait_for_room(both.shape[1])
                    self._backlog.waiting += both.shape[1]
                    await self._push_parts(both)
        except InputError as error:
            self.fault = one_line(error)
            _log.warning("a text was not spoken: %s", self.fault)
        finally:
            if not self._closing and asyncio.current_task() is self._feeding:
                self._flush()

    async def _wait_for_room(self, count: int) -> None:
        """Wait until there is room, or the session has ended."""
        while not self._backlog.has_room(count):
            if count > self._backlog.most:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._backlog.full)
            self._room.clear()
            await self._room.wait()
            self._check_open()

    # --- the end ---------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closing:
            raise Refused(HTTPStatus.GONE, self._reason or "the session is closed")

    def _leave(self, seconds: float) -> None:
        if not self._closing:
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(seconds, self.end, None)

    def _end_longest(self) -> None:
        self.end(f"the session was {self._most_seconds:g} s long, the most")

    def end(self, reason: str | None) -> None:
        """Let the session end soon. The first reason counts."""
        if not self._closing:
            self._closing, self._reason = True, reason
            self._session.close()
            self._stirred.set()
            self._room.set()

    async def _clear(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        self._said.clear()
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)
        for sink in list(self._sinks):
            try:
                sink.end(self._reason)
            except Exception:
                _log.exception("a client of a session failed")
        self._sinks.clear()
        if self.peer is not None:
            await self.peer.close()
        self._encoder = self._h264 = None
        self.ended.set()
