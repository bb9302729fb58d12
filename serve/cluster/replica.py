"""A replica: the avatars, services and sessions of one GPU, without ports of its own."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import count
from typing import Any

import grpc
import ray
from grpc import aio
from grpc_health.v1 import health_pb2

from engine.errors import InputError

from .. import http, log, metrics
from ..config import Config
from ..rpc.access import Access, Calls
from ..rpc.calls import CODES
from ..server import Services, avatars, services
from ..web.gate import cross_origin
from ..web.hosts import own_hosts
from .call import STATUS, Call, Handlers, Message, function_of, parser, serializer
from .exported import Exported
from .router import new_tag, session_number

# The methods of all services, by their kinds.
UNARY = (
    *("ListAvatars", "InferBatchComposite", "ListModels", "LoadModel", "UnloadModel"),
    *("GetModelStats", "Health"),
)
STREAMS = ("Render", "Live")

SAMPLE_SECONDS = 1.0
EXPORT_SAMPLES = 5  # Ray exports every 10 s
NEWS_SECONDS = 2.0  # in which all proxies hear that a replica stops

_log = logging.getLogger("serve")
_here: "Replica | None" = None  # in this process


def build() -> Any:
    """Return the ASGI application of this process."""
    return application


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answer a request over HTTP by this process's replica."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    assert _here is not None
    await _here.http(scope, receive, send)


async def _lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class Replica:
    """The avatars and services of one GPU, or of the CPU. After `start`, this process's
    requests over HTTP are answered by it."""

    async def start(self, config: Config) -> None:
        """Load the avatars that are to be preloaded.

        Args:
            config: the cluster's. The replica sees one GPU, or none.

        Raises:
            InputError: the configuration cannot be used, or no avatar could be preloaded.
        """
        global _here
        log.configure()
        log.set_level(config.log_level)
        self._config, self._metrics, self._tag = config, metrics.Metrics(), new_tag()
        self._access, self._calls = Access(config.server.tokens), Calls(self._metrics)
        self.avatars: Any = avatars(config, self._metrics)
        self._services: Services = services(self.avatars, config, self._metrics)
        self._metrics.watch(self.avatars, self._services.sessions)
        self._handlers = Handlers([self._calls, self._access])
        self._services.add(self._handlers)
        web = self._services.web
        assert web is not None
        web.number = lambda: session_number(self._tag)
        self._lateness = metrics.Lateness(self._metrics)
        self._exported = Exported(self._metrics)
        self._sockets = 0
        self._application = http.app(
            self._metrics,
            alive=self._dead,
            ready=self._unready,
            routes=http.web_routes(web, config),
            middleware=[*own_hosts(config), *cross_origin(config)],
        )
        self._tasks = [asyncio.create_task(work) for work in (self.avatars.run(), self._sample())]
        await self._preload()
        _here = self

    async def http(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request over HTTP."""
        if scope["type"] != "websocket":
            await self._application(scope, receive, send)
            return
        self._sockets += 1
        try:
            await self._application(scope, receive, send)
        finally:
            self._sockets -= 1

    async def _preload(self) -> None:
        wanted = [name for name, model in self._config.models.items() if model.preload]
        failures = await self.avatars.preload()
        for name, failure in failures.items():
            _log.error("model %s cannot be loaded: %s", name, failure)
        if wanted and len(failures) == len(wanted):
            raise InputError(f"model {wanted[0]} cannot be loaded: {failures[wanted[0]]}")

    async def _sample(self) -> None:
        for number in count():
            if number % EXPORT_SAMPLES == 0:
                self._exported.export()
            await asyncio.sleep(SAMPLE_SECONDS)
            self._lateness.sample()
            if is_stopping():
                break
        await self._drain()

    async def _drain(self) -> None:
        """Refuse what is new, and end what still runs after a while. Without that, Ray Serve waits
        for sessions as long as it may, and then kills the process under them."""
        web = self._services.web
        assert web is not None
        await asyncio.sleep(NEWS_SECONDS)
        self._access.ending = web.ending = True
        seconds = self._config.server.drain_seconds
        _log.info("draining for %g s at most", seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._calls.finished()
                await web.finished()
        await asyncio.gather(self._services.close(), web.close())

    def _dead(self) -> str | None:
        failed = self.avatars.failure is not None
        return "a thread that makes frames has failed" if failed else None

    def _unready(self) -> str | None:
        return "the server is ending" if self._access.ending else self._dead()

    # --- what Ray Serve asks ---------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """Return what the router knows of this replica for good."""
        return {"tag": self._tag}

    def routing_stats(self) -> dict[str, int]:
        """Return what the router is told each second: sessions that are calls or sockets, which run
        through a proxy, and those apart, of WebRTC's players."""
        web = self._services.web
        assert web is not None
        sessions = sum(self._services.sessions().values())
        apart = max(len(web) - self._sockets, 0)
        return {"running": sessions - apart, "apart": apart}

    def check_health(self) -> None:
        """Raise if the replica has to be replaced."""
        if fault := self._dead():
            raise RuntimeError(fault)

    async def close(self) -> None:
        """End all sessions and calls: their clients are told that the server ends."""
        self._access.ending = True
        web = self._services.web
        assert web is not None
        await asyncio.gather(self._services.close(), web.close())
        await self.avatars.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- gRPC ------------------------------------------------------------------------------------

    def takes(self, context: Any) -> bool:
        """Return whether a call may be served: it has a token, and the replica does not end."""
        return self._access.takes(context.invocation_metadata())

    async def unary(self, method: str, request: bytes, context: Any) -> Any:
        """Answer a call with one request and one answer."""
        handler, call = await self._call(method, context)
        if handler is None:
            return Message(b"")
        try:
            answer = await function_of(handler)(await call.parsed(request), call)
        except aio.AbortError:
            return Message(b"")  # the status is in the context
        return Message(serializer(handler)(answer))

    async def stream(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        """Answer a call with answers as they come.

        Args:
            request: the only one, or an iterator.
        """
        one = isinstance(request, bytes)
        handler, call = await self._call(method, context, None if one else request)
        if handler is None:
            yield Message(STATUS)
            return

        async def work() -> None:
            await function_of(handler)(await call.parsed(request) if one else request, call)

        async for answer in call.answers(work()):
            yield answer

    async def _call(self, method: str, context: Any, messages: Any = None) -> tuple[Any, Any]:
        """Return the handler of a method and its context; None, with a status, if there is none."""
        handler = await self._handlers.find(method, context.invocation_metadata())
        if handler is None:
            context.set_code(grpc.StatusCode.UNIMPLEMENTED)
            context.set_details(f"there is no method {method}")
            return None, None
        return handler, Call(context, parser(handler), serializer(handler), messages)

    def health(self) -> Any:
        """Return the answer of the health service."""
        serving = health_pb2.HealthCheckResponse.SERVING
        status = health_pb2.HealthCheckResponse.NOT_SERVING if self._unready() else serving
        return health_pb2.HealthCheckResponse(status=status)


def refuse(context: Any, error: InputError) -> None:
    """Give a call the status of an error that a client can understand."""
    context.set_code(next(code for kind, code in CODES if isinstance(error, kind)))
    context.set_details(str(error))


def is_stopping() -> bool:
    """Return whether Ray Serve is stopping this process's replica.

    It tells a replica only when no request runs any more, but a session is a request that runs. So
    this looks at Ray's own object. Where a release of Ray has another one, the answer is no.
    """
    worker = ray._private.worker.global_worker
    actor = getattr(worker, "actors", {}).get(worker.actor_id)
    return bool(getattr(getattr(actor, "_replica_impl", None), "_shutting_down", False))
