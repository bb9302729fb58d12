"""`POST /livekit/sessions`: an avatar joins a LiveKit room, for an agent that is there."""

import asyncio
import base64
import json
import logging
import secrets
from contextlib import suppress
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from engine.errors import InputError, one_line, shortened
from engine.live import Piece

from ..config_file import validated
from ..counting import SessionCounters
from ..refused import Refused
from ..web_values import livekit_origin
from .answers import answered
from .avatars import first_avatar
from .bodies import json_object
from .gate import Gate
from .sessions import WebSessions

ON_BEHALF = "lk.publish_on_behalf"
MAX_TOKEN = 16_000  # characters
NOT_INSTALLED = "livekit-agents is not installed on this server; pip install 'viseme[livekit]'"

_log = logging.getLogger(__name__)


class Wanted(BaseModel):
    """What a client wants.

    Attributes:
        livekit_url: of a server that `web.livekit_urls` names.
        livekit_token: with which the avatar joins the room, on behalf of the agent.
        room_name: of that room.
        avatar: its name; None for the first one of the server.
        sample_rate: of the sound in the room, Hz. Speech of another one is resampled.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    livekit_url: str
    livekit_token: str = Field(repr=False)
    room_name: str
    avatar: str | None = None
    sample_rate: int = 24000


def routes(sessions: WebSessions, gate: Gate) -> list[BaseRoute]:
    """Return the route."""

    @answered
    async def open_session(request: Request) -> Response:
        gate.check(request)
        wanted = read_wanted(await json_object(request), sessions.config.web.livekit_urls)
        try:  # the first time, this takes a second
            await asyncio.to_thread(import_module, "serve.livekit.room")
        except ImportError:
            raise Refused(501, NOT_INSTALLED) from None
        joining = Joining(sessions, wanted)
        avatar = wanted.avatar or first_avatar(sessions)
        id = await sessions.run(avatar, joining.serve)
        return JSONResponse({"session_id": id, "avatar": avatar}, 201)

    return [Route("/livekit/sessions", open_session, methods=["POST"])]


def read_wanted(message: dict[str, Any], origins: tuple[str, ...]) -> Wanted:
    """Read a request.

    Args:
        origins: of the LiveKit servers that may be joined.

    Raises:
        Refused: 400: a key that nobody knows, or a value that cannot be used; 403: another server.
    """
    for key in message:
        if key not in Wanted.model_fields:
            expected = ", ".join(Wanted.model_fields)
            raise Refused(400, f"{shortened(key)} is not known; expected: {expected}")
    try:
        wanted = validated(Wanted, message, lambda keys, line: InputError(f"{keys[0]}: {line}"))
    except InputError as error:
        raise Refused(400, error) from None
    origin = livekit_origin(wanted.livekit_url)
    if origin is None:
        line = f"livekit_url is {shortened(wanted.livekit_url)}; expected such as wss://HOST"
        raise Refused(400, line)
    if origin not in map(livekit_origin, origins):
        raise Refused(403, f"livekit_url is {shortened(origin)}; expected one of web.livekit_urls")
    _check_token(wanted)
    return wanted


def _check_token(wanted: Wanted) -> None:
    """Check what a token says. Whether it is valid, LiveKit's server knows."""
    claims = _claims(wanted.livekit_token)
    video, attributes = claims.get("video"), claims.get("attributes")
    room = video.get("room") if isinstance(video, dict) else None
    if room != wanted.room_name:
        found, wanted_name = shortened(room), shortened(wanted.room_name)
        raise Refused(400, f"livekit_token is for the room {found}; room_name is {wanted_name}")
    if claims.get("kind") != "agent":
        kind = shortened(claims.get("kind"))
        raise Refused(400, f"livekit_token is of the kind {kind}; expected 'agent'")
    if not (isinstance(attributes, dict) and attributes.get(ON_BEHALF)):
        raise Refused(
            400, f"livekit_token has no attribute {ON_BEHALF}; expected the agent's identity"
        )


def _claims(token: str) -> dict[str, Any]:
    parts = token.split(".")
    if len(parts) == 3 and len(token) <= MAX_TOKEN:
        with suppress(ValueError, RecursionError):
            claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=="))
            if isinstance(claims, dict):
                return claims
    raise Refused(400, "livekit_token cannot be read; expected a JSON Web Token of LiveKit")


class Joining:
    """An avatar that joins a room, and stays until the room or its agent is gone."""

    def __init__(self, sessions: WebSessions, wanted: Wanted):
        self._sessions, self._wanted = sessions, wanted

    async def serve(self, served: Any, opened: "asyncio.Future[str]") -> None:
        """See `WebSessions.run`. The result is the session's name in the log."""
        from ..livekit.generator import VisemeGenerator
        from ..livekit.room import AvatarRoom

        wanted, limits = self._wanted, self._sessions.config.limits
        counters = SessionCounters(self._sessions.metrics, served.name)

        def count(_: Piece) -> None:
            counters.frame()
            counters.events(generator.session.counts)

        generator = VisemeGenerator(
            served.live,
            sample_rate=wanted.sample_rate,
            taken=count,
        )
        joined = AvatarRoom()
        try:
            try:
                await joined.connect(wanted.livekit_url, wanted.livekit_token)
            except InputError as error:
                raise Refused(502, error) from None
            name = secrets.token_hex(8)
            if opened.done():  # the client has left
                return
            opened.set_result(name)
            _log.info("LiveKit session %s of %s began", name, served.name)
            try:
                async with asyncio.timeout(limits.max_session_seconds):
                    why = await joined.run(generator)
            except TimeoutError:
                why = f"it was {limits.max_session_seconds:g} s long, the most"
            except InputError as error:
                why = one_line(error)
            _log.info("LiveKit session %s ended: %s", name, why)
        finally:
            generator.close()
            await joined.leave()
