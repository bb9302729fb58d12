"""The WebSocket `/v1/live`: speech of a client to a session, events and pieces back."""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from engine.errors import shortened

from ..errors import INTERNAL
from ..refused import Refused
from ..rpc.calls import Refused as RpcRefused
from ..speech import MESSAGE_SECONDS
from .answers import refusal, refusals
from .avatars import capacity, first_avatar
from .bodies import MAX_TEXT, parse_object
from .gate import Gate
from .open import Open, read_open
from .outbox import Outbox, Unread
from .session import WebSession
from .sessions import WebSessions

OPEN_SECONDS = 10.0  # in which the first message must come
MOST_WAITING, MOST_OF_ADDRESS = 100, 20  # sockets without a session: of all, of one address
REFUSED, TOO_BIG, OUR_FAULT, GOING_AWAY, NORMAL = 1008, 1009, 1011, 1001, 1000

_log = logging.getLogger(__name__)


def routes(sessions: WebSessions, gate: Gate) -> list[BaseRoute]:
    """Return the route `/v1/live`, and one for all others."""
    waiting = Waiting()

    async def live(socket: WebSocket) -> None:
        try:
            gate.check_origin(socket)
            place = waiting.place(socket.client.host if socket.client else "")
        except Refused as error:
            await socket.send_denial_response(refusal(error))
            return
        with place as left:
            await socket.accept()
            await Talk(socket, sessions, gate, left).run()

    async def nowhere(socket: WebSocket) -> None:  # else it would be 403, as without a token
        line = f"there is no WebSocket at {shortened(socket.url.path)}; expected /v1/live"
        await socket.send_denial_response(refusal(Refused(404, line)))

    return [WebSocketRoute("/v1/live", live), WebSocketRoute("/{other:path}", nowhere)]


class Waiting:
    """Sockets that have no session yet. Their number is bounded."""

    def __init__(self) -> None:
        self._of = Counter[str]()  # each address
        self._told = False

    def place(self, address: str) -> Any:
        """Return a context manager that takes a place, whose value is called to leave it.

        Raises:
            Refused: there are too many.
        """
        total, own = self._of.total(), self._of[address]
        if total >= MOST_WAITING or own >= MOST_OF_ADDRESS:
            if not self._told:
                _log.warning("WebSockets are refused: %d wait to be opened", total)
                self._told = True
            whose = (
                f"{own} connections of {address}"
                if own >= MOST_OF_ADDRESS
                else f"{total} connections"
            )
            raise Refused(503, f"{whose} wait to be opened; expected fewer")
        return self._one(address)

    @contextmanager
    def _one(self, address: str) -> Iterator[Any]:
        self._of[address] += 1
        there = True

        def leave() -> None:
            nonlocal there
            if there:
                there = False
                self._of[address] -= 1
                if not self._of[address]:
                    del self._of[address]
                if not self._of:
                    self._told = False

        try:
            yield leave
        finally:
            leave()


