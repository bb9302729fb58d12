"""`POST /livekit/sessions`, with a room in this process instead of LiveKit's server."""

import asyncio
import json
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
from livekit import api, rtc
from livekit.agents import AgentSession, APIStatusError
from livekit.plugins import viseme

from tests.conftest import ROOT
from tests.integrations.livekit.rooms import (
    KEY,
    SECRET,
    URL,
    Network,
    Published,
    Room,
    bright,
    site,
    until,
)
from tests.integrations.livekit.speech import FRAME, RATE, flashes, frames_of
from tests.serve.web.site import TOKEN, http, run

LIVEKIT = {"livekit_url": URL, "livekit_api_key": KEY, "livekit_api_secret": SECRET}


def token_of(room: str = "lobby", kind: str = "agent", agent: str | None = "agent") -> str:
    made = api.AccessToken(KEY, SECRET).with_kind(kind).with_identity("viseme-avatar")
    made = made.with_grants(api.VideoGrants(room_join=True, room=room)).with_ttl(timedelta(hours=1))
    return made.with_attributes({"lk.publish_on_behalf": agent} if agent else {}).to_jwt()


class Agent:
    """An agent in a room, with its session and the avatar of a server."""

    def __init__(self, network: Network, there, avatar: str | None = None, **options):
        self.room = Room(network, "agent").join()
        self.session = AgentSession()
        self.avatar = viseme.AvatarSession(avatar, url=there.url, **options)
        self.events = list[tuple]()

    async def start(self) -> "Agent":
        await self.avatar.start(self.session, self.room, **LIVEKIT)
        self.output = self.session.output.audio
        self.output.on("playback_started", lambda event: self.events.append(("started",)))
        self.output.on(
            "playback_finished",
            lambda e: self.events.append(("finished", e.playback_position, e.interrupted)),
        )
        return self

    async def say(self, samples: np.ndarray) -> None:
        for frame in frames_of(samples):
            await self.output.capture_frame(frame)
        self.output.flush()


def test_an_agent_with_an_avatar_of_the_server(live, network, monkeypatch):
    """It joins on behalf of the agent, speaks, is interrupted, speaks again, and leaves with it."""
    published, said = (
        Published(monkeypatch),
        [flashes("xxooxoxx"), flashes("x" * 60), flashes("xo")],
    )

    async def main():
        async with site(live, server={"tokens": (TOKEN,)}) as server:
            agent = await Agent(network, server, "tiny", token=TOKEN).start()
            (avatar,) = agent.room.remote_participants.values()
            assert avatar._room.connected_to[0] == URL
            assert not avatar._room.options.auto_subscribe  # it sees and hears nobody
            assert avatar.identity == agent.avatar.avatar_identity == "viseme-avatar"
            assert avatar.attributes == {"lk.publish_on_behalf": "agent"}
            await agent.avatar.wait_for_join()
            assert sorted(p.kind for p in avatar.track_publications.values()) == sorted(
                [rtc.TrackKind.KIND_AUDIO, rtc.TrackKind.KIND_VIDEO]
            )
            # else the agent takes what it has sent for what has begun to play
            assert "lk.playback_started" in agent.room.local_participant._rpc_handlers
            first = len(said[0])
            await agent.say(said[0])
            await until(lambda: len(agent.events) == 2)
            await agent.say(said[1])
            await until(lambda: len(agent.events) == 3)
            await until(lambda: len(published.samples) > first + 6 * FRAME)
            before = len(published.pictures)
            agent.output.clear_buffer()
            await until(lambda: len(agent.events) == 4)
            await until(lambda: len(published.pictures) >= before + 12)
            assert not any(map(bright, published.pictures[before + 4 :]))
            cut = len(published.samples)
            await Room(network, "somebody else").join().disconnect()
            await agent.say(said[2])
            await until(lambda: len(agent.events) == 6)
            assert server.places.sessions() == {"tiny": 1}
            await agent.avatar.aclose()
            await agent.room.disconnect()
            await server.until_free()
            assert not network.rooms
            frames = server.metrics.sums["frames", "tiny", "live"]
            return agent, first, cut, frames

    agent, first, cut, frames = run(main())
    interrupted = agent.events[3][1]
    assert np.array_equal(published.samples[:first], said[0])
    assert np.array_equal(published.samples[cut:], said[2])
    assert interrupted == pytest.approx((cut - first) / RATE) and interrupted < 2
    assert agent.events == [
        ("started",),
        ("finished", pytest.approx(first / RATE), False),
        ("started",),
        ("finished", interrupted, True),
        ("started",),
        ("finished", pytest.approx(2 * FRAME / RATE), False),
    ]
    assert frames > 20


