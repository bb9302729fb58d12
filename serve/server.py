"""The server: gRPC and HTTP on one event loop, from its start to its drained end."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.errors import InputError, one_line

from . import http, metrics
from .config import Config, Tls
from .places import Places
from .rpc.access import Access, Calls
from .rpc.restarting import RestartingServer
from .web.gate import cross_origin
from .web.hosts import own_hosts
from .web.sessions import WebSessions

OTHER_CALLS = 100  # at a time, such as of health and lists
END_SECONDS = 5.0  # for handlers that were cancelled

_log = logging.getLogger("serve")


class Avatars(metrics.Avatars, Protocol):
    """What the server needs of `serve.registry.Registry`."""

    @property
    def failure(self) -> BaseException | None: ...
    async def preload(self) -> Mapping[str, InputError]: ...
    async def run(self) -> None: ...
    async def close(self) -> None: ...


@dataclass(frozen=True)
class Services:
    """The gRPC services.

    Attributes:
        names: for health and reflection.
        add: adds them to a grpc.aio server.
        sessions: says how many live sessions of each avatar are open.
        close: ends the calls that run.
        web: the live sessions of HTTP clients; None without them.
    """

    names: Sequence[str]
    add: Callable[[Any], None]
    sessions: Callable[[], Mapping[str, int]]
    close: Callable[[], Awaitable[None]]
    web: WebSessions | None = None


def avatars(config: Config, counted: metrics.Metrics) -> Avatars:
    """Return the registry of a configuration."""
    from .avatar import load_avatar
    from .registry import Registry

    def load(name: str, *rest: Any) -> Any:  # in a thread
        frames = counted.batch_frames.labels(name)
        with counted.load_seconds.time():
            return load_avatar(name, *rest, made=frames.observe)

    return Registry(config, load)


def services(registry: Any, config: Config, counted: metrics.Metrics) -> Services:
    """Return the services that clients call.

    Raises:
        InputError: the configured voice cannot be used.
    """
    from .rpc import monolithic
    from .rpc.protos import viseme_pb2_grpc
    from .rpc.viseme import VisemeService
    from .web.voice import open_voice

    places = Places(config.limits.max_sessions)
    viseme = VisemeService(registry, config, counted, places)
    web = WebSessions(registry, config, counted, places, open_voice(config.web.voice))

    def count(avatar: str, frames: int) -> None:
        counted.frames.labels(avatar, "batch").inc(frames)

    def add(server: Any) -> None:
        monolithic.add_to_server(registry, config, server, count)
        viseme_pb2_grpc.add_VisemeServicer_to_server(viseme, server)

    return Services(
        (monolithic.MONOLITHIC, monolithic.COMPOSITING, "viseme.v1.Viseme"),
        add,
        places.sessions,
        viseme.close,
        web,
    )


class Server:
    """Serves a configuration: `start`, then `serve_until`.

    Args:
        make_avatars, make_services: in tests, something smaller.

    Attributes:
        port, http_port: where it listens, once it has started.
        metrics: what is counted.
    """

    def __init__(
        self,
        config: Config,
        *,
        make_avatars: Callable[[Config, metrics.Metrics], Avatars] = avatars,
        make_services: Callable[[Any, Config, metrics.Metrics], Services] = services,
    ):
        self.config, self.metrics = config, metrics.Metrics()
        self.port = self.http_port = 0
        self._make_avatars, self._make_services = make_avatars, make_services
        self._access, self._calls = Access(config.server.tokens), Calls(self.metrics)
        self._health = health.aio.HealthServicer()
        self._lateness = metrics.Lateness(self.metrics)
        self._avatars: Avatars | None = None
        self._services: Services | None = None
        self._grpc: RestartingServer | None = None
        self._http: http.HttpServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._web: asyncio.Task[None] | None = None
        self._preloaded = False

    async def start(self) -> None:
        """Listen. Avatars that are to be preloaded are loaded after that.

        Raises:
            InputError: an address cannot be listened at, or the certificate cannot be used.
        """
        try:
            await self._start()
        except BaseException:
            await self._close()
            raise

    async def serve_until(self, stop: asyncio.Event, hurry: asyncio.Event | None = None) -> None:
        """Serve until an event, then drain: health says NOT_SERVING, new calls are refused, and
        those that run get `drain_seconds`.

        Args:
            stop: when to drain.
            hurry: when to end at once, also a drain.

        Raises:
            InputError: no avatar could be preloaded.
        """
        hurry = hurry or asyncio.Event()
        self._run(self._preload())
        try:
            await _first(stop.wait(), hurry.wait(), self._failed())
            for task in self._tasks:
                if task.done():
                    task.result()  # raises what it has raised
            self._access.ending = True
            if self._services is not None and self._services.web is not None:
                self._services.web.ending = True
            await self._health.enter_graceful_shutdown()
            _log.info("draining for %g s at most", self.config.server.drain_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.config.server.drain_seconds):
                    await _first(self._finished(), hurry.wait())
        finally:
            await self._close()
        _log.info("ended")

    async def _finished(self) -> None:
        """Wait until no call and no session of HTTP clients runs."""
        await self._calls.finished()
        if self._services is not None and self._services.web is not None:
            await self._services.web.finished()

    def unready(self) -> str | None:
        """Return why the server should get no new clients; None if it can take them."""
        if self._access.ending:
            return "the server is ending"
        if not self._preloaded:
            return "avatars are being loaded"
        if not self._lateness.on_time:
            return f"{self._lateness.share:.0%} of the live frames are late"
        return self._dead()

    # --- start -----------------------------------------------------------------------------------

    async def _start(self) -> None:
        server = self.config.server
        credentials = None if server.tls is None else _credentials(server.tls)
        web = listen(server.host, server.http_port)
        self.http_port = web.getsockname()[1]
        try:
            self._avatars = self._make_avatars(self.config, self.metrics)
            self._services = self._make_services(self._avatars, self.config, self.metrics)
            self.metrics.watch(self._avatars, self._services.sessions)
            make = partial(self._grpc_server, self._services, credentials)
            self._grpc = RestartingServer(make)
            for name in ("", *self._services.names):
                await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
            self._http = self._http_server(self._services.web)
            await self._grpc.start()
        except BaseException:
            web.close()
            raise
        self._run(self._grpc.wait_for_termination())
        self._web = self._run(self._http.serve([web]))
        self._run(self._avatars.run())
        self._run(self._sample())

    def _http_server(self, sessions: WebSessions | None) -> http.HttpServer:
        config = self.config
        application = http.app(
            self.metrics,
            alive=self._dead,
            ready=self.unready,
            routes=[] if sessions is None else http.web_routes(sessions, config),
            middleware=[*own_hosts(config), *cross_origin(config)],
        )
        return http.HttpServer(application, config.server.tls, sessions=config.limits.max_sessions)

    def _grpc_server(self, services: Services, credentials: Any) -> Any:
        """Return a server that is bound: the first to the configured port, others to the same.

        Raises:
            InputError: the first one cannot be bound.
            RuntimeError: another one cannot be bound.
        """
        limits, where = self.config.limits, self.config.server
        server = grpc.aio.server(
            interceptors=[self._calls, self._access],
            options=channel_options(self.config),
            maximum_concurrent_rpcs=(
                limits.max_sessions + limits.max_renders + limits.max_requests + OTHER_CALLS
            ),
        )
        services.add(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*services.names, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        try:
            self.port = _add_port(server, where.host, self.port or where.port, credentials)
        except InputError as error:
            if self.port:
                raise RuntimeError(str(error)) from None
            raise
        return server

    async def _preload(self) -> None:
        assert self._avatars is not None and self._services is not None
        wanted = [name for name, model in self.config.models.items() if model.preload]
        failures = await self._avatars.preload()
        for name, failure in failures.items():
            _log.error("model %s cannot be loaded: %s", name, failure)
        if wanted and len(failures) == len(wanted):
            raise InputError(f"model {wanted[0]} cannot be loaded: {failures[wanted[0]]}")
        self._preloaded = True
        for name in ("", *self._services.names):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        _log.info("ready")

    # --- while it runs ---------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]

    async def _failed(self) -> None:
        """Return when something that has to run has failed."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._lateness.sample()

    def _dead(self) -> str | None:
        failed = self._avatars is not None and self._avatars.failure is not None
        return "a thread that makes frames has failed" if failed else None

    # --- end -------------------------------------------------------------------------------------

    async def _close(self) -> None:
        if self._services is not None:
            await asyncio.gather(self._services.close(), _close_web(self._services.web))
        if self._grpc is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(END_SECONDS):
                    await self._grpc.stop(None)
        if self._avatars is not None:
            await self._avatars.close()
        if self._http is not None:
            self._http.should_exit = True
        for task in self._tasks:
            if task is not self._web:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _close_web(sessions: WebSessions | None) -> None:
    if sessions is not None:
        await sessions.close()


