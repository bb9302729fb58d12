"""The call `Live`: speech from a client to a session, its pieces back."""

import asyncio
from collections import deque
from typing import Any, NamedTuple

import numpy as np

from engine.live import Piece, Session
from engine.live.live import PREBUFFER
from engine.media.encode import EncoderPool, EncoderQueue, H264Encoder, JpegEncoder

from .. import config
from ..counting import SessionCounters
from ..speech import INLINE_SECONDS, MESSAGE_SECONDS, Backlog
from .calls import Code, Metrics, Refused, Served, Stream, failing_with, invalid
from .protos import viseme_pb2 as pb
from .sound import SoundFormat, sound_format

CLOCKS = {pb.CLOCK_WALL: "wall", pb.CLOCK_TAKEN: "taken"}


class Choice(NamedTuple):
    """What a client wants of a session.

    Attributes:
        prebuffer: seconds.
        clock, picture: of the enums `Clock` and `Picture`.
    """

    avatar: str
    sound: SoundFormat
    prebuffer: float
    clock: int
    picture: int
    loop: Any
    start_frame: int | None
    quality: int


def choice(message: pb.OpenSession, output: config.Output) -> Choice:
    """Read the message that opens a session.

    Raises:
        Refused: a value is out of range.
    """
    clock, picture = message.clock or pb.CLOCK_WALL, message.picture or pb.PICTURE_JPEG
    if clock not in CLOCKS:
        raise invalid(f"clock is {clock}; expected 1 (WALL) or 2 (TAKEN)")
    if picture not in pb.Picture.values():
        raise invalid(f"picture is {picture}; expected 1 (JPEG), 2 (H264), 3 (RGB) or 4 (NONE)")
    return Choice(
        message.avatar,
        sound_format(message),
        message.prebuffer if message.HasField("prebuffer") else PREBUFFER,
        clock,
        picture,
        message.loop or "pingpong",
        message.start_frame if message.HasField("start_frame") else None,
        quality(message.jpeg_quality, output),
    )


def quality(value: int, output: config.Output) -> int:
    """Return the JPEG quality that a message asks for, or the configured one."""
    if not 0 <= value <= 100:
        raise invalid(f"jpeg_quality is {value}; expected 1 to 100, or 0 for the configured one")
    return value or output.jpeg_quality


