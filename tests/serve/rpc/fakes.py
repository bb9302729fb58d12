"""A registry whose avatars answer at once, and a server in a thread."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np

from engine.batches import BatchRequest, BatchResult
from serve.errors import NotConfigured, NotLoaded
from serve.registry import DeviceUse, Use
from serve.rpc.restarting import RestartingServer


def digest(request: BatchRequest) -> str:
    """Return a hash of all that a request holds."""
    made = hashlib.sha256(f"{request.count} {request.start} {request.context}".encode())
    for name in ("speech", "audio", "faces"):
        array = getattr(request, name)
        if array is not None:
            assert array.dtype == np.float32 and array.flags.aligned and array.flags.c_contiguous
            made.update(f"{name} {array.shape}".encode())
            made.update(array)
    return f"{request.layout} {made.hexdigest()}"


def files_of(request: BatchRequest) -> list[bytes]:
    """Return what `FakeBatches` makes of a request."""
    return [f"{request.start + i} {digest(request)}".encode() for i in range(request.count)]


class FakeBatches:
    """Answers each request with what it holds.

    Attributes:
        requests: all that came, if `keep`.
        held: if it is a list, futures go there unanswered.
        error: raised by `submit`, or set in the future where `late`.
    """

    def __init__(self) -> None:
        self.requests: list[BatchRequest] = []
        self.held: list[Future[BatchResult]] | None = None
        self.error: Exception | None = None
        self.late = self.keep = True
        self.arrived = threading.Semaphore(0)
        self.gate: threading.Event | None = None  # that `submit` waits for

    def submit(self, request: BatchRequest) -> Future[BatchResult]:
        if self.gate is not None:
            self.arrived.release()
            assert self.gate.wait(30)
        if self.keep:
            self.requests.append(request)
        if self.error and not self.late:
            raise self.error
        future: Future[BatchResult] = Future()
        if self.held is not None:
            self.held.append(future)
        elif self.error:
            future.set_exception(self.error)
        else:
            future.set_result(BatchResult(files_of(request), 0.001, 0.002, 0.003))
        self.arrived.release()
        return future


@dataclass
class FakeModel:
    """What the registry knows of an avatar; also its `Entry`."""

    name: str
    loaded: bool = False
    gpu: int = 0
    bytes: int = 3 << 20
    requests: int = 0
    inference_seconds: float = 0.0
    last_used: float = 0.0
    in_use: int = 0
    served: Any = field(default_factory=lambda: SimpleNamespace(batches=FakeBatches(), gpu=0))
    error: Exception | None = None  # of its load

    def __post_init__(self) -> None:
        self.served.gpu = self.gpu


class FakeRegistry:
    """Has avatars that are loaded at once, in 0.25 s as it says."""

    def __init__(self, *models: FakeModel):
        self.models = {model.name: model for model in models}
        self.preferred: list[int] = []
        self.failure: Exception | None = None

    def _load(self, name: str) -> Use:
        if name not in self.models:
            raise NotConfigured(f"model '{name}' not configured")
        model = self.models[name]
        if model.error:
            raise model.error
        new, model.loaded = not model.loaded, True
        return Use(model.served, new, 0.25 if new else 0.0)

    @asynccontextmanager
    async def use(self, name: str, timeout: float | None = None) -> AsyncIterator[Use]:
        use = self._load(name)
        self.models[name].in_use += 1
        try:
            yield use
        finally:
            self.models[name].in_use -= 1

    async def load(self, name: str, gpu: int = -1) -> Use:
        self.preferred.append(gpu)
        return self._load(name)

    async def unload(self, name: str) -> None:
        model = self.models.get(name)
        if model is not None and model.error:
            raise model.error
        if model is None or not model.loaded:
            raise NotLoaded(f"model '{name}' not loaded")
        model.loaded = False

    def entries(self) -> list[FakeModel]:
        return list(self.models.values())

    def devices(self) -> list[DeviceUse]:
        gpus = sorted({model.gpu for model in self.models.values()})
        loaded = [model for model in self.models.values() if model.loaded]
        return [
            DeviceUse(gpu, f"cuda:{gpu}", sum(m.bytes for m in loaded if m.gpu == gpu), None)
            for gpu in gpus
        ]

    def count(self, name: str, inference_seconds: float) -> None:
        model = self.models[name]
        model.requests += 1
        model.inference_seconds += inference_seconds
        model.last_used = 1_700_000_000.75


class Running:
    """A grpc.aio server in a thread, on a free port. A context manager.

    Args:
        add: adds the services to it.

    Attributes:
        loop: of the server.
    """

    def __init__(self, add: Callable[[Any], None]):
        self._add, self._ready, self.port = add, threading.Event(), 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = RestartingServer(self._make)
        await server.start()
        self._ready.set()
        await self._end.wait()
        await server.stop(5)

    def _make(self) -> Any:
        server = grpc.aio.server(
            options=[("grpc.max_receive_message_length", 100 << 20), ("grpc.so_reuseport", 0)]
        )
        self._add(server)
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        return server

    def __enter__(self) -> "Running":
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
