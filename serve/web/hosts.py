"""The names by which a server is asked that anybody on its machine may use."""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import shortened

from ..config import Config

OWN = ("localhost", "127.0.0.1", "::1")


def own_hosts(config: Config) -> list[Middleware]:
    """Return what refuses requests under foreign names, for a server without tokens that listens at
    a loopback address.

    A web page whose owner lets its name stand for 127.0.0.1 (DNS rebinding) is of the same origin
    as the server, so that a browser would let it do everything.
    """
    if config.server.tokens or "*" in config.web.origins or not _is_loopback(config.server.host):
        return []
    origins = {urlsplit(origin).hostname for origin in config.web.origins}
    names = frozenset([*OWN, config.server.host.lower(), *filter(None, origins)])
    return [Middleware(Hosts, names=names)]


class Hosts:
    """Refuses requests whose header Host has another name. The port does not matter."""

    def __init__(self, application: ASGIApp, names: frozenset[str]):
        self._application, self._names = application, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            host = Headers(scope=scope).get("host", "")
            if _name(host) not in self._names:
                line = (
                    f"the host is {shortened(host)}; expected localhost or 127.0.0.1, or "
                    "web.origins that names it, or a server with tokens\n"
                )
                await PlainTextResponse(line, 421)(scope, receive, send)
                return
        await self._application(scope, receive, send)


def _name(host: str) -> str | None:
    """Return the name in a header Host, without the port; None if it has none."""
    try:
        return None if "@" in host else urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
