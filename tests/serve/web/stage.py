"""A whole server in this process, with a small avatar, for players and sessions of `serve.web`."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
from PIL import Image

from engine.live import Live
from serve.config import Config
from serve.server import Server
from serve.web.session import EncodedPiece
from tests.engine.live.test_command import slice_and_mean
from tests.serve.rpc.server import FakeRegistry

SECONDS = 30  # for whatever should happen at once
TOKEN = "correct-horse-battery-staple"


class Avatars(FakeRegistry):
    """What a registry is to a server."""

    def __init__(self, lives: dict[str, Live]):
        super().__init__(lives)
        self.failure, self.closed = None, asyncio.Event()

    async def preload(self):
        return {}

    async def run(self):
        await self.closed.wait()

    async def close(self):
        self.closed.set()

    def devices(self):
        return []


class Running:
    """A server that runs."""

    def __init__(self, server: Server, avatars: Avatars, live: Live):
        self.server, self.avatars, self.live = server, avatars, live
        self.web, self.metrics = server._services.web, server.metrics
        self.stop, self.hurry = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(server.serve_until(self.stop, self.hurry))
        self.url = f"http://127.0.0.1:{server.http_port}"
        self.address = f"127.0.0.1:{server.port}"
        self.http = httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=SECONDS)

    def free(self) -> bool:
        """Whether nothing of any session is left."""
        return not (
            len(self.web)
            or self.web.places.sessions()
            or +self.avatars.in_use
            or len(self.live.scheduler)
        )

    async def until_free(self) -> None:
        await until(self.free)

    def counted(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"viseme_{name}_total", labels) or 0


@asynccontextmanager
async def serving(live: Live, **config: Any) -> AsyncIterator[Running]:
    """Run a server; at its end, no task may be left."""
    given = {"port": 0, "http_port": 0, **config.pop("server", {})}
    models = {"tiny": {"avatar": "/", "preload": True}}
    made = Avatars({"tiny": live})
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # as `serve.log` does
    before = asyncio.all_tasks()
    server = Server(
        Config.model_validate({"server": given, "models": models, **config}),
        make_avatars=lambda *_: made,
    )
    await server.start()
    running = Running(server, made, live)
    try:
        async with running.http:
            yield running
    finally:
        running.stop.set()
        running.hurry.set()
        await asyncio.wait([running.task])
    running.task.result()
    assert running.free()
    left = {t for t in asyncio.all_tasks() - before if "poll" not in repr(t)}
    assert left <= {running.task}, left


def run(coroutine):
    """Run a test, which may take two minutes."""
    return asyncio.run(asyncio.wait_for(coroutine, 120))


async def until(condition, seconds: float = SECONDS) -> None:
    """Wait until something holds that is looked at again and again."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self, wants: str = "none"):
        self.wants, self.pieces, self.ended = wants, list[EncodedPiece](), list[str | None]()

    def put(self, piece: EncodedPiece) -> None:
        self.pieces.append(piece)

    async def room(self) -> None:
        pass

    def end(self, reason: str | None) -> None:
        self.ended.append(reason)

    async def until(self, count: int) -> list[EncodedPiece]:
        await until(lambda: len(self.pieces) >= count)
        return self.pieces


def write_flashing(root: Path, *, size: int = 96, fps: int = 25) -> Path:
    """Write an avatar whose mouth is bright in the frames whose own 40 ms are loud."""
    networks = {
        "audio_encoder": slice_and_mean("audio_encoder", {"mel": (1, 80, 16)}, 3, (0, 3)),
        "generator": slice_and_mean(
            "generator", {"face": (6, 320, 320), "audio": (32, 16, 16)}, 1, (18, 20)
        ),
    }
    (root / "frames").mkdir(parents=True)
    record = {"name": "tiny", "fps": fps, "frames": "frames", "boxes": "boxes.json"}
    for kind, model in networks.items():
        onnx.save(model, root / f"{kind}.onnx")
        record[kind] = f"{kind}.onnx"
    Image.fromarray(np.full((size, size, 3), 60, np.uint8)).save(root / "frames" / "0.png")
    (root / "boxes.json").write_text(json.dumps([[8, 8, size - 8, size - 8]]))
    (root / "avatar.json").write_text(json.dumps(record))
    return root
