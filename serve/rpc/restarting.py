"""A grpc.aio server that goes on after a call that ends it."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from engine.errors import one_line

AGAIN_SECONDS, TRIES = 0.05, 100  # the port may be in use for a moment
log = logging.getLogger(__name__)


class RestartingServer:
    """Starts a grpc.aio server anew where one has ended by itself.

    A call whose path is not UTF-8, which any client can send before it is asked for a token, raises
    an exception in grpc.aio's main loop. grpc.aio then ends the server, with all of its calls, and
    the process goes on without one (up to 1.85 at least). Running calls are lost here too, but new
    ones are taken again at once.

    Args:
        make: makes a server with its services, bound to its port: the same one each time.
    """

    def __init__(self, make: Callable[[], Any]):
        self._make, self._server = make, make()
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        await self._server.start()
        self._watch = asyncio.create_task(self._restart())

    async def stop(self, grace: float | None) -> None:
        """Stop it, as `grpc.aio.Server.stop` does."""
        self._stopping = True
        await self._server.stop(grace)
        if self._watch is not None:
            await asyncio.gather(self._watch, return_exceptions=True)

    async def wait_for_termination(self) -> None:
        """Wait until it was stopped.

        Raises:
            RuntimeError: it could not be started anew, because its port is in use.
        """
        assert self._watch is not None, "it has not started"
        await asyncio.shield(self._watch)

    async def _restart(self) -> None:
        # Not cancelled: that would cancel what `stop` waits for.
        while not self._stopping:
            try:
                await self._server.wait_for_termination()
                return
            except Exception as error:
                log.error("gRPC is started anew, since a call has ended it: %s", one_line(error))
                await self._make_again()

    async def _make_again(self) -> None:
        for left in reversed(range(TRIES)):
            if self._stopping:
                return
            try:
                self._server = self._make()
                break
            except RuntimeError:
                if not left:
                    raise
                await asyncio.sleep(AGAIN_SECONDS)
        await self._server.start()