def channel_options(config: Config) -> list[tuple[str, int]]:
    """Return gRPC's options: the limit of messages, and the Go server's keepalive."""
    size = config.server.max_message_size_mb << 20
    return [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.so_reuseport", 0),  # else a second server gets half of the clients
        # A ping every 10 s, and 3 s to answer it, also without a call.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients may ping every 5 s; no clock is exact.
        ("grpc.http2.min_ping_interval_without_data_ms", 4_500),
    ]


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first of these, and cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _credentials(tls: Tls) -> Any:
    """Read a certificate and its key.

    Raises:
        InputError: they cannot be read, or do not fit.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")  # never ask for it
        pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise InputError(
            f"TLS: {tls.certificate} and {tls.key} cannot be used: {one_line(why)}; "
            "expected a certificate and its key without a password, in PEM format"
        ) from None
    return grpc.ssl_server_credentials([pair])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError: the address cannot be listened at.
    """
    try:
        return http.listen(host, port)
    except (OSError, UnicodeError, OverflowError) as error:
        raise _cannot_listen(host, port, error) from None


def _add_port(server: Any, host: str, port: int, credentials: Any) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:  # does not say why
        listen(host, port).close()
        raise _cannot_listen(host, port, error) from None


def _cannot_listen(host: str, port: int, error: Exception) -> InputError:
    why = one_line(getattr(error, "strerror", None) or error)
    return InputError(f"{host} port {port} cannot be listened at: {why}; expected another")
