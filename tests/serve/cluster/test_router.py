"""Which replica a request goes to, without any replica."""

import asyncio
import pickle
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ray", reason="Ray Serve is not installed")

from ray.serve._private.common import (
    RequestMetadata,
    RequestProtocol,
    StreamingHTTPRequest,
    gRPCRequest,
)

from serve.cluster import router
from serve.cluster.router import SessionRouter, session_number, tag_of


def replica(name: str, *, tag=0, apart=0, running=0, models=(), most=100):
    return SimpleNamespace(
        replica_id=name,
        replica_metadata={"tag": tag},
        routing_stats={"apart": apart, "running": running},
        multiplexed_model_ids=set(models),
        max_ongoing_requests=most,
    )


def request(id: str, *, session="", model="", path=None, message=b"", scope=None):
    """Return a request as Ray Serve's proxies give it to a router: over HTTP with a path, or over
    gRPC with a client's message."""
    content = gRPCRequest(message)
    if path is not None:
        scope = {"type": "http", "path": path, "headers": [(b"host", b"here")]} | (scope or {})
        content = StreamingHTTPRequest(scope, proxy_actor_name="proxy")
    return SimpleNamespace(
        metadata=RequestMetadata(
            request_id=id,
            internal_request_id=id,
            session_id=session,
            multiplexed_model_id=model,
            _request_protocol=RequestProtocol.GRPC if path is None else RequestProtocol.HTTP,
        ),
        args=[pickle.dumps(content)],
        future=asyncio.Future(),
        routing_context=SimpleNamespace(should_backoff=False),
    )


def send(asked, name: str) -> None:
    """Do as Ray Serve when a request goes to a replica."""
    asked.future.set_result(replica(name))


class Router(SessionRouter):
    """Chooses among replicas that it is given, without Ray's part."""

    def __init__(self, replicas):
        self._running, self.replicas = {}, replicas
        self._num_virtual_nodes, self._num_fallback_replicas = 10, 2

    async def first(self, asked) -> str:
        ranks = await self.choose_replicas(self.replicas, asked)
        assert all(len(rank) == 1 for rank in ranks)
        return ranks[0][0].replica_id


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_what_runs_is_spread(order, count):
    """Requests that begin and end in any order are spread within one, if each goes where fewest
    run, and nothing of those that ended is left."""

    async def spread():
        chooser = Router([replica(f"r{number}") for number in range(count)])
        running: dict[str, str] = {}
        for number, which in enumerate(order):
            if which % 3 == 0 and running:
                id = sorted(running)[which % len(running)]
                chooser.on_request_completed(running.pop(id), id)
            else:
                before = Counter({r.replica_id: 0 for r in chooser.replicas})
                before.update(running.values())
                asked = request(f"q{number}")
                running[f"q{number}"] = await chooser.first(asked)
                send(asked, running[f"q{number}"])
                assert before[running[f"q{number}"]] == min(before.values())
        for id, where in running.items():
            chooser.on_request_completed(where, id)
        assert not chooser._running

    asyncio.run(spread())


def test_a_client_that_leaves_before_it_is_served_takes_no_place():
    async def leave():
        chooser = Router([replica("one"), replica("two")])
        for number in range(4):
            asked = request(f"left{number}")
            await chooser.first(asked)
            asked.future.cancel()
        assert {await chooser.first(request("a")), await chooser.first(request("b"))} == {
            "one",
            "two",
        }
        assert len(chooser._running) == 2

    asyncio.run(leave())


def test_a_full_replica_that_hands_a_request_on():
    """Ray Serve may say that the first replica is done with it when the second one has it."""

    async def hand_on():
        chooser = Router([replica("one"), replica("two")])
        asked = request("a")
        first = await chooser.first(asked)
        send(asked, first)
        asked.future = asyncio.Future()
        second = await chooser.first(asked)
        chooser.on_request_completed(first, "a")
        assert len(chooser._running) == 1
        send(asked, second)
        chooser.on_request_completed(second, "a")
        assert not chooser._running

    asyncio.run(hand_on())


def test_a_replica_of_which_nothing_is_known_yet(monkeypatch):
    """A text that is no number is not for it, but for the one that Ray Serve's hash says."""

    async def by_hash(self, replicas, asked):
        return [[replicas[1]]]

    monkeypatch.setattr(router.ConsistentHashRouter, "choose_replicas", by_hash)

    async def go():
        chooser = Router([replica("new"), replica("one", tag=5)])
        chooser.replicas[0].replica_metadata = {}
        assert await chooser.first(request("a", session="text")) == "one"

    asyncio.run(go())


def test_who_goes_where():
    async def go():
        tags = {"one": 5, "two": 7}
        chooser = Router(
            [
                replica("one", tag=5, models=["anna"]),
                replica("two", tag=7, apart=3, models=["ben"]),
            ]
        )
        for name, tag in tags.items():
            number = session_number(tag)
            assert tag_of(str(number)) == tag and 0 < number < 2**53
            for where in (
                {"session": str(number)},
                {"path": f"/whep/{number}/x"},
                {"path": f"/record/{number}"},
            ):
                assert await chooser.first(request("s", **where)) == name
        # Sessions of players count too, and an avatar that is loaded counts more.
        assert await chooser.first(request("a")) == "one"
        assert await chooser.first(request("b", path="/page.js")) == "one"
        assert await chooser.first(request("c", model="ben")) == "two"
        chooser.replicas[1].max_ongoing_requests = 4
        assert await chooser.first(request("d", model="ben")) == "one"  # "two" is full
        # Of those with as many of this proxy's requests, the one with the fewest of the others'.
        counts = {"one": 5, "two": 2, "three": 9}
        chooser = Router([replica(name, running=count) for name, count in counts.items()])
        assert await chooser.first(request("e")) == "two"

    asyncio.run(go())


class Code:
    """Runs when it is unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Code, "ran", True))


def test_nothing_that_is_asked_runs():
    """Neither a client's message, nor an object in what a proxy hands on."""

    async def go():
        chooser = Router([replica("one")])
        message = pickle.dumps(Code())
        assert await chooser.first(request("a", message=message)) == "one"
        bare = request("b")
        bare.args = [message]  # as if a proxy handed on the message itself
        assert await chooser.first(bare) == "one"
        for path, scope in (("/whep/1", {"state": Code()}), ("/page.js", {"path": Code()})):
            with pytest.raises(pickle.UnpicklingError, match="setattr is no part of a request"):
                await chooser.first(request("c", path=path, scope=scope))

    asyncio.run(go())
    assert not Code.ran


def test_texts_that_are_no_numbers_of_sessions():
    for text in ("", "x", "-1", "1e3", "٣", "9" * 17, "12 "):
        assert tag_of(text) is None
    numbers = {session_number(3) for _ in range(1000)}
    assert len(numbers) == 1000 and all(number % 2**router.TAG_BITS == 3 for number in numbers)
