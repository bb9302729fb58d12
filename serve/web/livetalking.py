"""The routes of LiveTalking, so that its front ends need no change.

Whatever fails is answered with status 200 and `{"code": -1, "msg": ...}`, as there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from engine.errors import shortened
from engine.media.speech import audio_blocks, audio_frame

from .. import decoding
from ..refused import Refused
from ..speech import Backlog
from . import peer
from .answers import closing, refusals
from .avatars import first_avatar
from .bodies import Uploads, json_object, read_file
from .gate import Gate
from .session import WebSession
from .sessions import WebSessions

Handler = Callable[[Request], Awaitable[dict[str, Any]]]


def routes(sessions: WebSessions, gate: Gate) -> list[BaseRoute]:
    """Return LiveTalking's routes, but for `GET /record/{session}`."""
    there = LiveTalking(sessions)
    handlers: dict[str, Handler] = {
        "/offer": there.offer,
        "/human": there.human,
        "/humanaudio": there.humanaudio,
        "/interrupt_talk": there.interrupt_talk,
        "/is_speaking": there.is_speaking,
        "/record": there.record,
        "/set_audiotype": there.set_audiotype,
    }
    return [Route(path, _answered(h, gate), methods=["POST"]) for path, h in handlers.items()]


def _answered(handler: Handler, gate: Gate) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            with refusals(f"POST {request.url.path}"):
                gate.check(request)
                return JSONResponse(await handler(request))
        except Refused as error:
            return JSONResponse({"code": -1, "msg": error.line}, headers=closing(error))

    return answer


def _ok(**data: Any) -> dict[str, Any]:
    return {"code": 0, "msg": "ok", **data}


class LiveTalking:
    """What the routes do."""

    def __init__(self, sessions: WebSessions):
        self._sessions = sessions
        self._limits = sessions.config.limits
        self._uploads = Uploads(int(self._limits.max_upload_mb * 1e6))

    async def offer(self, request: Request) -> dict[str, Any]:
        """Open a session, and connect a player to it by WebRTC."""
        params = await json_object(request)
        sdp = _text(params, "sdp")
        if params.get("type", "offer") != "offer":
            raise Refused(400, f"type is {shortened(params['type'])}; expected 'offer'")
        avatar = params.get("avatar") or first_avatar(self._sessions)
        if not isinstance(avatar, str):
            raise Refused(400, f"avatar is {shortened(avatar)}; expected a name")
        session = await self._sessions.open(avatar)
        try:
            player = await peer.connect(session, sdp, self._sessions.config)
        except BaseException:
            session.end(None)
            raise
        return {"sdp": player.answer, "type": "answer", "sessionid": session.id}

    async def human(self, request: Request) -> dict[str, Any]:
        """Speak a text."""
        params = await json_object(request)
        session = self._sessions.get(params.get("sessionid"))
        kind = params.get("type")
        if kind == "chat":
            line = "there is no language model here; expected the type 'echo', with what to say"
            raise Refused(501, line)
        if kind != "echo":
            raise Refused(400, f"type is {shortened(kind)}; expected 'echo'")
        text = _text(params, "text")
        if params.get("interrupt"):
            session.interrupt()
        session.say(text)
        return _ok()

    async def humanaudio(self, request: Request) -> dict[str, Any]:
        """Speak what is in a media file."""
        async with self._uploads.form(request) as (fields, file):
            session = self._sessions.get(fields.get("sessionid"))
            if file is None:
                raise Refused(400, "the form has no file; expected one, named file")
            samples = await self._decode(await read_file(file), session)
        session.push(samples)
        session.flush()
        return _ok()

    async def _decode(self, file: bytes, session: WebSession) -> np.ndarray:
        """Return what is in a media file as the session takes it."""
        room = Backlog(session.sample_rate, session.channels).most / session.sample_rate
        most = min(self._limits.max_speech_seconds, room)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "sound.wav"
            await decoding.decode(file, max_seconds=most, sound=path)
            return await asyncio.to_thread(_samples, path, session.sample_rate, session.channels)

    async def interrupt_talk(self, request: Request) -> dict[str, Any]:
        """Drop what is being said."""
        (await self._session(request)).interrupt()
        return _ok()

    async def is_speaking(self, request: Request) -> dict[str, Any]:
        """Say whether something is being said."""
        return _ok(data=(await self._session(request)).speaking)

    async def record(self, request: Request) -> dict[str, Any]:
        """Begin or end a recording."""
        params = await json_object(request)
        session, kind = self._sessions.get(params.get("sessionid")), params.get("type")
        if kind == "start_record":
            self._sessions.recordings.start(session)
        elif kind == "end_record":
            await self._sessions.recordings.stop(session.id)
        else:
            expected = "expected 'start_record' or 'end_record'"
            raise Refused(400, f"type is {shortened(kind)}; {expected}")
        return _ok()

    async def set_audiotype(self, request: Request) -> dict[str, Any]:
        """Do nothing: an avatar here has one kind of motion."""
        await self._session(request)
        return _ok()

    async def _session(self, request: Request) -> WebSession:
        """Return the session that a request of nothing else names."""
        return self._sessions.get((await json_object(request)).get("sessionid"))


def _text(params: dict[str, Any], key: str) -> str:
    value = params.get(key)
    if not isinstance(value, str):
        raise Refused(400, f"{key} is {shortened(value)}; expected text")
    return value


def _samples(path: Path, rate: int, channels: int) -> np.ndarray:
    """Return (channels, S) float32 samples at a rate, of a file that `decoding` has written."""
    resampler = av.AudioResampler("fltp", None, rate)
    frames = [
        made
        for samples, own, first in audio_blocks(path)
        for made in resampler.resample(audio_frame(samples, own, first))
    ]
    frames += resampler.resample(None)
    sound = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
    if len(sound) > channels:
        return sound.mean(axis=0, keepdims=True)
    return sound.repeat(channels // len(sound), axis=0)  # FFmpeg would make it quieter
