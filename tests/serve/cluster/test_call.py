"""Calls that came through Ray Serve's proxy, without Ray."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from grpc import aio

from serve.cluster.call import STATUS, Call


def call():
    """Return a call, and what its client was told."""
    told = {}
    proxied = SimpleNamespace(
        set_code=lambda code: told.update(code=code),
        set_details=lambda line: told.update(line=line),
        set_trailing_metadata=lambda _: None,
    )
    return Call(proxied, bytes, bytes), told


async def collected(answers):
    async with asyncio.timeout(30):
        return [answer.SerializeToString() async for answer in answers]


def test_answers_come_in_their_order():
    async def run():
        one, told = call()

        async def work():
            for number in range(5):
                await one.write(bytes([number]))

        assert await collected(one.answers(work())) == [bytes([number]) for number in range(5)]
        assert not told

    asyncio.run(run())


def test_a_status_comes_after_all_answers():
    async def run():
        one, told = call()

        async def work():
            await one.write(b"1")
            await one.abort(grpc.StatusCode.NOT_FOUND, "not here")

        assert await collected(one.answers(work())) == [b"1", STATUS]
        assert told == {"code": grpc.StatusCode.NOT_FOUND, "line": "not here"}

    asyncio.run(run())


def test_a_fault_is_raised():
    async def run():
        one, _ = call()

        async def work():
            raise ValueError("a fault")

        with pytest.raises(ValueError, match="a fault"):
            await collected(one.answers(work()))

    asyncio.run(run())


@pytest.mark.parametrize("times", [1, 2])
def test_a_handler_that_is_cancelled_ends_the_call(times):
    """The end of the service cancels handlers, until they leave: a slow client must not wait for
    answers that nobody makes."""

    async def run():
        one, told = call()
        began = asyncio.Event()

        async def work():
            await one.write(b"1")
            began.set()
            try:
                await one.write(b"2")
            finally:
                await asyncio.sleep(30 if times == 2 else 0)

        begin = set(asyncio.all_tasks())
        answers = one.answers(work())
        first = await anext(answers)
        await began.wait()
        (handler,) = asyncio.all_tasks() - begin
        for _ in range(times):
            handler.cancel()
            await asyncio.sleep(0)
        rest = await collected(answers)
        assert first.SerializeToString() == b"1" and rest[-1] == STATUS
        assert told == {"code": grpc.StatusCode.UNAVAILABLE, "line": "the server is ending"}

    asyncio.run(run())


def test_a_client_that_leaves_ends_its_handler():
    async def run():
        one, _ = call()
        left = asyncio.Event()

        async def work():
            try:
                while True:
                    await one.write(b"1")
            finally:
                left.set()

        begin = set(asyncio.all_tasks())
        answers = one.answers(work())
        await anext(answers)
        await answers.aclose()
        assert left.is_set() and asyncio.all_tasks() == begin

    asyncio.run(run())


def test_a_client_that_reads_nothing_keeps_no_handler(monkeypatch):
    monkeypatch.setattr("serve.cluster.call.UNREAD_SECONDS", 0.01)

    async def run():
        one, _ = call()
        over = asyncio.Event()

        async def work():
            try:
                while True:
                    await one.write(b"1")
            except TimeoutError:
                over.set()
                await one.abort(grpc.StatusCode.ABORTED, "nothing was read")

        answers = one.answers(work())
        await anext(answers)
        await asyncio.wait_for(over.wait(), 30)
        assert await collected(answers) == [b"1", STATUS]

    asyncio.run(run())


def test_who_has_nothing_to_send():
    async def run():
        one, _ = call()
        assert await one.read() is aio.EOF

        async def work():
            pass

        assert await collected(one.answers(work())) == []

    asyncio.run(run())