@pytest.mark.parametrize(
    ("change", "status", "line"),
    [
        ({"livekit_url": "http://h"}, 400, "livekit_url is 'http://h'; expected such as wss://HOST"),
        ({"livekit_url": "wss://u:p@h"}, 400, "expected such as wss://HOST"),
        ({"livekit_url": URL + ":0"}, 400, "expected such as wss://HOST"),
        ({"livekit_url": "ws://10.0.0.7:7880"}, 403, "'ws://10.0.0.7:7880'; expected one of web.livekit_urls"),
        ({"livekit_url": "ws://livekit.example.org"}, 403, "expected one of web.livekit_urls"),
        ({"livekit_url": 7}, 400, "livekit_url"),
        ({"livekit_token": "hello"}, 400, "livekit_token cannot be read; expected a JSON Web Token"),
        ({"livekit_token": "a.!.b"}, 400, "livekit_token cannot be read"),
        ({"livekit_token": token_of("attic")}, 400, "livekit_token is for the room 'attic'; room_name is 'lobby'"),
        ({"livekit_token": token_of(kind="standard")}, 400, "livekit_token is of the kind 'standard'; expected 'agent'"),
        ({"livekit_token": token_of(agent=None)}, 400, "has no attribute lk.publish_on_behalf"),
        ({"room": "lobby"}, 400, "'room' is not known; expected: livekit_url, livekit_token"),
        ({"room_name": None}, 400, "room_name"),
        ({"sample_rate": 10}, 400, "sample rate is 10; expected 8000 to 192000"),
        ({"avatar": "nobody"}, 404, "model 'nobody' not configured"),
    ],
)  # fmt: skip
def test_mistakes(live, network, change, status, line):
    """One line, nothing is joined, and no token is repeated."""
    body = {"livekit_url": URL, "livekit_token": token_of(), "room_name": "lobby"} | change

    async def main():
        async with site(live) as server, http(server) as asked:
            answer = await asked.post("/livekit/sessions", json=body)
            assert answer.status_code == status and line in answer.text
            assert answer.text.count("\n") == 1 and str(body["livekit_token"]) not in answer.text
            assert not network.rooms
            await server.until_free()

    run(main())


def test_refusals(live, network, monkeypatch):
    """Without the server's token, when LiveKit refuses, beyond the server's places."""

    async def main():
        config = {"server": {"tokens": (TOKEN,)}, "limits": {"max_sessions": 1}}
        async with site(live, **config) as server:
            with pytest.raises(APIStatusError, match="the request has no token") as refused:
                await Agent(network, server).start()
            assert refused.value.status_code == 401
            left = [repr(task.get_coro()) for task in asyncio.all_tasks()]
            assert not any("_wait_avatar_join" in one for one in left)
            network.refuse = "invalid token"
            with pytest.raises(
                APIStatusError, match="room cannot be joined: invalid token"
            ) as refused:
                await Agent(network, server, token=TOKEN).start()
            assert refused.value.status_code == 502
            network.refuse = None
            await server.until_free()
            agent = await Agent(network, server, token=TOKEN).start()
            with pytest.raises(
                APIStatusError, match="1 sessions are open; expected fewer"
            ) as refused:
                await Agent(network, server, token=TOKEN).start()
            assert refused.value.status_code == 429
            await agent.avatar.wait_for_join()
            # the room ends
            avatar = agent.room.remote_participants["viseme-avatar"]._room
            await avatar.disconnect("room was deleted")
            await server.until_free()
            await agent.avatar.aclose()

    run(main())


@pytest.mark.parametrize("there", [False, True])
def test_sessions_that_end_by_themselves(live, network, monkeypatch, caplog, there):
    """The agent does not come; or the session was as long as it may be."""
    monkeypatch.setattr("serve.livekit.room.AGENT_SECONDS", 0.1)
    caplog.set_level("INFO")

    async def main():
        async with site(live, limits={"max_session_seconds": 1}) as server, http(server) as asked:
            if there:
                Room(network, "agent").join()
            body = {"livekit_url": URL, "livekit_token": token_of(), "room_name": "lobby"}
            answer = await asked.post("/livekit/sessions", json=body)
            assert answer.status_code == 201
            await server.until_free()
            assert [room.local_participant.identity for room in network.rooms] == ["agent"] * there
            return answer.json()["session_id"]

    why = "it was 1 s long, the most" if there else "the agent did not come within 0.1 s"
    assert f"LiveKit session {run(main())} ended: {why}" in caplog.messages


def test_without_the_package():
    """A server without livekit-agents says so, in a line."""
    code = """
import asyncio, json, sys
sys.modules["livekit.agents"] = None
from tests.integrations.livekit.without import ask
asyncio.run(ask(json.loads(sys.argv[1])))
"""
    body = json.dumps({"livekit_url": URL, "livekit_token": token_of(), "room_name": "lobby"})
    done = subprocess.run(
        [sys.executable, "-c", code, body], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "501 livekit-agents is not installed on this server; pip install 'viseme[livekit]'\n"
    )
