"""Everything over HTTP: what browsers and players use, and what operators ask for."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .config import Config, Tls
from .metrics import Metrics
from .web import avatars, livekit, livetalking, pages, recording, whep
from .web import socket as web_socket
from .web.gate import Gate
from .web.peer import ice_servers
from .web.protocol import SETTINGS
from .web.sessions import WebSessions

CONNECTIONS = 100  # beside those of sessions
SESSION_CONNECTIONS = 2  # its socket, and what its page asks for
UNKNOWN = "unknown"  # instead of what a client made up
SILENT_SECONDS = 10.0
UNREAD_SECONDS = 30.0  # in which a client must read something of an answer

Fault = Callable[[], str | None]  # says what is wrong; None if nothing is


def app(
    metrics: Metrics,
    *,
    alive: Fault,
    ready: Fault,
    routes: Sequence[BaseRoute] = (),
    middleware: Sequence[Middleware] = (),
) -> Starlette:
    """Return the application: /metrics, /healthz and /readyz, in plain text, and other routes."""

    async def show(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        return _answer(alive())

    async def readyz(_: Request) -> Response:
        return _answer(ready())

    own = [Route("/metrics", show), Route("/healthz", healthz), Route("/readyz", readyz)]
    return Starlette(
        routes=[*own, *routes], middleware=[Middleware(Counting, metrics=metrics), *middleware]
    )


def web_routes(sessions: WebSessions, config: Config) -> list[BaseRoute]:
    """Return the addresses of browsers and players.

    Raises:
        InputError: the configuration has a STUN or TURN server that cannot be read.
    """
    ice_servers(config.web)
    gate = Gate(config)
    return [
        *pages.routes(),
        *avatars.routes(sessions, gate),
        *web_socket.routes(sessions, gate),
        *whep.routes(sessions, config, gate),
        *livetalking.routes(sessions, gate),
        *livekit.routes(sessions, gate),
        *recording.routes(sessions.recordings, gate),
    ]


class Counting:
    """Counts the requests of an application, when they are over, by their routes."""

    def __init__(self, application: ASGIApp, metrics: Metrics):
        self._application, self._metrics = application, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._application(scope, receive, send)
            return
        begin, code = time.perf_counter(), "none"  # the client was gone before the answer

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                code = str(message["status"])
            elif message["type"] == "websocket.accept":
                code = "101"
            elif message["type"] == "websocket.close" and code == "none":
                code = "403"
            await send(message)

        try:
            await self._application(scope, receive, noting)
        except Exception:
            code = "500"
            raise
        finally:
            path = getattr(scope.get("route"), "path", UNKNOWN)
            self._metrics.requests.labels("http", path, code).inc()
            if scope["type"] == "http":
                self._metrics.request_seconds.labels(path).observe(time.perf_counter() - begin)


class Connection(H11Protocol):
    """A connection, for which another one gives way if there are too many: the oldest of those that
    ask for nothing, or read nothing.

    uvicorn would take it, and refuse the requests of all, also of those that ask whether it lives.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.since = time.monotonic()
        if len(self.connections) >= (self.limit_concurrency or CONNECTIONS):
            idle = [
                one
                for one in self.connections
                if isinstance(one, Connection) and (_is_silent(one) or _unread(one))
            ]
            oldest = min(idle, key=lambda one: one.since)  # this one, if no other is idle
            self.connections.discard(oldest)
            oldest.transport.abort()


class HttpServer(uvicorn.Server):
    """Serves an application on a socket, in an event loop that others use too.

    The process's signals are not its own. Runs as `serve([socket])`.

    Args:
        sessions: live sessions for which there must be connections.
    """

    def __init__(self, application: Starlette, tls: Tls | None, *, sessions: int = 0):
        super().__init__(
            uvicorn.Config(
                application,
                http=Connection,  # of h11, the only one that limits a request's header
                lifespan="off",
                **SETTINGS,
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS + SESSION_CONNECTIONS * sessions,
                timeout_graceful_shutdown=1,
                ssl_certfile=None if tls is None else str(tls.certificate),
                ssl_keyfile=None if tls is None else str(tls.key),
            )
        )
        # connections that do nothing: bytes that they have not read, and since when
        self._still = dict[Any, tuple[int, float]]()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        """Close connections that have asked for nothing, or have read nothing of an answer, for a
        while: others need the places.

        uvicorn does so only after an answer, not while it waits for the rest of a request.
        """
        now, before = time.monotonic(), self._still
        self._still = {}
        for connection in list(self.server_state.connections):
            unread = _unread(connection)
            if not unread and not _is_silent(connection):
                continue
            same, since = before.get(connection, (unread, now))
            since = since if same == unread else now
            self._still[connection] = unread, since
            if now - since > (UNREAD_SECONDS if unread else SILENT_SECONDS):
                connection.transport.abort()
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the first address of a host.

    Raises:
        OSError: the port is in use, or the host is not this machine's.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError:
        found.close()
        raise
    return found


def _is_silent(connection: Any) -> bool:
    """Whether no request of an HTTP connection is being answered."""
    cycle = getattr(connection, "cycle", connection)
    return cycle is None or getattr(cycle, "response_complete", False)


def _unread(connection: Any) -> int:
    """Return the bytes of answers that the system has not taken yet."""
    return int(connection.transport.get_write_buffer_size())


def _answer(fault: str | None) -> Response:
    return PlainTextResponse("ok\n") if fault is None else PlainTextResponse(f"{fault}\n", 503)
