"""Recordings of sessions: an mp4 each, written as the session goes on."""

import asyncio
import logging
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from engine.errors import one_line
from engine.media.fragmented_mp4 import FragmentedMp4

from ..config import Web
from ..refused import Refused
from .answers import answered
from .gate import Gate
from .session import EncodedPiece, WebSession

MOST_WAITING = 64 << 20  # bytes that wait to be written
MOST_KNOWN = 1000  # sessions whose recordings clients can get
PART_BYTES = 1 << 18
SOUND_BYTES = 12_000  # of a second of AAC, for each channel

_log = logging.getLogger(__name__)


class Recording:
    """Writes the pieces of a session to a file, in a thread. A `Sink`.

    It begins with a keyframe. The file is whole at any time but for the last second. It ends when
    `end` is called, it is large enough, or the disk is full or too slow.

    Args:
        path: of the file, which is new.
        most: bytes of the file.

    Attributes:
        size: bytes of the file that are whole.
        finished: set when the file is closed.

    Raises:
        OSError: the file cannot be made.
    """

    wants: Literal["h264"] = "h264"

    def __init__(self, session: WebSession, path: Path, most: int):
        self.path, self.size, self.finished = path, 0, asyncio.Event()
        self._session, self._most = session, most
        self._loop = asyncio.get_running_loop()
        self._pieces = SimpleQueue[EncodedPiece | None]()
        self._waiting, self._lock, self._over = 0, threading.Lock(), False
        self._slow = False
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        threading.Thread(target=self._run, name="viseme-record").start()

    def put(self, piece: EncodedPiece) -> None:
        """See `Sink`."""
        if self._over:
            return
        with self._lock:
            self._waiting += _bytes(piece)
            self._slow = self._waiting > MOST_WAITING
        if self._slow:
            self.end(None)
        else:
            self._pieces.put(piece)

    async def room(self) -> None:
        """See `Sink`."""
        while self._waiting > MOST_WAITING // 4 and not self._over:
            await asyncio.sleep(0.01)

    def end(self, reason: str | None) -> None:
        """See `Sink`."""
        if not self._over:
            self._over = True
            self._pieces.put(None)

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        ended = "a recording has ended: "
        try:
            if why := self._record():
                _log.warning("%s%s", ended, why)
        except OSError as error:
            _log.error("%s%s: %s", ended, self.path.name, one_line(error.strerror or error))
        except Exception as error:
            _log.error("%s%s", ended, self.path.name, exc_info=error)
        finally:
            self._over = True
            os.close(self._file)
            if not self.size:
                self.path.unlink(missing_ok=True)
            self._loop.call_soon_threadsafe(self._finish)

    def _record(self) -> str | None:
        """Write pieces up to the last one. Return why it ends before that."""
        session = self._session
        mp4 = FragmentedMp4(
            session.height,
            session.width,
            session.fps,
            rate=session.sample_rate,
            channels=session.channels,
        )
        first: int | None = None
        pending, why = 0.0, None
        per_piece = SOUND_BYTES * session.channels / float(session.fps)
        while why is None and (piece := self._pieces.get()) is not None:
            with self._lock:
                self._waiting -= _bytes(piece)
            if first is None and not (piece.keyframe and piece.picture):
                continue
            first = piece.number if first is None else first
            pending += len(piece.picture) + per_piece
            written = self._write(
                mp4.write(
                    piece.number - first,
                    piece.picture,
                    keyframe=piece.keyframe,
                    sound=piece.sound,
                )
            )
            pending = 0.0 if written else pending
            if self.size + pending >= self._most:
                why = f"{self.path.name} has {self._most} bytes, the most"
        if first is not None:
            self._write(mp4.finish())
        return f"{self.path.name}: the disk is too slow" if self._slow else why

    def _write(self, data: bytes) -> bool:
        """Append to the file all or nothing. Return whether there was something."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(data)
        return bool(data)

    def _finish(self) -> None:
        self._session.detach(self)
        self.finished.set()


class Recordings:
    """The recordings of all sessions, in the folder of the configuration."""

    def __init__(self, web: Web):
        self._folder, self._most = web.recordings, int(web.max_recording_mb * 1e6)
        self._known: OrderedDict[int, Recording] = OrderedDict()  # the last one of each session
        self._running: set[Recording] = set()

    @property
    def enabled(self) -> bool:
        """Whether the server records."""
        return self._folder is not None

    def start(self, session: WebSession) -> None:
        """Record a session from its next keyframe on.

        Raises:
            Refused: it is being recorded, the server records nothing, or the file cannot be made.
        """
        if self._folder is None:
            line = "this server records nothing; expected web.recordings in its configuration"
            raise Refused(501, line)
        known = self._known.get(session.id)
        if known is not None and not known.finished.is_set():
            raise Refused(409, "the session is being recorded")
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}.mp4"
        try:
            recording = Recording(session, self._folder / name, self._most)
        except OSError as error:
            why = one_line(error.strerror or error)
            _log.error("a recording cannot begin: %s", why)
            line = f"the recording cannot be written: {why}"
            raise Refused(507, line) from None
        self._forget()
        self._running.add(recording)
        self._known.pop(session.id, None)
        self._known[session.id] = recording
        try:
            session.attach(recording)
        except Refused:
            recording.end(None)
            raise

    async def stop(self, session_id: int) -> None:
        """End the recording of a session, and wait until its file is finished.

        Raises:
            Refused: it is not being recorded.
        """
        recording = self._known.get(session_id)
        if recording is None or recording.finished.is_set():
            raise Refused(409, "the session is not being recorded")
        recording.end(None)
        await recording.finished.wait()

    def find(self, session_id: str) -> Recording | None:
        """Return the last recording of a session, also after its end."""
        if not (session_id.isascii() and session_id.isdecimal() and len(session_id) <= 16):
            return None
        return self._known.get(int(session_id))

    async def close(self) -> None:
        """End all recordings, and wait until their files are finished."""
        for recording in list(self._running):
            recording.end(None)
            await recording.finished.wait()

    def _forget(self) -> None:
        """Forget finished recordings, whose files stay, but for the last ones."""
        self._running = {one for one in self._running if not one.finished.is_set()}
        old = [key for key, one in self._known.items() if one.finished.is_set()]
        for key in old[: max(len(self._known) - MOST_KNOWN, 0)]:
            del self._known[key]


def routes(recordings: Recordings, gate: Gate) -> list[BaseRoute]:
    """Return the route `/record/{session}`."""

    @answered
    async def show(request: Request) -> Response:
        gate.check(request)
        recording = recordings.find(request.path_params["session"])
        if recording is None:
            raise Refused(404, "there is no recording of this session")
        if recording.finished.is_set():
            if not recording.path.is_file():  # without a picture, or by the operator
                raise Refused(404, "the recording is gone, or has no picture")
            return FileResponse(recording.path, media_type="video/mp4")
        size = recording.size
        headers = {"Content-Length": str(size), "Cache-Control": "no-store"}
        parts = _parts(recording.path, size)
        return StreamingResponse(parts, media_type="video/mp4", headers=headers)

    return [Route("/record/{session}", show)]


async def _parts(path: Path, size: int) -> AsyncIterator[bytes]:
    """Read the first bytes of a file that grows."""
    file: Any = await asyncio.to_thread(path.open, "rb")
    try:
        while size > 0 and (part := await asyncio.to_thread(file.read, min(size, PART_BYTES))):
            size -= len(part)
            yield part
    finally:
        file.close()


def _bytes(piece: EncodedPiece) -> int:
    return len(piece.picture) + piece.sound.nbytes
