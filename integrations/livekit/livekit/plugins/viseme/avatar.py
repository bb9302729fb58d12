"""The avatar of an agent, in the agent's process or on a server."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from livekit import api, rtc
from livekit.agents import AgentSession, APIConnectionError, APIStatusError, get_job_context
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.voice.avatar import (
    AvatarRunner,
    DataStreamAudioOutput,
    QueueAudioOutput,
)
from livekit.agents.voice.avatar import AvatarSession as BaseAvatarSession

if TYPE_CHECKING:
    from engine.live import Live

SAMPLE_RATE = 24000  # Hz
IDENTITY = "viseme-avatar"
ANSWER_SECONDS = 150.0  # the server may have to load the avatar
TOKEN_HOURS = 6.0


class AvatarSession(BaseAvatarSession[Any]):
    """The avatar of an agent. Start it before the `AgentSession`.

    Without `url` the avatar lives in the agent's process, which publishes its picture and sound.
    With it, a Viseme server joins the room as a participant of its own, on behalf of the agent.

    Args:
        avatar: its folder, or a `engine.live.Live` that agents share; with `url`, its name there,
            None for the server's first one.
        url: of the Viseme server, such as "http://gpu-host:8010".
        token: of that server; unless given, the environment's VISEME_TOKEN.
        sample_rate: of the speech, Hz. LiveKit resamples a voice that has another.
        identity: of the avatar in the room, with `url`.
    """

    def __init__(
        self,
        avatar: "str | os.PathLike[str] | Live | None" = None,
        *,
        url: str | None = None,
        token: str | None = None,
        sample_rate: int = SAMPLE_RATE,
        identity: str = IDENTITY,
    ):
        super().__init__()
        if url is None and avatar is None:
            raise ValueError("there is no avatar; expected its folder, or the url of a server")
        if url is not None and not isinstance(avatar, str | None):
            raise ValueError(f"avatar is {avatar!r}; expected its name on the server")
        self._avatar, self._url, self._sample_rate = avatar, url, sample_rate
        self._token = os.environ.get("VISEME_TOKEN") if token is None else token
        self._identity = identity
        self._local = ExitStack()
        self._runner: AvatarRunner | None = None

    @property
    def avatar_identity(self) -> str:
        """The participant that publishes the avatar."""
        if self._url is None and self._room is not None:
            return self._room.local_participant.identity
        return self._identity

    @property
    def provider(self) -> str:
        return "viseme"

    async def start(
        self,
        agent_session: AgentSession,
        room: rtc.Room,
        *,
        livekit_url: str | None = None,
        livekit_api_key: str | None = None,
        livekit_api_secret: str | None = None,
    ) -> None:
        """Give the agent its avatar.

        Args:
            livekit_url, livekit_api_key, livekit_api_secret: of LiveKit's server, with which the
                Viseme server joins; unless given, the environment's LIVEKIT_URL and so on.

        Raises:
            APIStatusError, APIConnectionError: the Viseme server refuses, or is not there.
            ValueError: LiveKit's server or its key is not known.
            engine.errors.InputError: the avatar's folder cannot be used.
        """
        if self._url is None:
            await super().start(agent_session, room)
            async with self._closed_on_failure():
                await self._start_local(agent_session, room)
            return
        url = livekit_url or os.environ.get("LIVEKIT_URL")
        key = livekit_api_key or os.environ.get("LIVEKIT_API_KEY")
        secret = livekit_api_secret or os.environ.get("LIVEKIT_API_SECRET")
        if not (url and key and secret):
            raise ValueError(
                "LiveKit's server is not known; expected LIVEKIT_URL, LIVEKIT_API_KEY and "
                "LIVEKIT_API_SECRET in the environment, or the arguments"
            )
        token = (
            api.AccessToken(key, secret)
            .with_kind("agent")
            .with_identity(self._identity)
            .with_name("Viseme")
            .with_ttl(timedelta(hours=TOKEN_HOURS))
            .with_grants(api.VideoGrants(room_join=True, room=room.name))
            .with_attributes({ATTRIBUTE_PUBLISH_ON_BEHALF: _agent(room)})
            .to_jwt()
        )
        await super().start(agent_session, room)
        async with self._closed_on_failure():
            await self._ask(url, token, room.name)
        agent_session.output.audio = DataStreamAudioOutput(
            room,
            destination_identity=self._identity,
            sample_rate=self._sample_rate,
            wait_remote_track=rtc.TrackKind.KIND_VIDEO,
            wait_playback_start=True,
        )

    async def aclose(self) -> None:
        """Take the avatar away."""
        if self._runner is not None:
            await self._runner.aclose()
            self._runner = None
        if self._url is None and self._room is not None:
            # what follows removes the avatar's participant, and this one is the agent
            self._room.off("connection_state_changed", self._on_connection_state_changed)
            self._room = None
        await super().aclose()
        await asyncio.to_thread(self._local.close)

    @asynccontextmanager
    async def _closed_on_failure(self) -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            await self.aclose()
            raise

    async def _start_local(self, agent_session: AgentSession, room: rtc.Room) -> None:
        from serve.livekit.generator import VisemeGenerator

        live = await asyncio.to_thread(self._load)
        generator = VisemeGenerator(live, sample_rate=self._sample_rate)
        self._local.callback(generator.close)
        output = QueueAudioOutput(sample_rate=self._sample_rate, wait_playback_start=True)
        self._runner = AvatarRunner(
            room, audio_recv=output, video_gen=generator, options=generator.options
        )
        await self._runner.start()
        agent_session.output.audio = output

    def _load(self) -> "Live":
        from engine import Avatar
        from engine.live import Live

        if isinstance(self._avatar, Live):
            return self._avatar
        assert self._avatar is not None
        return self._local.enter_context(Live(Avatar.load(Path(self._avatar))))

    async def _ask(self, url: str, token: str, room: str) -> None:
        """Let the server join the room."""
        assert self._url is not None
        body = {
            "livekit_url": url,
            "livekit_token": token,
            "room_name": room,
            "avatar": self._avatar,
            "sample_rate": self._sample_rate,
        }
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        timeout = aiohttp.ClientTimeout(ANSWER_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as client,
                client.post(
                    f"{self._url.rstrip('/')}/livekit/sessions", json=body, headers=headers
                ) as answer,
            ):
                if answer.status != 201:
                    line = (await answer.text())[:1000].strip()
                    raise APIStatusError(
                        f"the Viseme server refuses: {line}", status_code=answer.status, body=line
                    )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise APIConnectionError(f"the Viseme server cannot be asked: {error}") from error


def _agent(room: rtc.Room) -> str:
    """Return the agent's identity, also before it is in the room."""
    job = get_job_context(required=False)
    return room.local_participant.identity if job is None else job.local_participant_identity
