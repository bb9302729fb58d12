"""A live session that HTTP clients opened: speech and text in, pieces to all who watch."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, Protocol

import numpy as np

from engine.errors import InputError, one_line
from engine.live import Counts, Piece, Session
from engine.media.encode import EncoderPool

from ..errors import INTERNAL
from .feed import Feed, Voice
from .pictures import Pictures
from .tally import Tally

LEFT_SECONDS = 5.0  # that a session goes on which nobody holds

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


class Served(Protocol):
    """An avatar that is loaded."""

    @property
    def name(self) -> str: ...
    @property
    def avatar(self) -> Any: ...
    @property
    def live(self) -> Any: ...


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
        bitrate: of the pictures at most, bits a second.

    Attributes:
        id: 1 to 2^53 - 1, which cannot be guessed.
        avatar: its name.
        sample_rate, channels: of the sound in and out.
        voice: speaks texts; None if there is none.
        speaking: whether the last frame played samples of an utterance.
        peer: the player with a WebRTC connection; None if there is none.
        former_peers: the ids of the players that have left last.
        lost: why the last player was lost; None if none was.
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
        bitrate: int,
    ):
        self.id, self.avatar, self.served, self.voice = id, served.name, served, voice
        self.sample_rate, self.channels = session.sample_rate, session.channels
        self.fps: Fraction = session.fps
        self.height: int = served.avatar.height
        self.width: int = served.avatar.width
        self.clock, self.speaking = clock, False
        self.peer: Any = None
        self.former_peers = deque[str](maxlen=10)
        self.lost: str | None = None
        self.task: asyncio.Task[None] | None = None
        self.ended = asyncio.Event()
        self._session, self._most_seconds = session, most_seconds
        self._stirred = asyncio.Event()
        self._feed = Feed(session, voice, self._stirred.set)
        self._pictures = Pictures(pool, self.height, self.width, self.fps, bitrate=bitrate)
        self._sinks: dict[Sink, bool] = {}  # and whether each has got a keyframe
        self._holders = 0
        self._leaving: asyncio.TimerHandle | None = None
        self._closing = False
        self._reason: str | None = None
        self._tally = Tally(metrics, served.name)

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        return self._session.counts

    @property
    def fault(self) -> str | None:
        """Why the last text was not spoken; None if it was."""
        return self._feed.fault

    # --- speech in -------------------------------------------------------------------------------

    def push(self, samples: np.ndarray) -> None:
        """Append speech to the utterance that has not ended, or begin one.

        Args:
            samples: (S,) or (C, S), int16 or float32 in [-1, 1], at the session's rate.

        Raises:
            Refused: another shape or dtype, a sample far beyond full scale, too much that waits, or
                a session that has ended.
        """
        self._feed.push(samples)

    async def push_waiting(self, samples: np.ndarray) -> None:
        """Append speech as `push`, when there is room for it.

        Raises:
            Refused: as `push`; more than there may ever be.
        """
        await self._feed.push_waiting(samples)

    def flush(self) -> None:
        """End the utterance: what follows it is silence, and it waits for no more speech.

        Raises:
            Refused: the session has ended.
        """
        self._feed.flush()

    def say(self, text: str) -> None:
        """Speak a text, after what is being said.

        Raises:
            Refused: there is no voice, the text is too long, too many wait, or the session has
                ended.
        """
        self._feed.say(text)

    def interrupt(self) -> Fraction:
        """Drop all speech that was not handed out, also texts. The sound fades out over 10 ms.

        Returns:
            Seconds from the session's beginning to the end of what was handed out.

        Raises:
            Refused: the session has ended.
        """
        return self._feed.interrupt()

    # --- who watches -----------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Give a sink the pieces that come from now on."""
        self._feed.check_open()
        self._sinks[sink] = False
        if sink.wants == "h264":
            self.request_keyframe()
        self._stirred.set()

    def detach(self, sink: Sink) -> None:
        self._sinks.pop(sink, None)
        self._stirred.set()

    def request_keyframe(self) -> None:
        """Make the next picture a keyframe, or one soon, if there was one just now."""
        self._pictures.request_keyframe()

    def set_bitrate(self, bits_per_second: int) -> None:
        """Set how many bits the pictures may have from now on."""
        self._pictures.bitrate = bits_per_second

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

    def check_open(self) -> None:
        """Raises:
        Refused: the session has ended.
        """
        self._feed.check_open()

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
        self._stirred.clear()
        stirred = asyncio.ensure_future(self._stirred.wait())
        wanted = self._wanted
        room = asyncio.gather(*(sink.room() for sink in self._sinks)) if wanted else stirred
        try:  # a sink that leaves tells nobody whether it has room
            await asyncio.wait([room, stirred], return_when=asyncio.FIRST_COMPLETED)
            return wanted and room.done() and self._wanted
        finally:
            room.cancel()
            stirred.cancel()

    @property
    def _wanted(self) -> bool:
        return bool(self._feed.backlog.utterances and self._sinks)

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
            picture, keyframe = await self._pictures.encode(rgb)
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

    def _count(self, piece: Piece) -> None:
        self._feed.take(piece)
        self._tally.count(self._session.counts)

    # --- the end ---------------------------------------------------------------------------------

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
            self._feed.close(reason or "the session is closed")
            self._session.close()
            self._stirred.set()

    async def _clear(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
        for sink in list(self._sinks):
            try:
                sink.end(self._reason)
            except Exception:
                _log.exception("a client of a session failed")
        self._sinks.clear()
        if self.peer is not None:
            await self.peer.close()
        self.ended.set()
