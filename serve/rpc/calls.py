"""What the calls of `viseme.v1.Viseme` need of the rest of the server, and how they fail."""

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Protocol

from grpc import StatusCode, aio

from engine import Avatar
from engine.errors import DeviceError, InputError, one_line
from engine.live import Live

from ..errors import INTERNAL, Busy, Ending, LoadFailed, NotConfigured, NotLoaded

_log = logging.getLogger(__name__)

Code: Any = StatusCode
# of the errors that say what a client, or an operator, can do
CODES: tuple[tuple[type[InputError], Any], ...] = (
    (NotConfigured, Code.NOT_FOUND),
    (NotLoaded, Code.FAILED_PRECONDITION),
    (LoadFailed, Code.INTERNAL),
    (Busy, Code.RESOURCE_EXHAUSTED),
    (Ending, Code.UNAVAILABLE),
    (DeviceError, Code.RESOURCE_EXHAUSTED),
    (InputError, Code.INVALID_ARGUMENT),
)
# of the operating system: what the server has too little of, for now
SCARCE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
WRITE_SECONDS = 10.0  # in which a client must make room for the next message


class Served(Protocol):
    """An avatar that is loaded."""

    @property
    def name(self) -> str: ...
    @property
    def avatar(self) -> Avatar: ...
    @property
    def live(self) -> Live: ...
    @property
    def renders(self) -> Live: ...


class Use(Protocol):
    """An avatar that stays loaded."""

    @property
    def served(self) -> Served: ...


class Entry(Protocol):
    """An avatar of the configuration."""

    @property
    def name(self) -> str: ...
    @property
    def loaded(self) -> bool: ...


class Avatars(Protocol):
    """The avatars of the configuration, loaded when somebody uses them."""

    def use(self, name: str, timeout: float | None = None) -> AbstractAsyncContextManager[Use]: ...

    def entries(self) -> list[Entry]: ...
    def peek(self, name: str) -> Served | None: ...


class Metrics(Protocol):
    """What sessions and renders do, labelled by avatar."""

    frames: Any
    late: Any
    skipped: Any
    underruns: Any


class Refused(Exception):
    """A call ends with a status that is not OK.

    Args:
        code: the status code.
        line: what was got, and what is expected.
    """

    def __init__(self, code: Any, line: object):
        self.code, self.line = code, str(InputError(line))
        super().__init__(self.line)


def invalid(line: str) -> Refused:
    return Refused(Code.INVALID_ARGUMENT, line)


@contextmanager
def failing_with(code: Any) -> Iterator[None]:
    """Give errors of the engine that code, whatever they are."""
    try:
        yield
    except InputError as error:
        raise Refused(code, error) from error


class Stream:
    """What a call's client sends and gets.

    Args:
        context: the call's, of `grpc.aio`.
    """

    def __init__(self, context: Any):
        self._context = context
        self._writing: asyncio.Future[None] | None = None

    async def read(self) -> Any:
        """Return the client's next message, None if it has closed its side."""
        message = await self._context.read()
        return None if message is aio.EOF else message

    async def write(self, message: Any) -> None:
        """Send a message, and wait until there is room for the next one.

        Raises:
            Refused: the client does not read.
        """
        # A message that was begun cannot be taken back: no status can be sent until it is sent.
        self._writing = asyncio.ensure_future(self._context.write(message))
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await asyncio.shield(self._writing)
        except TimeoutError:
            raise Refused(Code.ABORTED, f"nothing was read for {WRITE_SECONDS:g} s") from None
        self._writing = None

    @asynccontextmanager
    async def statuses(self) -> AsyncIterator[None]:
        """End the call with the status of an error that a client can understand.

        If the client reads nothing, that is when it does, or is gone.
        """
        try:
            yield
        except Refused as refused:
            failure = refused
        except InputError as error:
            code = next(code for kind, code in CODES if isinstance(error, kind))
            failure = Refused(code, error)
        except aio.BaseError:  # of a client that is gone
            raise
        except Exception as error:
            failure = _failure(error)
        else:
            return
        await self.settle()
        await self._context.abort(failure.code, failure.line)

    @asynccontextmanager
    async def settling(self) -> AsyncIterator[None]:
        """Leave the block when no message is being sent any more."""
        try:
            yield
        finally:
            await self.settle()

    async def settle(self) -> None:
        """Wait for the message that is being sent: until the client reads it, or is gone."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
            if not self._writing.cancelled():
                self._writing.exception()  # of a client that is gone


def _failure(error: Exception) -> Refused:
    """Log what is no client's mistake, and return what a client is told."""
    if isinstance(error, OSError) and error.errno in SCARCE:
        _log.error("a call failed: %s", one_line(error))
        return Refused(Code.RESOURCE_EXHAUSTED, f"the server failed: {os.strerror(error.errno)}")
    _log.error("a call failed", exc_info=error)
    return Refused(Code.INTERNAL, INTERNAL)
