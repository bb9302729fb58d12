"""The service `viseme.v1.Viseme`: speech in, lip-synced video out."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc

from engine.media.encode import EncoderPool

from .. import config
from ..places import Places
from .calls import Avatars, Code, Metrics, Refused, Served, Stream, invalid
from .live import CLOCKS, LiveCall, choice
from .protos import viseme_pb2 as pb
from .protos import viseme_pb2_grpc
from .render import RenderCall, order

LEAVE_SECONDS = 2.0  # for clients to read why their calls ended
AGAIN_SECONDS = 0.1
FIRST_SECONDS = 10.0  # in which a client opens a session; until then it keeps others from calling


class VisemeService(viseme_pb2_grpc.VisemeServicer):
    """The service's methods. Add it to a `grpc.aio` server.

    Args:
        registry: `serve.registry.Registry`.
        metrics: `serve.metrics.Metrics`.
        places: for live sessions, also others than those of this service; by default, for
            `max_sessions`.
    """

    def __init__(
        self,
        registry: Avatars,
        config: config.Config,
        metrics: Metrics,
        places: Places | None = None,
    ):
        self._registry, self._config, self._metrics = registry, config, metrics
        self._limits = config.limits
        self._places = places or Places(config.limits.max_sessions)
        self._renders = 0
        self._pool = EncoderPool()
        self._threads = ThreadPoolExecutor(max(self._limits.max_renders, 1), "viseme-render")
        self._calls: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def close(self) -> None:
        """End all calls with UNAVAILABLE, and refuse new ones. Threads that work for a call are
        waited for."""
        self._closed = True
        seconds = LEAVE_SECONDS
        while calls := list(self._calls):  # of a client that reads nothing, none ends at once
            for call in calls:
                call.cancel()
            await asyncio.wait(calls, timeout=seconds)
            seconds = AGAIN_SECONDS
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(self._pool.close)

    async def ListAvatars(self, request: pb.ListAvatarsRequest, context: Any) -> Any:
        async with self._call(context):
            avatars = [self._describe(entry.name) for entry in self._registry.entries()]
            return pb.ListAvatarsResponse(avatars=avatars)

    async def Render(self, request: pb.RenderRequest, context: Any) -> None:
        async with self._call(context) as stream:
            made = order(request, self._limits, self._config.output)
            async with (
                self._one_render(stream),
                self._registry.use(request.avatar, self._limits.load_seconds) as use,
            ):
                call = RenderCall(
                    stream,
                    made,
                    use.served,
                    threads=self._threads,
                    pool=self._pool,
                    limits=self._limits,
                    metrics=self._metrics,
                )
                await call.run()

    async def Live(self, requests: Any, context: Any) -> None:
        async with self._call(context) as stream:
            chosen = choice(await self._first(stream), self._config.output)
            # Who reads nothing takes the place of a session until the call has ended.
            async with (
                self._one_session(chosen.avatar, stream),
                self._registry.use(chosen.avatar, self._limits.load_seconds) as use,
            ):
                await self._live(stream, chosen, use.served)

    async def _live(self, stream: Stream, chosen: Any, served: Served) -> None:
        session = served.live.open(
            sample_rate=chosen.sound.rate,
            channels=chosen.sound.channels,
            prebuffer=chosen.prebuffer,
            clock=CLOCKS[chosen.clock],
            loop=chosen.loop,
            start_frame=chosen.start_frame,
        )
        with session:
            avatar = served.avatar
            opened = pb.SessionOpened(
                avatar=chosen.avatar,
                width=avatar.width,
                height=avatar.height,
                fps_numerator=avatar.fps.numerator,
                fps_denominator=avatar.fps.denominator,
                sample_rate=session.sample_rate,
                channels=session.channels,
                sample_format=chosen.sound.format,
                picture=chosen.picture,
                prebuffer=chosen.prebuffer,
                clock=chosen.clock,
                sessions=self._places.of(chosen.avatar),
                capacity=self._capacity(served),
            )
            call = LiveCall(
                stream,
                chosen,
                served,
                session,
                self._pool,
                idle_seconds=self._limits.idle_seconds,
                metrics=self._metrics,
                opened=opened,
            )
            most = self._limits.max_session_seconds
            try:
                async with asyncio.timeout(most):
                    await call.run()
            except TimeoutError:
                raise Refused(Code.ABORTED, f"the session was {most:g} s long, the most") from None

    async def _first(self, stream: Stream) -> pb.OpenSession:
        seconds = min(self._limits.idle_seconds, FIRST_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                request = await stream.read()
        except TimeoutError:
            raise Refused(Code.ABORTED, f"no message came for {seconds:g} s") from None
        kind = None if request is None else request.WhichOneof("request")
        if kind != "open":
            raise invalid(f"the first message is {kind or 'empty'}; expected open")
        return request.open

    def _describe(self, name: str) -> pb.AvatarInfo:
        """Describe an avatar; one that is not loaded by its name only."""
        served, sessions = self._registry.peek(name), self._places.of(name)
        if served is None:
            return pb.AvatarInfo(name=name, sessions=sessions)
        avatar = served.avatar
        return pb.AvatarInfo(
            name=name,
            loaded=True,
            width=avatar.width,
            height=avatar.height,
            fps=float(avatar.fps),
            sessions=sessions,
            capacity=self._capacity(served),
        )

    def _capacity(self, served: Served) -> int:
        return min(served.live.capacity(), self._limits.max_sessions)

    @asynccontextmanager
    async def _one_session(self, avatar: str, stream: Stream) -> AsyncIterator[None]:
        with self._places.one(avatar):
            async with stream.settling():
                yield

    @asynccontextmanager
    async def _one_render(self, stream: Stream) -> AsyncIterator[None]:
        most = self._limits.max_renders
        if self._renders >= most:
            line = f"{self._renders} renders run; expected fewer than {most}"
            raise Refused(Code.RESOURCE_EXHAUSTED, line)
        self._renders += 1
        try:
            async with stream.settling():
                yield
        finally:
            self._renders -= 1

    @asynccontextmanager
    async def _call(self, context: grpc.aio.ServicerContext) -> AsyncIterator[Stream]:
        """Give errors their status, also the end of the server."""
        task = asyncio.current_task()
        assert task is not None
        stream = Stream(context)
        self._calls.add(task)
        try:
            async with stream.statuses():
                if self._closed:
                    raise Refused(Code.UNAVAILABLE, "the server is ending")
                try:
                    yield stream
                except asyncio.CancelledError:
                    if not self._closed:
                        raise  # by the client, or its deadline
                    task.uncancel()
                    raise Refused(Code.UNAVAILABLE, "the server is ending") from None
        finally:
            self._calls.discard(task)
