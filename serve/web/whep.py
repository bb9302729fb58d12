"""WHEP (draft-ietf-wish-whep): players get a session's picture and sound by WebRTC.

An offer is a POST of application/sdp to /whep/SESSION, for a session that is open, or to
/whep/?avatar=NAME, for one that lasts as long as the player. The answer has all candidates, so that
no PATCH is needed.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..config import Config, IceServer
from ..refused import Refused
from .answers import answered
from .bodies import sdp
from .gate import Gate
from .peer import connect
from .session import WebSession
from .sessions import WebSessions

SDP = "application/sdp"
OTHERS = ["OPTIONS", "PATCH", "GET", "PUT", "DELETE"]


def routes(sessions: WebSessions, config: Config, gate: Gate) -> list[BaseRoute]:
    """Return the addresses of WHEP."""
    players = Players(sessions, config, gate)
    return [
        Route("/whep", players.begin, methods=["POST"]),
        Route("/whep/", players.begin, methods=["POST"]),
        Route("/whep/{session}", players.join, methods=["POST"]),
        Route("/whep/{session}/{peer}", players.leave, methods=["DELETE"]),
        Route("/whep", _others("POST"), methods=OTHERS),
        Route("/whep/", _others("POST"), methods=OTHERS),
        Route("/whep/{session}", _others("POST"), methods=OTHERS),
        Route("/whep/{session}/{peer}", _others("DELETE"), methods=[*OTHERS, "POST"]),
    ]


class Players:
    """The handlers."""

    def __init__(self, sessions: WebSessions, config: Config, gate: Gate):
        self._sessions, self._config, self._gate = sessions, config, gate
        self.begin, self.join = answered(self._begin), answered(self._join)
        self.leave = answered(self._leave)

    async def _begin(self, request: Request) -> Response:
        """Open a session for a player that only watches."""
        self._gate.check(request)
        avatar = request.query_params.get("avatar")
        if not avatar:
            raise Refused(400, "there is no avatar; expected /whep/?avatar=NAME or /whep/SESSION")
        offer = await sdp(request)
        session = await self._sessions.open(avatar)
        try:
            return await self._answer(session, offer, last=True)
        except BaseException:
            session.end(None)
            raise

    async def _join(self, request: Request) -> Response:
        self._gate.check(request)
        session = self._sessions.get(request.path_params["session"])
        return await self._answer(session, await sdp(request), last=False)

    async def _leave(self, request: Request) -> Response:
        self._gate.check(request)
        session = self._sessions.get(request.path_params["session"])
        id = request.path_params["peer"]
        if session.peer is not None and session.peer.id == id:
            await session.peer.close()
        elif id not in session.former_peers:  # which have ended their connections before
            raise Refused(404, "there is no such player; expected the Location of an answer")
        return Response(status_code=200)

    async def _answer(self, session: WebSession, offer: str, *, last: bool) -> Response:
        peer = await connect(session, offer, self._config, last=last)
        response = Response(peer.answer, 201, media_type=SDP)
        response.headers["Location"] = f"/whep/{session.id}/{peer.id}"
        for server in self._config.web.ice_servers:
            for link in _links(server):
                response.headers.append("Link", link)
        return response


def _links(server: IceServer) -> list[str]:
    """Return a STUN or TURN server as WHEP's headers, section 4.6."""
    login = ""
    if server.username is not None and server.credential is not None:
        login = (
            f"; username={_quoted(server.username)}; credential={_quoted(server.credential)}"
            '; credential-type="password"'
        )
    return [f'<{url}>; rel="ice-server"{login}' for url in server.urls]


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _others(allowed: str) -> Any:
    """Return a handler that says which method is served."""

    async def answer(request: Request) -> Response:
        headers = {"Allow": f"{allowed}, OPTIONS", "Accept-Post": SDP}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        line = f"the method is {request.method}; expected {allowed}\n"
        return Response(line, 405, headers, media_type="text/plain")

    return answer
