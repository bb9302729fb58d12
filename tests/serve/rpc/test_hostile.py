"""Requests that nobody means, and bytes that are no requests: the server goes on."""

import threading
from types import SimpleNamespace

import grpc
import pytest

from tests.serve.fuzz_rpc import Server, check_answer, fuzz
from tests.serve.rpc import hostile
from tests.serve.rpc.encoding import content
from tests.serve.rpc.go_client import SERVICE, GoClient

INTERNAL = grpc.StatusCode.INTERNAL


def test_300_requests(messages):
    with Server() as server:
        report = fuzz(server, messages, seed=1, count=300)
    assert report.findings == []
    # both happen, or the mutations are no good
    assert report.answers["success"] > 20 and report.answers["error"] > 60
    assert report.answers["INTERNAL"] > 20 and report.answers["UNIMPLEMENTED"] > 5
    assert sum(report.answers.values()) == 300


def test_an_answer_that_is_wrong_is_found(messages):
    good = messages.CompositeBatchResponse(success=True, composited_frames=[b"x"])
    request = messages.CompositeBatchRequest(model_id="anna", batch_size=1)
    request = request.SerializeToString()
    check = lambda answer: check_answer(messages, "InferBatchComposite", request, answer)  # noqa: E731
    assert check(good.SerializeToString()) == "success"
    error = messages.CompositeBatchResponse(error="no").SerializeToString()
    assert check(error) == "error"
    for wrong in (
        b"",
        messages.CompositeBatchResponse(success=True).SerializeToString(),
        messages.CompositeBatchResponse(success=True, error="x").SerializeToString(),
        messages.CompositeBatchResponse(error="two\nlines").SerializeToString(),
        good.SerializeToString() + error,
        content(9, b"Inference failed: an internal error, which the server's log describes"),
    ):
        with pytest.raises(AssertionError):
            check(wrong)


def test_bytes_into_the_port(messages):
    """Each on a connection of its own; a client beside them sees nothing of it."""
    with Server() as server, GoClient(server.port, messages) as client:
        threads, files = threading.active_count(), hostile.open_files()
        for number, data in enumerate(hostile.connections(seed=2, count=120)):
            hostile.send(server.port, data)
            if number % 10 == 0:
                call = client.channel.unary_unary(f"/{SERVICE}/Health")
                assert call(b"", timeout=30, wait_for_ready=True)
        answer = client.infer(model_id="anna", batch_size=1, audio_features=bytes(32768))
        assert answer.success
        assert threading.active_count() <= threads + 4  # of asyncio's pool
        server.settle(lambda: hostile.open_files() <= files + 2)


def test_a_path_that_is_not_text(messages):
    """It ends grpc.aio's server; ours is there again, and a client needs no new connection."""
    with Server() as server, GoClient(server.port, messages) as client:
        for path in (b"/\xf4/Health", b"\xff"):
            assert client.call("Health").healthy
            hostile.send(server.port, hostile.PREFACE + hostile.frame(4, 0, 0, b"")
                         + hostile.frame(hostile.HEADERS, 5, 1, hostile.headers(path)))  # fmt: skip
            server.settle(lambda: bool(server.restarts))
            server.restarts.clear()
            call = client.channel.unary_unary(f"/{SERVICE}/Health")
            assert call(b"", timeout=30, wait_for_ready=True)


def test_a_message_that_says_it_is_huge_takes_no_memory(messages):
    with Server() as server, GoClient(server.port, messages) as client:
        client.call("Health")
        call = hostile.PREFACE + hostile.frame(hostile.SETTINGS, 0, 0, b"")
        call += hostile.frame(hostile.HEADERS, 4, 1, hostile.headers(f"/{SERVICE}/Health".encode()))
        call += hostile.frame(hostile.DATA, 0, 1, hostile.messages_of(99 << 20, b"x"))
        before = hostile.resident()
        connections = [SimpleNamespace(data=call) for _ in range(20)]
        for connection in connections:
            hostile.send(server.port, connection.data)
        assert hostile.resident() - before < 200 << 20
        assert client.call("Health").healthy
