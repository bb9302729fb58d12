"""The routes of `serve.web` on a real server, with small avatars."""

import asyncio
import json
import logging
import struct
from contextlib import asynccontextmanager
from socket import SO_SNDBUF, SOL_SOCKET
from types import SimpleNamespace

import httpx
import numpy as np
import websockets
from starlette.applications import Starlette

from engine.live import Live
from serve.config import Config
from serve.http import HttpServer, listen, web_routes
from serve.places import Places
from serve.web import gate
from serve.web.sessions import WebSessions
from tests.serve.rpc.server import FakeMetrics, FakeRegistry

SECONDS = 30  # for whatever should happen at once
TOKEN = "correct-horse-battery-staple"
S16 = {"sample_rate": 16000, "sample_format": "s16"}
TAKEN = {**S16, "clock": "taken"}


class Site:
    """A running server."""

    def __init__(self, config: Config, lives: dict[str, Live], voice=None):
        self.registry, self.metrics = FakeRegistry(lives), FakeMetrics()
        self.live = next(iter(lives.values()))
        self.places = Places(config.limits.max_sessions)
        self.sessions = WebSessions(self.registry, config, self.metrics, self.places, voice)
        self.recordings, self.gate = self.sessions.recordings, gate.Gate(config)
        self.config, self.server, self.port = config, None, 0

    def app(self) -> Starlette:
        routes = web_routes(self.sessions, self.config)
        return Starlette(routes=routes, middleware=gate.cross_origin(self.config))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self, path: str = "/v1/live", **options):
        options = {"max_size": None, "proxy": None, "compression": None} | options
        return websockets.connect(f"ws://127.0.0.1:{self.port}{path}", **options)

    async def until_unconnected(self) -> None:
        """Wait until the server has forgotten all connections."""
        async with asyncio.timeout(SECONDS):
            while self.server.server_state.connections:
                await asyncio.sleep(0.01)

    async def until_free(self) -> None:
        """Wait until nothing of any client is left."""
        async with asyncio.timeout(SECONDS):
            while len(self.sessions) or self.places.sessions() or +self.registry.in_use:
                await asyncio.sleep(0.01)
            while len(self.live.scheduler):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(live: Live, *, voice=None, make=Site, **config):
    """Run a server; at the end, nothing of it may be left."""
    config = Config.model_validate(config)
    site = make(config, {"tiny": live}, voice)
    listening = listen("127.0.0.1", 0)
    listening.setsockopt(SOL_SOCKET, SO_SNDBUF, 1 << 16)  # who reads nothing is soon found
    site.port = listening.getsockname()[1]
    site.server = HttpServer(site.app(), None, sessions=config.limits.max_sessions)
    task = asyncio.create_task(site.server.serve([listening]))
    try:
        async with asyncio.timeout(SECONDS):
            while not site.server.started:
                await asyncio.sleep(0.005)
        yield site
        await site.until_free()
    finally:
        await site.sessions.close()
        site.server.should_exit = True
        await task


def run(coroutine):
    """Run a test, which may take two minutes."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # as `serve.log` does
    return asyncio.run(asyncio.wait_for(coroutine, 120))


class Client:
    """A client of `/v1/live`."""

    def __init__(self, socket):
        self.socket, self.opened = socket, None

    async def open(self, **message) -> "Client":
        await self.tell(type="open", **message)
        self.opened = await self.event("opened")
        return self

    async def tell(self, **message) -> None:
        await self.socket.send(json.dumps(message))

    async def push(self, samples: np.ndarray) -> None:
        await self.socket.send(np.ascontiguousarray(samples.T).tobytes())

    async def next(self) -> dict | SimpleNamespace:
        """Return the next event, or piece."""
        async with asyncio.timeout(SECONDS):
            message = await self.socket.recv()
        return json.loads(message) if isinstance(message, str) else piece_of(message)

    async def event(self, kind: str) -> dict:
        """Return the next event of a kind; others and pieces are skipped."""
        while True:
            message = await self.next()
            if isinstance(message, dict) and message["type"] == kind:
                return message
            assert not isinstance(message, dict) or message["type"] != "error", message

    async def all(self, ends: int = 1) -> list:
        """Return what comes up to so many ends of utterances."""
        found = []
        while ends:
            found.append(await self.next())
            assert not isinstance(found[-1], dict) or found[-1]["type"] != "error", found[-1]
            ends -= isinstance(found[-1], dict) and found[-1]["type"] == "end"
        return found

    async def refusal(self) -> tuple[int, str]:
        """Read to the end. Return the close code and the last error's line."""
        line = ""
        try:
            while True:
                message = await self.next()
                if isinstance(message, dict) and message["type"] == "error":
                    line = message["message"]
        except websockets.ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006, line


def piece_of(message: bytes) -> SimpleNamespace:
    """Read a piece as a client does."""
    (size,) = struct.unpack_from("<I", message)
    header = json.loads(message[4 : 4 + size])
    rest = message[4 + size :]
    assert len(rest) == header["picture"] + header["sound"]
    picture, sound = rest[: header["picture"]], rest[header["picture"] :]
    return SimpleNamespace(**header | {"picture": picture, "sound": sound})


def pieces(messages: list) -> list[SimpleNamespace]:
    return [message for message in messages if not isinstance(message, dict)]


@asynccontextmanager
async def client(site: Site, **message):
    async with site.connect() as socket:
        yield await Client(socket).open(**message)


@asynccontextmanager
async def http(site: Site, **options):
    async with httpx.AsyncClient(
        base_url=site.url, trust_env=False, timeout=SECONDS, **options
    ) as c:
        yield c