class LiveCall:
    """Two tasks: one takes messages, the other one sends pieces, each after the one before it.

    So at most one piece is between the session and the client. A client that reads slowly loses
    pictures, in the session, and memory does not grow. The encoder sees the frames that are sent
    and no others, so that H.264 can always be decoded.

    Args:
        stream: of the call, of which the first message was read.
        pool: encodes pictures.
        opened: what to tell the client first.
    """

    def __init__(
        self,
        stream: Stream,
        chosen: Choice,
        served: Served,
        session: Session,
        pool: EncoderPool,
        *,
        idle_seconds: float,
        metrics: Metrics,
        opened: pb.SessionOpened,
    ):
        self._stream, self._sound, self._session = stream, chosen.sound, session
        self._chosen, self._served, self._pool = chosen, served, pool
        self._idle_seconds, self._opened = idle_seconds, opened
        self._on_demand = chosen.clock == pb.CLOCK_TAKEN
        self._encoder: EncoderQueue | None = None
        self._backlog = Backlog(chosen.sound.rate, chosen.sound.channels)
        self._ended = False  # whether the client closed its side
        self._stirred = asyncio.Event()  # by a message
        self._room = asyncio.Event()  # speech was taken
        # after an interruption: the first frame that is not of the old speech, and what to say
        self._interrupted: deque[tuple[int, pb.LiveResponse]] = deque()
        self._patience: asyncio.Timeout | None = None  # of the message that is waited for
        self._counters = SessionCounters(metrics, served.name)

    async def run(self) -> None:
        """Return when the client has closed its side and all speech was shown.

        Raises:
            Refused: the session ended otherwise.
        """
        tasks = [asyncio.create_task(work) for work in (self._receive(), self._send())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in sorted(done, key=tasks.index, reverse=True):
                task.result()
        finally:
            self._session.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- messages --------------------------------------------------------------------------------

    async def _receive(self) -> None:
        while (request := await self._read()) is not None:
            kind = request.WhichOneof("request")
            if kind == "pcm":
                await self._push(request.pcm)
            elif kind == "flush":
                self._flush()
            elif kind == "interrupt":
                self._interrupt()
            elif kind == "open":
                raise invalid("the session is open; expected pcm, flush or interrupt")
            else:
                raise invalid("the message is empty; expected pcm, flush or interrupt")
        self._flush()
        self._ended = True
        self._stirred.set()

    async def _read(self) -> Any:
        try:
            async with asyncio.timeout(self._idle_seconds) as self._patience:
                return await self._stream.read()
        except TimeoutError:
            line = f"no message came, and nothing was spoken, for {self._idle_seconds:g} s"
            raise Refused(Code.ABORTED, line) from None
        finally:
            self._patience = None

    async def _push(self, data: bytes) -> None:
        self._sound.check(data, MESSAGE_SECONDS)
        count = len(data) // self._sound.frame_bytes
        if not count:
            return
        await self._make_room(count)
        self._backlog.waiting += count
        if count <= INLINE_SECONDS * self._sound.rate:
            self._convert(data)
        else:
            await asyncio.to_thread(self._convert, data)
        self._backlog.begin()
        self._stirred.set()

    def _convert(self, data: bytes) -> None:
        samples = self._sound.samples(data)
        with failing_with(Code.ABORTED):
            self._session.push(samples)

    async def _make_room(self, count: int) -> None:
        """Wait until there is room for so many samples. In real time that would keep an
        interruption waiting, so the client is told instead."""
        while not self._backlog.has_room(count):
            if not self._on_demand:
                raise Refused(Code.RESOURCE_EXHAUSTED, self._backlog.full)
            self._room.clear()
            await self._room.wait()

    def _flush(self) -> None:
        if self._backlog.open:
            with failing_with(Code.ABORTED):
                self._session.flush()
            self._backlog.flush()
            self._stirred.set()

    def _interrupt(self) -> None:
        with failing_with(Code.ABORTED):
            position = self._session.interrupt()
        self._backlog.clear()
        event = pb.Event(interrupted=pb.Interrupted(position=float(position)))
        first = int(position * self._session.fps)
        self._interrupted.append((first, pb.LiveResponse(event=event)))
        self._stirred.set()

    # --- pieces ----------------------------------------------------------------------------------

    async def _send(self) -> None:
        await self._write(pb.LiveResponse(opened=self._opened))
        with failing_with(Code.ABORTED):
            self._encoder = await asyncio.to_thread(self._make_encoder)
        pieces = aiter(self._session)
        while not (self._ended and not self._backlog.utterances):
            if self._on_demand and not self._backlog.utterances:
                self._stirred.clear()  # first, because messages come while others are sent
                await self._tell_interruptions(None)
                await self._stirred.wait()
                continue
            with failing_with(Code.ABORTED):
                piece = await anext(pieces, None)
            if piece is None:
                raise Refused(Code.UNAVAILABLE, "the avatar was unloaded; open another session")
            self._count(piece)
            await self._tell_interruptions(piece.number)
            await self._tell_counts()
            with failing_with(Code.ABORTED):
                picture, keyframe = await self._picture(piece)
            await self._write(
                pb.LiveResponse(
                    piece=pb.Piece(
                        number=piece.number,
                        time=float(piece.time),
                        picture=picture,
                        sound=self._sound.bytes(piece.sound),
                        speaking=piece.speaking,
                        utterance_end=piece.end,
                        keyframe=keyframe,
                    )
                )
            )
        await self._tell_interruptions(None)
        await self._tell_counts()

    def _count(self, piece: Piece) -> None:
        """Note what was taken, before anything else can happen."""
        self._counters.frame()
        self._backlog.take(piece)
        if piece.speaking and self._patience is not None and not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + self._idle_seconds)
        self._room.set()

    async def _picture(self, piece: Piece) -> tuple[bytes, bool]:
        """Return a piece's picture, and whether it is a keyframe; empty if there is none."""
        if self._chosen.picture == pb.PICTURE_NONE or not len(piece.frames):
            return b"", False
        rgb: np.ndarray = piece.frames[0].numpy()
        if self._encoder is None:
            return rgb.tobytes(), True
        encoded = await asyncio.wrap_future(self._encoder.submit(rgb))
        return encoded.data, encoded.keyframe

    def _make_encoder(self) -> EncoderQueue | None:
        avatar = self._served.avatar
        if self._chosen.picture == pb.PICTURE_H264:
            return self._pool.queue(H264Encoder(avatar.height, avatar.width, avatar.fps))
        if self._chosen.picture == pb.PICTURE_JPEG:
            return self._pool.queue(JpegEncoder(quality=self._chosen.quality))
        return None

    async def _tell_interruptions(self, number: int | None) -> None:
        """Send the interruptions that come before a frame; with None, all."""
        while self._interrupted and (number is None or self._interrupted[0][0] <= number):
            await self._write(self._interrupted.popleft()[1])

    async def _tell_counts(self) -> None:
        """Send and count what happened since the last time."""
        for name, total in self._counters.events(self._session.counts):
            await self._write(pb.LiveResponse(event=_event(name, total)))

    async def _write(self, response: pb.LiveResponse) -> None:
        await self._stream.write(response)


def _event(name: str, total: int) -> pb.Event:
    if name == "late":
        return pb.Event(late=pb.Late(total=total))
    if name == "skipped":
        return pb.Event(skipped=pb.Skipped(total=total))
    return pb.Event(underrun=pb.Underrun(total=total))
