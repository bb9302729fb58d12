"""A server of `viseme.v1.Viseme` in this process, with small avatars and a client."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import grpc

from engine.live import Live
from serve.config import Config
from serve.errors import NotConfigured
from serve.places import Places
from serve.rpc.protos import viseme_pb2 as pb
from serve.rpc.protos import viseme_pb2_grpc
from serve.rpc.viseme import VisemeService

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class FakeRegistry:
    """Avatars that are loaded, and others that are not."""

    def __init__(self, lives: dict[str, Live], others: tuple[str, ...] = ()):
        self.served = {
            name: SimpleNamespace(name=name, avatar=live.avatar, live=live, renders=live)
            for name, live in lives.items()
        }
        self.others, self.in_use = others, Counter()

    @asynccontextmanager
    async def use(self, name: str, timeout: float | None = None) -> AsyncIterator[SimpleNamespace]:
        if name not in self.served:
            raise NotConfigured(f"model '{name[:50]}' not configured")
        self.in_use[name] += 1
        try:
            yield SimpleNamespace(served=self.served[name], loaded=False, load_seconds=0.0)
        finally:
            self.in_use[name] -= 1

    def entries(self) -> list[SimpleNamespace]:
        entries = [SimpleNamespace(name=name, loaded=True) for name in self.served]
        return entries + [SimpleNamespace(name=name, loaded=False) for name in self.others]

    def peek(self, name: str) -> SimpleNamespace | None:
        return self.served.get(name)


class FakeMetrics:
    """Sums by metric and avatar (and kind)."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, ...]] = Counter()
        for name in ("frames", "late", "skipped", "underruns"):
            setattr(self, name, SimpleNamespace(labels=self._labels(name)))

    def _labels(self, name: str):
        def labels(**by: str) -> SimpleNamespace:
            key = (name, *by.values())

            def inc(count: float = 1) -> None:
                self.sums[key] += count

            return SimpleNamespace(inc=inc)

        return labels


class Server:
    """A running server and a client's stub."""

    def __init__(
        self, lives: dict[str, Live], address: str, stub, service, registry, metrics, places
    ):
        self.lives, self.address, self.stub, self.service = lives, address, stub, service
        self.registry, self.metrics, self.places = registry, metrics, places

    def sessions(self) -> int:
        """How many sessions the engine has."""
        return len(next(iter(self.lives.values())).scheduler)

    async def until_free(self) -> None:
        """Wait until nothing of any call is left."""
        async with asyncio.timeout(30):
            while (
                self.sessions()
                or self.places.sessions()
                or self.service._calls
                or self.service._renders
                or +self.registry.in_use
                or self.places.sessions()
            ):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(lives: dict[str, Live], others: tuple[str, ...] = (), **config):
    """Run a server; at the end, nothing of it may be left."""
    registry, metrics = FakeRegistry(lives, others), FakeMetrics()
    configured = Config(**config)
    places = Places(configured.limits.max_sessions)
    service = VisemeService(registry, configured, metrics, places)
    server = grpc.aio.server(options=OPTIONS)
    viseme_pb2_grpc.add_VisemeServicer_to_server(service, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    # that what a client does not read is soon too much
    small = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
    async with grpc.aio.insecure_channel(address, options=OPTIONS + small) as channel:
        stub = viseme_pb2_grpc.VisemeStub(channel)
        running = Server(lives, address, stub, service, registry, metrics, places)
        try:
            yield running
            await running.until_free()
            assert not places.sessions()  # not even the names that clients invent
        finally:
            await service.close()
            await server.stop(None)


def run(coroutine):
    """Run a test, which may take a minute."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def opening(avatar: str = "tiny", **fields) -> pb.LiveRequest:
    return pb.LiveRequest(open=pb.OpenSession(avatar=avatar, **fields))


def pcm(samples) -> pb.LiveRequest:
    return pb.LiveRequest(pcm=samples.tobytes())


FLUSH = pb.LiveRequest(flush=pb.Flush())
INTERRUPT = pb.LiveRequest(interrupt=pb.Interrupt())


async def refusal(call) -> tuple[grpc.StatusCode, str]:
    """Read a call to its end; return the status and the line."""
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""
