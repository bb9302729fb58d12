"""What Prometheus, load balancers and orchestrators ask for, over HTTP."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .config import Tls
from .metrics import Metrics

CONNECTIONS = 100

Fault = Callable[[], str | None]  # says what is wrong; None if nothing is


def app(metrics: Metrics, *, alive: Fault, ready: Fault) -> Starlette:
    """Return the application: /metrics, /healthz and /readyz, in plain text."""

    async def show(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def healthz(_: Request) -> Response:
        return _answer(alive())

    async def readyz(_: Request) -> Response:
        return _answer(ready())

    return Starlette(
        routes=[Route("/metrics", show), Route("/healthz", healthz), Route("/readyz", readyz)]
    )


class HttpServer(uvicorn.Server):
    """Serves an application on a socket, in an event loop that others use too.

    The process's signals are not its own. Runs as `serve([socket])`.
    """

    def __init__(self, application: Starlette, tls: Tls | None):
        super().__init__(
            uvicorn.Config(
                application,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=CONNECTIONS,
                timeout_graceful_shutdown=1,
                ssl_certfile=None if tls is None else str(tls.certificate),
                ssl_keyfile=None if tls is None else str(tls.key),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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


def _answer(fault: str | None) -> Response:
    return PlainTextResponse("ok\n") if fault is None else PlainTextResponse(f"{fault}\n", 503)
