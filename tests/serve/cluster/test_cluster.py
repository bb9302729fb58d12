"""Two replicas behind Ray Serve's proxies: who serves whom, and what clients see of it."""

import asyncio
import json
import os
import pickle
import re
import signal
from collections import Counter
from contextlib import asynccontextmanager

import grpc
import httpx
import pytest
import websockets
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("ray", reason="Ray Serve is not installed")

from serve.rpc.protos import monolithic_pb2 as go
from serve.rpc.protos import monolithic_pb2_grpc, viseme_pb2_grpc
from serve.rpc.protos import viseme_pb2 as pb
from tests.engine.tiny import write_avatar
from tests.serve.cluster.cluster import HEADERS, METADATA, SECONDS, Session, running, until

OFFER = {"Content-Type": "application/sdp", **HEADERS}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@asynccontextmanager
async def sessions(cluster, count: int, **options):
    """Open so many sessions; at the end they are cancelled."""
    async with cluster.channel() as channel:
        opened = [Session(channel, **options) for _ in range(count)]
        try:
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(*(session.began.wait() for session in opened))
            yield opened
        finally:
            await asyncio.gather(*(session.end() for session in opened))
            await _until_none(channel)


async def _until_none(channel) -> None:
    """Wait until no replica has a session."""
    stub, none = viseme_pb2_grpc.VisemeStub(channel), 0
    async with asyncio.timeout(SECONDS):
        while none < 10:  # calls go to either replica
            answer = await stub.ListAvatars(pb.ListAvatarsRequest(), metadata=METADATA)
            none = 0 if any(avatar.sessions for avatar in answer.avatars) else none + 1


def test_a_speech_comes_back_whole(cluster):
    async def talk():
        async with cluster.channel() as channel:
            session = Session(channel, clock=pb.CLOCK_TAKEN, picture=pb.PICTURE_RGB)
            for _ in range(4):
                await session.write(pcm=bytes(2 * 16000))
            await session.call.done_writing()
            await asyncio.wait_for(session.task, SECONDS)
        assert session.status == (grpc.StatusCode.OK, "")
        assert session.numbers == list(range(8))
        assert (session.opened.width, session.opened.height) == (80, 96)

    asyncio.run(talk())


def test_clients_of_the_go_server(cluster):
    async def ask():
        async with cluster.channel() as channel:
            stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
            request = go.CompositeBatchRequest(
                model_id="anna", batch_size=3, raw_audio=bytes(4 * 2 * 16000)
            )
            answer = await stub.InferBatchComposite(request, metadata=METADATA)
            assert answer.success, answer.error
            assert len(answer.composited_frames) == 3
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListModels(go.ListModelsRequest())
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
            render = viseme_pb2_grpc.VisemeStub(channel).Render(
                pb.RenderRequest(
                    avatar="anna", pcm=pb.Pcm(samples=bytes(2 * 32000)),
                    format=pb.RENDER_FORMAT_JPEG,
                ),
                metadata=METADATA,
            )  # fmt: skip
            answers = [answer async for answer in render]
            assert answers[0].opened.frames == sum(len(a.frames.frames) for a in answers[1:]) > 0

    asyncio.run(ask())