class Talk:
    """A connection.

    Args:
        opened: to be called when it has a session.
    """

    def __init__(self, socket: WebSocket, sessions: WebSessions, gate: Gate, opened: Any):
        self._socket, self._sessions, self._gate, self._opened = socket, sessions, gate, opened
        self._idle_seconds = sessions.config.limits.idle_seconds
        self._closed = False  # by the client, in words
        self._gone = False

    async def run(self) -> None:
        """Return when it is closed."""
        code, line = NORMAL, None
        try:
            with refusals("a WebSocket"):
                try:
                    line = await self._talk()
                except (WebSocketDisconnect, Unread):
                    self._gone = True
        except Refused as error:
            code, line = _code(error.status), error.line
        if line is not None and code == NORMAL:
            code = OUR_FAULT if line == INTERNAL else REFUSED
        if self._sessions.ending:
            code = GOING_AWAY
        if not self._gone:
            await self._end(code, line)

    async def _end(self, code: int, line: str | None) -> None:
        """Say why it ends, and close it; if the client reads nothing, it is cut off later."""
        with suppress(TimeoutError, WebSocketDisconnect, RuntimeError):  # the last: it is closed
            async with asyncio.timeout(OPEN_SECONDS):
                if line is not None:
                    await self._socket.send_json({"type": "error", "message": line})
                await self._socket.close(code)

    async def _talk(self) -> str | None:
        """Open a session and serve it. Return why it has ended, if nobody wanted that."""
        chosen = await self._first()
        sound = chosen.sound()
        session = await self._sessions.open(
            self._avatar(chosen),
            sample_rate=sound.rate,
            channels=sound.channels,
            prebuffer=chosen.prebuffer,
            clock=chosen.clock,
        )
        with session.hold():
            self._opened()
            outbox = Outbox(self._socket, session, self._sessions, chosen.picture, sound)
            outbox.tell(self._describe(session, chosen))
            session.attach(outbox)
            try:
                return await self._serve(session, outbox, sound)
            except (WebSocketDisconnect, Unread):  # a player may go on with it
                raise
            except Exception as error:
                session.end(error.line if isinstance(error, Refused) else INTERNAL)
                raise
            finally:
                session.detach(outbox)
                if self._closed:
                    await session.close()

    async def _serve(self, session: WebSession, outbox: Outbox, sound: Any) -> str | None:
        """Take messages and send others until one of both ends."""
        receiving = asyncio.create_task(self._receive(session, outbox, sound))
        sending = asyncio.create_task(outbox.run())
        tasks = (receiving, sending)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                receiving.result()
                return None
            return sending.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the first message -----------------------------------------------------------------------

    async def _first(self) -> Open:
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                message = await self._next()
        except TimeoutError:
            line = f"no message came for {OPEN_SECONDS:g} s; expected one of type 'open'"
            raise Refused(408, line) from None
        if isinstance(message, bytes):
            raise Refused(400, "the first message is binary; expected JSON")
        chosen = read_open(message)
        token = self._gate.token_of(self._socket)
        self._gate.check_given(chosen.token if token is None else token)
        return chosen

    def _avatar(self, chosen: Open) -> str:
        return (
            chosen.avatar or self._socket.query_params.get("avatar") or first_avatar(self._sessions)
        )

    def _describe(self, session: WebSession, chosen: Open) -> dict[str, Any]:
        live = session.served.live
        return {
            "type": "opened",
            "session": session.id,
            "avatar": session.avatar,
            "width": session.width,
            "height": session.height,
            "fps": float(session.fps),
            "sample_rate": session.sample_rate,
            "channels": session.channels,
            "sample_format": chosen.sample_format,
            "picture": chosen.picture,
            "prebuffer": chosen.prebuffer,
            "clock": chosen.clock,
            "capacity": capacity(self._sessions, session.served),
            "sessions": self._sessions.places.of(session.avatar),
            "runtime": f"generator in {live.pipeline.generator.description}",
            "voice": session.voice is not None,
        }

    # --- messages --------------------------------------------------------------------------------

    async def _next(self) -> bytes | dict[str, Any]:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if (data := message.get("bytes")) is not None:
            return bytes(data)
        text = message.get("text") or ""
        if len(text) > MAX_TEXT:
            line = f"the message has {len(text)} characters; expected at most {MAX_TEXT}"
            raise Refused(413, line)
        return parse_object(text)

    async def _receive(self, session: WebSession, outbox: Outbox, sound: Any) -> None:
        """Take messages until the client closes."""
        while not self._closed:
            message = await self._patiently(outbox)
            if isinstance(message, bytes):
                await self._push(session, message, sound)
                outbox.pushed(len(message) // sound.frame_bytes)
            else:
                self._command(session, outbox, message)

    async def _patiently(self, outbox: Outbox) -> bytes | dict[str, Any]:
        """Wait for the next message, longer while something is spoken."""
        loop = asyncio.get_running_loop()
        outbox.stirred = loop.time()
        receiving = asyncio.ensure_future(self._next())
        try:
            while True:
                left = outbox.stirred + self._idle_seconds - loop.time()
                if left <= 0:
                    line = f"no message came, and nothing was spoken, for {self._idle_seconds:g} s"
                    raise Refused(408, line)
                done, _ = await asyncio.wait([receiving], timeout=left)
                if done:
                    return receiving.result()
        finally:
            if not receiving.cancel() and not receiving.cancelled():
                receiving.exception()  # so that nobody misses it

    async def _push(self, session: WebSession, data: bytes, sound: Any) -> None:
        try:
            sound.check(data, MESSAGE_SECONDS)
            samples: np.ndarray = sound.samples(data)
        except RpcRefused as error:
            large = len(data) > MESSAGE_SECONDS * sound.rate * sound.frame_bytes
            raise Refused(413 if large else 400, error.line) from None
        if session.clock == "taken":
            await session.push_waiting(samples)
        else:
            session.push(samples)

    def _command(self, session: WebSession, outbox: Outbox, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "flush":
            session.flush()
            outbox.flushed()
        elif kind == "interrupt":
            outbox.interrupted(session.interrupt())
        elif kind == "say":
            self._say(session, outbox, message.get("text"))
        elif kind == "close":
            self._closed = True
        else:
            expected = "expected flush, interrupt, say or close"
            raise Refused(400, f"a message is of type {shortened(kind)}; {expected}")

    def _say(self, session: WebSession, outbox: Outbox, text: Any) -> None:
        if not isinstance(text, str):
            raise Refused(400, f"text is {shortened(text)}; expected text")
        try:
            session.say(text)
        except Refused as error:  # the session goes on
            outbox.unspoken(error.line)


def _code(status: int) -> int:
    if status == 413:
        return TOO_BIG
    return OUR_FAULT if status == 500 else REFUSED
