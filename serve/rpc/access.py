"""Who may call, and what is counted of each call."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
import grpc.aio

from ..errors import INTERNAL
from ..metrics import Metrics
from ..tokens import Tokens

HEALTH = "/grpc.health.v1.Health/"
OPERATORS = "/grpc."  # health and reflection: a call of them does not keep the server
UNKNOWN = "unknown"  # instead of what a client made up
ALMOST = 0.1  # seconds
CODES = {code.value[0]: code.name for code in grpc.StatusCode}

_log = logging.getLogger("serve.calls")

Continuation = Callable[[Any], Awaitable[Any]]


class Access(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without a token that is known, and all calls while the server ends.

    Those of grpc.health.v1 are always answered. What is refused is not read: not even a message of
    the largest size.

    Args:
        tokens: the texts, of which a call must bring one. Without any, all calls are taken.

    Attributes:
        ending: whether calls are refused with UNAVAILABLE.
    """

    def __init__(self, tokens: Sequence[str]):
        self._tokens = Tokens(tokens)
        self.ending = False

    def takes(self, metadata: Any) -> bool:
        """Return whether a call with this metadata may be served."""
        return not self.ending and not (self._tokens and self._unknown(metadata))

    async def intercept_service(self, continuation: Continuation, details: Any) -> Any:
        handler = await continuation(details)
        if not details.method.startswith(HEALTH):
            if self.ending:
                return _refusal(grpc.StatusCode.UNAVAILABLE, "the server is ending", handler)
            if self._tokens and (why := self._unknown(details.invocation_metadata)):
                return _refusal(grpc.StatusCode.UNAUTHENTICATED, why, handler)
        return handler

    def _unknown(self, metadata: Any) -> str | None:
        given = [value for key, value in metadata or () if key == "authorization"]
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            return 'the call has no token; expected the metadata "authorization: Bearer TOKEN"'
        return None if self._tokens.knows(token.strip()) else "the call's token is not known"


class Calls(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Counts calls and their seconds, and knows how many run.

    An exception that is not a status is a fault of ours: it is logged, and the client is told no
    more than that.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._running = 0
        self._none = asyncio.Event()
        self._none.set()

    async def finished(self) -> None:
        """Wait until no call runs, but those that operators make."""
        await self._none.wait()

    async def intercept_service(self, continuation: Continuation, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            self._metrics.requests.labels(UNKNOWN, UNKNOWN, "UNIMPLEMENTED").inc()
            return None
        name, make = _KINDS[handler.request_streaming, handler.response_streaming]
        call = getattr(handler, name)
        method = f"/{UNKNOWN}/{UNKNOWN}" if getattr(call, "made_up", False) else details.method
        return make(
            self._counted(call, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _counted(self, call: Callable[..., Any], method: str) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(call):

            async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
                async with _Call(self, method, context), aclosing(call(request, context)) as parts:
                    async for part in parts:
                        yield part

            return answers

        async def answer(request: Any, context: Any) -> Any:
            async with _Call(self, method, context):
                return await call(request, context)

        return answer

    @contextmanager
    def running(self, method: str) -> Iterator[None]:
        if method.startswith(OPERATORS):
            yield
            return
        self._running += 1
        self._none.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._none.set()

    def count(self, method: str, code: str, seconds: float) -> None:
        service, _, name = method.removeprefix("/").rpartition("/")
        self._metrics.requests.labels(service, name, code).inc()
        self._metrics.request_seconds.labels(name).observe(seconds)


class _Call:
    """A call that runs: when it ends, its code and its seconds are counted."""

    def __init__(self, calls: Calls, method: str, context: Any):
        self._calls, self._method, self._context = calls, method, context
        self._begin = time.perf_counter()
        self._running = calls.running(method)

    async def __aenter__(self) -> None:
        self._running.__enter__()

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        seconds = time.perf_counter() - self._begin
        try:
            self._calls.count(self._method, self._code(error), seconds)
            if isinstance(error, Exception) and not isinstance(error, grpc.aio.BaseError):
                _log.error("%s failed", self._method, exc_info=error)
                await self._context.abort(grpc.StatusCode.INTERNAL, INTERNAL)
        finally:
            self._running.__exit__(None, None, None)

    def _code(self, error: BaseException | None) -> str:
        if error is None or isinstance(error, grpc.aio.AbortError):
            code = self._context.code() or 0
            return CODES.get(code, "UNKNOWN") if isinstance(code, int) else str(code.name)
        if isinstance(error, (asyncio.CancelledError, GeneratorExit, grpc.aio.BaseError)):
            left = self._context.time_remaining()
            over = left is not None and left < ALMOST  # a client's clock may be ahead
            return "DEADLINE_EXCEEDED" if over else "CANCELLED"
        return "INTERNAL"


_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def _refusal(code: grpc.StatusCode, why: str, handler: Any) -> Any:
    """Return a handler that refuses a call, instead of the one that there is, or None."""

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, why)

    refuse.made_up = handler is None  # type: ignore[attr-defined]
    # As a stream its messages are not read, whatever the client calls.
    return grpc.stream_stream_rpc_method_handler(refuse)
