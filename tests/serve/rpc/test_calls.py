"""A status is sent after the message that is on its way, never in the middle of it."""

import asyncio

import grpc
import pytest

from serve.errors import INTERNAL, Busy, Ending, LoadFailed, NotConfigured
from serve.rpc import calls
from serve.rpc.calls import Refused, Stream, invalid


class Context:
    """Sends when it is told to."""

    def __init__(self) -> None:
        self.release, self.log = asyncio.Event(), []

    async def write(self, message: str) -> None:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        self.log.append(message)

    async def abort(self, code: grpc.StatusCode, line: str) -> None:
        self.log.append((code.name, line))


def test_a_status_waits_for_the_message_before_it():
    async def main():
        context = Context()
        stream = Stream(context)

        async def call():
            async with stream.statuses():
                writing = asyncio.create_task(stream.write("first"))
                await asyncio.sleep(0)
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                raise invalid("no")

        task = asyncio.create_task(call())
        for _ in range(10):
            await asyncio.sleep(0)
        assert context.log == []
        context.release.set()
        await task
        return context.log

    assert asyncio.run(main()) == ["first", ("INVALID_ARGUMENT", "no")]


def test_a_client_that_does_not_read(monkeypatch):
    monkeypatch.setattr(calls, "WRITE_SECONDS", 0.01)

    async def main():
        context = Context()
        stream = Stream(context)
        with pytest.raises(Refused, match="nothing was read for 0.01 s"):
            await stream.write("message")
        assert context.log == []
        context.release.set()
        await stream.settle()
        return context.log

    assert asyncio.run(main()) == ["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotConfigured("x"), ("NOT_FOUND", "x")),
        (LoadFailed("x"), ("INTERNAL", "x")),
        (Busy("x"), ("RESOURCE_EXHAUSTED", "x")),
        (Ending("x"), ("UNAVAILABLE", "x")),
        (Refused(grpc.StatusCode.ABORTED, "a\nb"), ("ABORTED", "a\\nb")),
        (ZeroDivisionError("a secret"), ("INTERNAL", INTERNAL)),
    ],
)
def test_statuses_of_errors(error, status):
    async def main():
        context = Context()
        async with Stream(context).statuses():
            raise error
        return context.log

    assert asyncio.run(main()) == [status]
