"""What a WebSocket's client is sent: events, and pieces if it wants them."""

import asyncio
import json
import struct
from collections import deque
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

from starlette.websockets import WebSocket

from engine.media.encode import EncoderQueue, JpegEncoder

from .delay import Delay
from .session import EncodedPiece, WebSession
from .sessions import WebSessions

MOST_PICTURES = 8  # that wait to be sent
MOST_MESSAGES = 3000  # that wait
MOST_SECONDS = 10.0  # of pieces that wait, and for a message to be read
STATS_SECONDS = 1.0
COUNTS = {"late": "late", "skipped": "skipped", "underrun": "underruns"}  # events


class Unread(Exception):
    """The client does not read what it is sent."""


class Outbox:
    """A `Sink` whose pieces are sent one after another. A client that reads slowly loses pictures,
    never sound; one that reads nothing loses the connection.

    Args:
        picture: "none" for events only.
        sound: the format of the sound.

    Attributes:
        stirred: loop time at which the last message came, or something was spoken.
    """

    def __init__(
        self,
        socket: WebSocket,
        session: WebSession,
        sessions: WebSessions,
        picture: str,
        sound: Any,
    ):
        self._socket, self._session, self._sessions = socket, session, sessions
        self._picture, self._sound = picture, sound
        self._loop = asyncio.get_running_loop()
        self.stirred = self._loop.time()
        self._waiting = deque[EncodedPiece | dict[str, Any]]()
        self._pictures = self._pieces = 0  # that wait
        self._news, self._taken = asyncio.Event(), asyncio.Event()
        self._jpeg: EncoderQueue | None = None
        if picture == "jpeg":
            quality = sessions.config.output.jpeg_quality
            self._jpeg = sessions.pool.queue(JpegEncoder(quality=quality))
        self._broken = False  # pictures of H.264 are missing; the next keyframe is awaited
        self._dropped = 0  # pictures, here
        self._speaking, self._fault = False, session.fault
        self._last: int | None = None  # number of the last piece
        self._interruptions = deque[tuple[int, dict[str, Any]]]()
        self._told = dict.fromkeys(COUNTS, 0)
        self._delay = Delay()
        self._since, self._made = self._loop.time(), 0  # pieces with a picture since then
        self._end: tuple[str | None] | None = None
        self._unread = False

    # --- the sink --------------------------------------------------------------------------------

    @property
    def wants(self) -> Literal["h264", "rgb", "none"]:
        """See `Sink`."""
        return {"h264": "h264", "jpeg": "rgb"}.get(self._picture, "none")  # type: ignore[return-value]

    def put(self, piece: EncodedPiece) -> None:
        """See `Sink`."""
        if piece.speaking:
            self.stirred = self._loop.time()
        self._delay.taken(piece, self._loop.time())
        while self._interruptions and self._interruptions[0][0] <= piece.number:
            self.tell(self._interruptions.popleft()[1])
        self._tell_changes(piece)
        if self._picture != "none":
            self._append(piece)
        if piece.end:
            self.tell({"type": "end", "number": piece.number})
        self._last = piece.number
        while self._interruptions and self._interruptions[0][0] <= piece.number + 1:
            self.tell(self._interruptions.popleft()[1])

    async def room(self) -> None:
        """See `Sink`."""
        while self._pieces > 1 and self._end is None:
            self._taken.clear()
            await self._taken.wait()

    def end(self, reason: str | None) -> None:
        """See `Sink`."""
        self._end = (reason,)
        self._news.set()
        self._taken.set()

    # --- what the connection tells ---------------------------------------------------------------

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event, after what waits."""
        if len(self._waiting) + len(self._interruptions) > MOST_MESSAGES:
            self._unread = True
            return
        self._waiting.append(event)
        self._news.set()

    def pushed(self, samples: int) -> None:
        """Note speech that came."""
        self._delay.pushed(samples, self._loop.time())

    def flushed(self) -> None:
        """Note the end of an utterance."""
        self._delay.flushed()

    def unspoken(self, line: str) -> None:
        """Say why a text is not spoken."""
        self.tell({"type": "unspoken", "message": line})

    def interrupted(self, position: Fraction) -> None:
        """Tell an interruption: after the pieces before it, which may still be on their way."""
        self._delay.interrupted()
        event = {"type": "interrupted", "position": float(position)}
        first = int(position * self._session.fps)
        if first == 0 or (self._last is not None and first <= self._last + 1):
            self.tell(event)
        else:
            self._interruptions.append((first, event))

    # --- sending ---------------------------------------------------------------------------------

    async def run(self) -> str | None:
        """Send what there is, until the session ends. Return why it did, if nobody wanted that.

        Raises:
            Unread: the client reads nothing, or too slowly.
        """
        next_stats = self._loop.time() + STATS_SECONDS
        while True:
            while self._waiting:
                await self._send(self._waiting.popleft())
            if self._end is not None:
                return self._end[0]
            if (now := self._loop.time()) >= next_stats:
                next_stats = now + STATS_SECONDS
                self._tell_fault()  # no piece may come after it, if the clock is "taken"
                self.tell(self._stats(now))
                continue
            self._news.clear()
            try:
                async with asyncio.timeout(next_stats - now):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _send(self, message: EncodedPiece | dict[str, Any]) -> None:
        if self._unread:
            raise Unread
        data: str | bytes
        if isinstance(message, dict):
            data = json.dumps(message)
        else:
            self._pieces -= 1
            self._pictures -= _has_picture(message)
            self._taken.set()
            data = await self._encoded(message)
        kind = "text" if isinstance(data, str) else "bytes"
        try:
            async with asyncio.timeout(MOST_SECONDS):
                await self._socket.send({"type": "websocket.send", kind: data})
        except TimeoutError:
            raise Unread from None

    async def _encoded(self, piece: EncodedPiece) -> bytes:
        picture, keyframe = piece.picture, piece.keyframe
        if self._jpeg is not None and piece.frame is not None:
            encoded = await asyncio.wrap_future(self._jpeg.submit(piece.frame))
            picture, keyframe = encoded.data, True
        sound = self._sound.bytes(piece.sound)
        header = json.dumps(
            {
                "number": piece.number,
                "time": float(piece.time),
                "speaking": piece.speaking,
                "end": piece.end,
                "keyframe": keyframe,
                "picture": len(picture),
                "sound": len(sound),
            }
        ).encode()
        return struct.pack("<I", len(header)) + header + picture + sound

    def _append(self, piece: EncodedPiece) -> None:
        if self._broken and piece.keyframe:
            self._broken = False
        if self._broken and piece.picture:
            piece = self._without_picture(piece)
        self._waiting.append(piece)
        self._pieces += 1
        self._pictures += _has_picture(piece)
        if self._pictures > MOST_PICTURES and self._session.clock == "wall":
            self._drop_pictures()
        if self._pieces > MOST_SECONDS * self._session.fps:
            self._unread = True
        self._news.set()

    def _drop_pictures(self) -> None:
        """Drop the pictures that wait: all of H.264, because each needs the one before it."""
        h264 = self._picture == "h264"
        for number, message in enumerate(self._waiting):
            if isinstance(message, EncodedPiece) and _has_picture(message):
                self._waiting[number] = self._without_picture(message)
                self._pictures -= 1
                if not h264:
                    break
        if h264:
            self._broken = True
            self._session.request_keyframe()

    def _without_picture(self, piece: EncodedPiece) -> EncodedPiece:
        self._dropped += 1
        return replace(piece, picture=b"", frame=None, keyframe=False)

    # --- events ----------------------------------------------------------------------------------

    def _tell_changes(self, piece: EncodedPiece) -> None:
        """Tell what is new with a piece."""
        skipped = 0
        for event, total in self._totals().items():
            if total > self._told[event]:
                skipped += total - self._told[event] if event == "skipped" else 0
                self._told[event] = total
                self.tell({"type": event, "total": total})
        self._made += not skipped
        if piece.speaking != self._speaking:
            self._speaking = piece.speaking
            self.tell({"type": "speaking", "speaking": piece.speaking, "number": piece.number})
        self._tell_fault()

    def _tell_fault(self) -> None:
        if (fault := self._session.fault) is not self._fault:
            self._fault = fault
            if fault is not None:
                self.unspoken(fault)

    def _totals(self) -> dict[str, int]:
        counts = self._session.counts
        totals = {event: int(getattr(counts, name)) for event, name in COUNTS.items()}
        totals["skipped"] += self._dropped
        return totals

    def _stats(self, now: float) -> dict[str, Any]:
        totals, seconds = self._totals(), max(now - self._since, 1e-3)
        made, self._made, self._since = self._made, 0, now
        return {
            "type": "stats",
            "frames": self._session.counts.frames,
            # A player's pictures have this time stamp and 90,000 for each second since the begin.
            "rtp": None if self._session.peer is None else self._session.peer.origin,
            "late": totals["late"],
            "skipped": totals["skipped"],
            "underruns": totals["underrun"],
            "sessions": self._sessions.places.of(self._session.avatar),
            "delay_ms": self._delay.milliseconds,
            "made_fps": round(made / seconds, 1),
        }


def _has_picture(piece: EncodedPiece) -> bool:
    return bool(piece.picture) or piece.frame is not None
