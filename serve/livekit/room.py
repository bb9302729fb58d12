"""The avatar as a participant of a LiveKit room."""

import asyncio
import logging
from contextlib import suppress
from typing import Any

from livekit import rtc
from livekit.agents.types import ATTRIBUTE_PUBLISH_ON_BEHALF
from livekit.agents.utils import wait_for_participant
from livekit.agents.voice.avatar import AvatarRunner, DataStreamAudioReceiver

from engine.errors import InputError, one_line

from .generator import VisemeGenerator

CONNECT_SECONDS = 15.0
AGENT_SECONDS = 60.0  # in which the agent must be in the room
END_SECONDS = 5.0

_log = logging.getLogger(__name__)


class AvatarRoom:
    """A room that the avatar has joined, to publish on behalf of an agent.

    `connect`, then `run`; then, in any case, `leave`. For an event loop; made in it.
    """

    def __init__(self) -> None:
        self._room = rtc.Room()
        self._over: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def connect(self, url: str, token: str) -> None:
        """Join the room of a token.

        Raises:
            InputError: it cannot be joined.
        """
        self._room.on("disconnected", lambda *_: self._end("the room has ended"))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                # it has nothing to see or hear
                await self._room.connect(url, token, rtc.RoomOptions(auto_subscribe=False))
        except TimeoutError:
            raise InputError("the LiveKit server does not answer in time") from None
        except rtc.ConnectError as error:
            raise InputError(f"the LiveKit room cannot be joined: {one_line(error)}") from None

    async def run(self, generator: VisemeGenerator) -> str:
        """Publish the avatar until the room or its agent is gone.

        Returns:
            Why it has ended.

        Raises:
            InputError, DeviceError: the session has ended.
        """
        agent = self._room.local_participant.attributes.get(ATTRIBUTE_PUBLISH_ON_BEHALF)

        def left(participant: Any) -> None:
            if participant.identity == agent:
                self._end("the agent has left")

        self._room.on("participant_disconnected", left)
        there = await self._first(self._agent(agent))
        if there is not None:
            return there
        runner = AvatarRunner(
            self._room,
            audio_recv=DataStreamAudioReceiver(self._room, sender_identity=agent),
            video_gen=generator,
            options=generator.options,
        )
        await runner.start()  # does not wait, because the agent is there
        try:
            return await self._first(runner.wait_for_complete()) or "the agent's speech has ended"
        finally:
            generator.close()
            await runner.aclose()

    async def leave(self) -> None:
        """Leave the room."""
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._room.disconnect()

    async def _agent(self, identity: str | None) -> None:
        try:
            async with asyncio.timeout(AGENT_SECONDS):
                await wait_for_participant(self._room, identity=identity)
        except TimeoutError:
            self._end(f"the agent did not come within {AGENT_SECONDS:g} s")
        except RuntimeError:  # the room has ended
            self._end("the room has ended")

    async def _first(self, work: Any) -> str | None:
        """Wait for work or the end, and return why it has ended, if it has."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._over], return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not self._over.done():
                task.result()  # raises what it has raised
            return self._over.result() if self._over.done() else None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _end(self, reason: str) -> None:
        if not self._over.done():
            self._over.set_result(reason)