def test_sessions_are_spread(cluster):
    async def spread():
        async with sessions(cluster, 20) as opened:
            there = [session.opened.sessions for session in opened if session.status is None]
            for session in opened:  # a busy machine has time for fewer
                if session.status is not None:
                    assert session.status[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
            # Each replica counts its own sessions.
            counts = Counter(there)
            one, other = (sum(n >= which for n in counts.values()) for which in (1, 2))
            # Within 2 of each other, if none was refused; and one replica may refuse more.
            assert one + other == len(there) >= 10 and one <= 11

    asyncio.run(spread())


def test_metrics_of_all_replicas(cluster):
    """Ray exports on a node what each of its replicas has at /metrics."""

    async def read():
        async with (
            sessions(cluster, 4) as opened,
            httpx.AsyncClient() as http,
            asyncio.timeout(SECONDS),
        ):
            there = sum(session.status is None for session in opened)
            while True:
                text = (await http.get(f"http://127.0.0.1:{cluster.metrics_port}/metrics")).text
                found = {
                    (name, labels["replica"]): value
                    for family in text_string_to_metric_families(text)
                    for name, labels, value, *_ in family.samples
                    if labels.get("avatar") == "anna" and labels["deployment"] == "viseme"
                }
                at_once = [n for (name, _), n in found.items() if name == "ray_viseme_sessions"]
                if len(at_once) == 2 and sum(at_once) == there:
                    return found
                await asyncio.sleep(0.5)

    found = asyncio.run(read())
    assert sum(name == "ray_viseme_batch_frames_count" for name, _ in found) == 2
    assert not any("created" in name for name, _ in found)


def test_one_more_is_refused_with_a_time_to_come_back(cluster):
    async def overload():
        async with sessions(cluster, 24) as opened, cluster.channel() as channel:
            late = next((session for session in opened if session.status is not None), None)
            if late is None:  # a busy machine has time for fewer than 24
                late = Session(channel)
                await asyncio.wait_for(late.task, SECONDS)
        assert late.status[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert re.search(r"\d+ sessions (of this avatar )?are open", late.status[1])
        assert int(late.trailing["retry-after"]) > 0
        assert late.opened is None

    asyncio.run(overload())


class Code:
    """Writes a file if it is unpickled."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return (open, (str(self._mark), "w"))


def test_what_is_asked_wrongly_has_the_status_that_it_has_without_a_cluster(cluster, tmp_path):
    mark = tmp_path / "mark"

    async def ask():
        async with cluster.channel() as channel:
            cases = [
                ({"avatar": "nobody"}, METADATA, grpc.StatusCode.NOT_FOUND, "not configured"),
                ({"sample_rate": 7}, METADATA, grpc.StatusCode.INVALID_ARGUMENT, "sample rate is 7"),
                ({}, (), grpc.StatusCode.UNAUTHENTICATED, "no token"),
                ({}, (("multiplexed_model_id", "ben"),), grpc.StatusCode.UNAUTHENTICATED, "no token"),
                ({}, (*METADATA, ("multiplexed_model_id", "nobody")), grpc.StatusCode.NOT_FOUND, "not configured"),
            ]  # fmt: skip
            for options, metadata, code, line in cases:
                session = Session(channel, metadata, **options)
                await asyncio.wait_for(session.task, SECONDS)
                assert session.status[0] == code and line in session.status[1]
            method = "/viseme.v1.Viseme/"
            torn = channel.unary_stream(method + "Render")(
                pickle.dumps(Code(mark), 0), metadata=METADATA
            )
            assert await torn.code() == grpc.StatusCode.INTERNAL
            assert await torn.details() == "a message cannot be read"
            large = channel.unary_unary(method + "ListAvatars")(bytes(2 << 20), metadata=METADATA)
            assert await large.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # over 1 MiB

    asyncio.run(ask())
    assert not mark.exists()  # nobody unpickles what a client sends
    # Ray's controller has tracebacks of its own, as when a busy machine is slow to answer.
    ours = [line for line in cluster.log.read_text().splitlines() if "ServeController" not in line]
    assert "Traceback" not in "\n".join(ours)


def test_a_session_over_http_is_reached_where_it_is(cluster):
    """WHEP's offers are refused with 400 where the session is known, and with 404 elsewhere."""

    async def reach():
        address = f"ws://127.0.0.1:{cluster.http_port}/v1/live?avatar=anna"
        async with httpx.AsyncClient(headers=OFFER) as http:
            sockets, numbers = [], []
            for _ in range(4):
                socket = await websockets.connect(address, additional_headers=HEADERS)
                await socket.send(json.dumps({"type": "open"}))
                sockets.append(socket)
                numbers.append(json.loads(await socket.recv())["session"])
            for number in numbers:
                answers = [
                    await http.post(f"{cluster.url}/whep/{number}", content="v=0") for _ in range(4)
                ]
                assert {answer.status_code for answer in answers} == {400}
            # The other routes say where they belong by a header.
            for number in numbers:
                answers = [
                    await http.post(
                        f"{cluster.url}/is_speaking",
                        content=json.dumps({"sessionid": number}),
                        headers={"x-session-id": str(number)},
                    )
                    for _ in range(4)
                ]
                assert {answer.json()["code"] for answer in answers} == {0}
            unknown = await http.post(f"{cluster.url}/whep/{max(numbers) ^ 1}", content="v=0")
            assert unknown.status_code == 404
            for socket in sockets:
                await socket.close()
        async with cluster.channel() as channel:
            await _until_none(channel)

    asyncio.run(reach())


def test_calls_for_an_avatar_go_where_it_is_loaded(cluster):
    async def ask():
        wanted = (*METADATA, ("multiplexed_model_id", "ben"))
        async with cluster.channel() as channel:
            stub = viseme_pb2_grpc.VisemeStub(channel)

            async def loaded() -> list[bool]:
                """Say whether "ben" is there, of the replicas that ten calls reach."""
                answers = [
                    await stub.ListAvatars(pb.ListAvatarsRequest(), metadata=METADATA)
                    for _ in range(20)
                ]
                return [a.loaded for one in answers for a in one.avatars if a.name == "ben"]

            async def asked() -> list[bool]:
                answers = [
                    await stub.ListAvatars(pb.ListAvatarsRequest(), metadata=wanted)
                    for _ in range(20)
                ]
                return [a.loaded for one in answers for a in one.avatars if a.name == "ben"]

            assert not any(await loaded())
            await stub.ListAvatars(pb.ListAvatarsRequest(), metadata=wanted)
            async with asyncio.timeout(SECONDS):  # until the proxy knows
                while sum(map(bool, await loaded())) not in range(1, 20):
                    pass
                await asyncio.sleep(3)
            assert all(await asked())
            assert not all(await loaded())  # one replica has it, and one does not

    asyncio.run(ask())


def test_who_reads_slowly_makes_no_frames_wait(cluster):
    """Between replica and client there are few messages, so memory does not grow."""

    async def dawdle():
        async with cluster.channel() as channel:
            stub = viseme_pb2_grpc.VisemeStub(channel)
            call = stub.Live(metadata=METADATA)
            await call.write(
                pb.LiveRequest(
                    open=pb.OpenSession(
                        avatar="anna",
                        clock=pb.CLOCK_TAKEN,
                        picture=pb.PICTURE_RGB,
                        sample_rate=8000,
                    )
                )
            )
            for _ in range(10):
                await call.write(pb.LiveRequest(pcm=bytes(2 * 8000 * 59)))
            made = -1.0
            async with asyncio.timeout(SECONDS):
                while (now := await _frames(cluster)) != made or now == 0:
                    made = now
                    await asyncio.sleep(1)
            call.cancel()
            await _until_none(channel)
        assert made < 1000  # of 1,180

    asyncio.run(dawdle())


async def _frames(cluster) -> float:
    """Return the live frames of the replica that has made most."""
    most = 0.0
    async with httpx.AsyncClient() as http:
        for _ in range(10):
            text = (await http.get(f"{cluster.url}/metrics", headers=HEADERS)).text
            for line in text.splitlines():
                if line.startswith('viseme_frames_total{avatar="anna",kind="live"}'):
                    most = max(most, float(line.split()[-1]))
    return most


def test_an_update_refuses_nobody(cluster):
    async def update():
        old = cluster.replicas()
        async with sessions(cluster, 4) as opened, cluster.channel() as channel:
            cluster.process.send_signal(signal.SIGHUP)
            served = 0
            async with asyncio.timeout(3 * SECONDS):
                while cluster.replicas() & old:
                    session = Session(channel, clock=pb.CLOCK_TAKEN)
                    await session.write(pcm=bytes(2 * 8000))
                    await session.call.done_writing()
                    await session.task
                    assert session.status == (grpc.StatusCode.OK, "")
                    served += 1
            assert served > 5 and len(cluster.replicas()) == 2
            for session in opened:  # they went on for `drain_seconds`
                await asyncio.wait_for(session.task, SECONDS)
                assert session.status == (grpc.StatusCode.UNAVAILABLE, "the server is ending")

    asyncio.run(update())


def test_an_update_that_cannot_be_changes_nothing(cluster):
    """The next test shows that the replicas are still those that are wanted: one that is lost has a
    successor."""
    folder, there = cluster.log.parent, cluster.replicas()
    path = folder / "config.yaml"
    good = path.read_text()
    other, broken = json.loads(good), json.loads(good)
    other["server"]["http_port"] -= 1
    write_avatar(folder / "broken")
    (folder / "broken" / "boxes.json").write_text("[")
    broken["models"]["anna"]["avatar"] = "broken"
    try:
        for text, line in (
            ("{nonsense: 1}", "not updated: .*nonsense is not known"),
            (json.dumps(other), f"expected {cluster.http_port}, as long as this command runs"),
            (
                json.dumps(broken),
                "not updated: the new replicas do not start, and the old ones go on: "
                "model anna cannot be loaded: .*boxes.json cannot be read",
            ),
        ):
            path.write_text(text)
            cluster.process.send_signal(signal.SIGHUP)
            until(lambda line=line: re.search(line, cluster.log.read_text()), 2 * SECONDS)
            assert there <= cluster.replicas()  # and of the last one, those that do not start
    finally:
        path.write_text(good)
    until(lambda: cluster.replicas() == there)


async def _closed(socket) -> int | None:
    """Return the code with which a socket was closed; None if messages still come."""
    try:
        async with asyncio.timeout(5):
            while True:
                await socket.recv()
    except TimeoutError:
        return None
    except websockets.ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else 1006


def test_a_lost_replica_takes_no_session_but_its_own(cluster):
    async def lose():
        address = f"ws://127.0.0.1:{cluster.http_port}/v1/live?avatar=anna"
        async with sessions(cluster, 8) as opened, cluster.channel() as channel:
            sockets = [
                await websockets.connect(address, additional_headers=HEADERS) for _ in range(2)
            ]
            for socket in sockets:
                await socket.send(json.dumps({"type": "open"}))
            victim = min(cluster.replicas())
            os.kill(victim, signal.SIGKILL)
            async with asyncio.timeout(SECONDS):
                while sum(session.task.done() for session in opened) < 4:
                    await asyncio.sleep(0.05)
            lost = [session for session in opened if session.task.done()]
            rest = [session for session in opened if not session.task.done()]
            assert len(lost) == len(rest) == 4
            for session in lost:
                code, line = session.status
                assert code == grpc.StatusCode.UNAVAILABLE
                assert "open another session" in line
            new = Session(channel)
            await asyncio.wait_for(new.began.wait(), SECONDS)
            assert new.opened is not None and new.status is None
            last = [session.numbers[-1] if session.numbers else 0 for session in rest]
            async with asyncio.timeout(SECONDS):
                while any(
                    session.numbers[-1] < n + 4 for session, n in zip(rest, last, strict=True)
                ):
                    await asyncio.sleep(0.1)
            for session in rest:
                assert session.numbers == list(range(len(session.numbers)))
            await new.end()
            codes = [await _closed(socket) for socket in sockets]
            assert sorted(codes, key=str) == [1006, None]  # one on each replica
            for socket in sockets:
                await socket.close()
        until(lambda: len(cluster.replicas()) == 2)

    asyncio.run(lose())
