"""The server's avatars, as clients see them, and the address `/v1/avatars`."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from engine import __version__

from ..config import IceServer
from ..refused import Refused
from .answers import answered
from .gate import Gate
from .sessions import WebSessions


def routes(sessions: WebSessions, gate: Gate) -> list[BaseRoute]:
    """Return the route `/v1/avatars`."""

    @answered
    async def show(request: Request) -> Response:
        gate.check(request)
        web = sessions.config.web
        answer = {
            "avatars": [_describe(sessions, entry.name) for entry in sessions.registry.entries()],
            "voice": sessions.voice is not None,
            "ice_servers": [_ice_server(server) for server in web.ice_servers],
            "recording": web.recordings is not None,
            "version": __version__,
        }
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})

    return [Route("/v1/avatars", show)]


def first_avatar(sessions: WebSessions) -> str:
    """Return the name of the server's first avatar.

    Raises:
        Refused: there is none.
    """
    for entry in sessions.registry.entries():
        return str(entry.name)
    raise Refused(404, "this server has no avatar")


def capacity(sessions: WebSessions, served: Any) -> int:
    """Return how many sessions of a loaded avatar there may be."""
    return int(min(served.live.capacity(), sessions.config.limits.max_sessions))


def _describe(sessions: WebSessions, name: str) -> dict[str, Any]:
    """Describe an avatar. Of one that is not loaded, most is not known."""
    served = sessions.registry.peek(name)
    known: dict[str, Any] = dict.fromkeys(("width", "height", "fps", "capacity"))
    if served is not None:
        avatar = served.avatar
        known = {
            "width": avatar.width,
            "height": avatar.height,
            "fps": float(avatar.fps),
            "capacity": capacity(sessions, served),
        }
    return {
        "name": name,
        "loaded": served is not None,
        **known,
        "sessions": sessions.places.of(name),
    }


def _ice_server(server: IceServer) -> dict[str, Any]:
    """Return a server as browsers' RTCIceServer."""
    described: dict[str, Any] = {"urls": list(server.urls)}
    if server.username is not None:
        described["username"] = server.username
    if server.credential is not None:
        described["credential"] = server.credential
    return described
