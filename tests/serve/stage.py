"""A server on 127.0.0.1 with services and avatars that are made of nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc

from engine.errors import InputError
from serve.config import Config
from serve.rpc.protos import monolithic_pb2 as go
from serve.rpc.protos import monolithic_pb2_grpc, viseme_pb2_grpc
from serve.rpc.protos import viseme_pb2 as pb
from serve.server import Server, Services

SECONDS = 30  # for whatever should happen at once
TOKEN = "correct-horse-battery-staple"


class FakeAvatars:
    """What a registry is to a server. Avatars load when `go` is set."""

    def __init__(self, config: Config | None = None, failures: dict[str, InputError] | None = None):
        self.failures, self.failure = failures or {}, None
        self.go, self.closed, self.bytes = asyncio.Event(), asyncio.Event(), 1000
        self.go.set()

    async def preload(self):
        await self.go.wait()
        return self.failures

    async def run(self):
        await self.closed.wait()

    async def close(self):
        self.closed.set()

    def entries(self):
        return [SimpleNamespace(loaded=self.go.is_set())]

    def devices(self):
        return [SimpleNamespace(name="cpu", bytes=self.bytes)]


class FakeGo(monolithic_pb2_grpc.MonolithicServiceServicer):
    async def Health(self, request, context):
        return go.HealthResponse(healthy=True, max_models=7)

    async def InferBatchComposite(self, request, context):
        return go.CompositeBatchResponse(
            composited_frames=[bytes(request.start_frame_idx)], total_time_ms=len(request.raw_audio)
        )

    async def UnloadModel(self, request, context):
        raise RuntimeError("a secret of ours")

    async def LoadModel(self, request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "not there")


class FakeViseme(viseme_pb2_grpc.VisemeServicer):
    """Render sends frames until it is cancelled; Live sends back what it gets."""

    def __init__(self):
        self.cancelled, self.closed, self.open = 0, False, {"anna": 1}

    async def ListAvatars(self, request, context):
        return pb.ListAvatarsResponse(avatars=[pb.AvatarInfo(name="anna")])

    async def Render(self, request, context):
        try:
            for first in range(3):
                yield pb.RenderResponse(frames=pb.Frames(first=first))
            if request.avatar == "endless":
                await asyncio.Event().wait()
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def Live(self, requests, context):
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(pb.LiveResponse(piece=pb.Piece(sound=request.pcm)))


class Fakes:
    """Makes the parts of a server, and keeps them."""

    def __init__(self, failures: dict[str, InputError] | None = None):
        self.avatars, self.viseme = FakeAvatars(failures=failures), FakeViseme()

    def make_avatars(self, config, metrics):
        return self.avatars

    def make_services(self, avatars, config, metrics):
        def add(server):
            monolithic_pb2_grpc.add_MonolithicServiceServicer_to_server(FakeGo(), server)
            viseme_pb2_grpc.add_VisemeServicer_to_server(self.viseme, server)

        async def close():
            self.viseme.closed = True

        names = ("monolithic.MonolithicService", "viseme.v1.Viseme")
        return Services(names, add, lambda: self.viseme.open, close)

    def server(self, config: Config) -> Server:
        return Server(config, make_avatars=self.make_avatars, make_services=self.make_services)


class Running:
    """A server that runs, and what a test asks of it."""

    def __init__(self, server: Server, fakes: Fakes):
        self.server, self.fakes = server, fakes
        self.stop, self.hurry = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(server.serve_until(self.stop, self.hurry))
        self.address = f"127.0.0.1:{server.port}"
        self.url = f"http://127.0.0.1:{server.http_port}"

    def channel(self, **options: Any) -> grpc.aio.Channel:
        sizes = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        return grpc.aio.insecure_channel(self.address, options=sizes, **options)


def config(**server: Any) -> Config:
    """A configuration with one avatar, on free ports."""
    models = server.pop("models", {"anna": {"avatar": "/", "preload": True}})
    return Config.model_validate(
        {"server": {"port": 0, "http_port": 0, **server}, "models": models}
    )


@asynccontextmanager
async def serving(
    given: Config | None = None, fakes: Fakes | None = None
) -> AsyncIterator[Running]:
    """A server that has started; it ends at once after the block, with no task left."""
    fakes = fakes or Fakes()
    async with asyncio.timeout(4 * SECONDS):
        before = asyncio.all_tasks()
        server = fakes.server(given or config())
        await server.start()
        running = Running(server, fakes)
        try:
            yield running
        finally:
            running.stop.set()
            running.hurry.set()
            await asyncio.wait([running.task])
        assert fakes.avatars.closed.is_set() and fakes.viseme.closed
        assert {t for t in asyncio.all_tasks() - before if "poll" not in repr(t)} <= {running.task}


async def until(condition, *, what: str = "the condition") -> None:
    """Wait until something holds that is looked at again and again."""
    async with asyncio.timeout(SECONDS):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.01)


async def status_of(call) -> tuple[grpc.StatusCode, str]:
    """Wait for a call of any kind, and return its status."""
    try:
        if hasattr(call, "__aiter__") and not hasattr(call, "__await__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""
