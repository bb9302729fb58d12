"""A call that came through Ray Serve's gRPC proxy, as the handlers of grpc.aio want it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from grpc import StatusCode, aio

from ..rpc.calls import WRITE_SECONDS

_END = object()
# The last message of a call that ends with another status than OK: no protobuf, and no client's,
# because `services` takes it out. Ray Serve takes statuses with messages only, or logs a traceback.
STATUS = b"\x00status"
UNREAD_SECONDS = WRITE_SECONDS + 2  # until then, the handler says that nothing is read


class Details(NamedTuple):
    """What interceptors are told of a call, as `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Sequence[tuple[str, Any]]


class Message:
    """A serialised answer: Ray Serve asks each for its bytes."""

    def __init__(self, data: bytes):
        self._data = data

    def SerializeToString(self) -> bytes:
        return self._data


class Call:
    """The context of a call: what `grpc.aio.ServicerContext` is to a handler.

    One message at a time is between the handler and the proxy, so that a client that reads slowly
    makes its handler wait.

    Args:
        proxied: Ray Serve's context, which takes the status back to the client.
        parse: turns bytes into a message.
        serialize: turns a message into bytes.
        messages: the client's, in bytes; None for a call with a single one.
    """

    def __init__(
        self,
        proxied: Any,
        parse: Callable[[bytes], Any],
        serialize: Callable[[Any], bytes],
        messages: AsyncIterator[bytes] | None = None,
    ):
        self._proxied, self._parse, self._serialize = proxied, parse, serialize
        self._messages = messages
        self._code: Any = None
        self._answers: asyncio.Queue[Any] = asyncio.Queue(1)

    # --- for the handler -------------------------------------------------------------------------

    async def read(self) -> Any:
        """Return the client's next message, or `grpc.aio.EOF`."""
        if self._messages is None:
            return aio.EOF
        message = await anext(self._messages, None)
        return aio.EOF if message is None else await self.parsed(message)

    async def parsed(self, message: bytes) -> Any:
        """Return a message that came as bytes. Ends the call if it is none."""
        try:
            return self._parse(message)
        except DecodeError:
            await self.abort(StatusCode.INTERNAL, "a message cannot be read")

    async def write(self, message: Any) -> None:
        """Send a message, when the one before it is on its way.

        Raises:
            TimeoutError: the client reads nothing. Ray Serve's proxies do not ask whether it is
                still there, and its place is for others.
        """
        async with asyncio.timeout(UNREAD_SECONDS):
            await self._answers.put(Message(self._serialize(message)))

    async def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        """End the call with a status that is not OK.

        Raises:
            grpc.aio.AbortError: always.
        """
        self.set_code(code)
        self.set_details(details)
        if trailing_metadata:
            self._proxied.set_trailing_metadata(list(trailing_metadata))
        raise aio.AbortError(details)

    def set_code(self, code: Any) -> None:
        self._code = code
        self._proxied.set_code(code)

    def set_details(self, details: str) -> None:
        self._proxied.set_details(details)

    def code(self) -> Any:
        return 0 if self._code is None else self._code

    def details(self) -> str:
        return str(self._proxied.details() or "")

    def invocation_metadata(self) -> Any:
        return self._proxied.invocation_metadata()

    def peer(self) -> str:
        return str(self._proxied.peer())

    def time_remaining(self) -> float | None:
        """Return None: the proxy keeps the client's deadline, and cancels the call."""
        return None

    # --- for the replica -------------------------------------------------------------------------

    async def answers(self, work: Any) -> AsyncIterator[Message]:
        """Run a handler, and iterate over what it writes. If the iteration ends, so does the
        handler.

        The last one is `STATUS` if the handler ends the call with a status.

        Raises:
            Exception: what else the handler raises.
        """
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._wake)
        try:
            while not (task.done() and self._answers.empty()):
                if (answer := await self._answers.get()) is not _END:
                    yield answer
            if self._has_status(task):
                yield Message(STATUS)
        finally:
            task.cancel()
            await asyncio.wait([task])

    def _has_status(self, task: Any) -> bool:
        """Return whether a handler that is over has ended the call with a status."""
        if task.cancelled():  # by the service's end, which waits for nobody
            self.set_code(StatusCode.UNAVAILABLE)
            self.set_details("the server is ending")
            return True
        try:
            task.result()
        except aio.AbortError:
            return True
        return False

    def _wake(self, _: Any) -> None:
        """Let the iteration see that the handler is over."""
        if self._answers.empty():
            self._answers.put_nowait(_END)


class Handlers:
    """Handlers by the last part of their method, which is all that Ray Serve's proxy says of one.

    Stands for a grpc.aio server to the functions that add services to one.

    Args:
        interceptors: as of a server, the outer one first.
    """

    def __init__(self, interceptors: Sequence[Any]):
        self._interceptors = interceptors
        self._methods: dict[str, str] = {}
        self._handlers: list[Any] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self._handlers += handlers
        for handler in handlers:
            for method in handler._method_handlers:
                self._methods.setdefault(method.rpartition("/")[2], method)

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Do nothing: services add the same handlers in the other way too."""

    async def find(self, name: str, metadata: Any) -> Any:
        """Return the handler of a method, with all interceptors around it; None if there is none.

        Args:
            name: the last part of the method.
            metadata: of the call.
        """

        async def innermost(details: Any) -> Any:
            found = (handler.service(details) for handler in self._handlers)
            return next((one for one in found if one is not None), None)

        continuation: Any = innermost
        for interceptor in reversed(self._interceptors):
            continuation = _around(interceptor, continuation)
        return await continuation(Details(self._methods.get(name, name), tuple(metadata or ())))


def _around(interceptor: Any, inner: Any) -> Any:
    async def continuation(details: Any) -> Any:
        return await interceptor.intercept_service(inner, details)

    return continuation


def parser(handler: Any) -> Callable[[bytes], Any]:
    """Return what turns a request of a handler from bytes into a message."""
    return handler.request_deserializer or (lambda data: data)


def serializer(handler: Any) -> Callable[[Any], bytes]:
    """Return what turns an answer of a handler into bytes."""
    return handler.response_serializer or (lambda message: message)


def function_of(handler: Any) -> Any:
    """Return the coroutine function of a handler, of whatever kind."""
    return (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
