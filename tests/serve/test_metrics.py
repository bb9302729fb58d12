"""What is counted, as Prometheus reads it, and what the HTTP pages say."""

import asyncio

import grpc
import httpx
import pytest
from prometheus_client import parser

from serve.metrics import WINDOW, Lateness, Metrics
from serve.rpc.protos import monolithic_pb2 as go
from serve.rpc.protos import monolithic_pb2_grpc, viseme_pb2_grpc
from serve.rpc.protos import viseme_pb2 as pb
from tests.serve.stage import TOKEN, Fakes, config, serving, status_of, until


def samples(text: str) -> dict[tuple, float]:
    """Return each sample by its name and its labels' values, in the order of
    the labels' names."""
    return {
        (s.name, *s.labels.values()): s.value
        for family in parser.text_string_to_metric_families(text)
        for s in family.samples
    }


async def read(running) -> dict[tuple, float]:
    async with httpx.AsyncClient() as web:
        answer = await web.get(f"{running.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


def test_all_metrics_can_be_read():
    """Every family has its name, its type, a help text, and the labels that it should have."""
    metrics = Metrics()
    metrics.frames.labels("anna", "live").inc(3)
    metrics.frames.labels("anna", "batch").inc(4)
    metrics.batch_frames.labels("anna").observe(5)
    metrics.load_seconds.observe(0.3)
    for counter in (metrics.late, metrics.skipped, metrics.underruns):
        counter.labels('an"na\n\\').inc()
    families = {f.name: f for f in parser.text_string_to_metric_families(metrics.text().decode())}
    kinds = {
        "viseme_requests": "counter",
        "viseme_request_seconds": "histogram",
        "viseme_frames": "counter",
        "viseme_late_frames": "counter",
        "viseme_skipped_frames": "counter",
        "viseme_underruns": "counter",
        "viseme_sessions": "gauge",
        "viseme_batch_frames": "histogram",
        "viseme_loaded_avatars": "gauge",
        "viseme_device_bytes": "gauge",
        "viseme_load_seconds": "histogram",
    }
    assert {name: families[name].type for name in kinds} == kinds
    assert all(families[name].documentation for name in kinds)
    found = samples(metrics.text().decode())
    assert found["viseme_frames_total", "anna", "live"] == 3
    assert found["viseme_late_frames_total", 'an"na\n\\'] == 1
    assert found["viseme_batch_frames_bucket", "anna", "8.0"] == 1
    assert found["viseme_batch_frames_bucket", "anna", "4.0"] == 0
    assert metrics.live_frames() == (3, 1)


def test_two_servers_count_apart():
    first, second = Metrics(), Metrics()
    first.late.labels("anna").inc()
    assert second.live_frames() == (0, 0) and first.live_frames() == (0, 1)


def test_every_call_is_counted_with_its_code(caplog):
    async def main():
        async with serving(config(tokens=(TOKEN,))) as running, running.channel() as channel:
            token = (("authorization", f"Bearer {TOKEN}"),)
            old = monolithic_pb2_grpc.MonolithicServiceStub(channel)
            viseme = viseme_pb2_grpc.VisemeStub(channel)
            await old.Health(go.HealthRequest(), metadata=token)
            await old.Health(go.HealthRequest(), metadata=token)
            assert (await status_of(old.Health(go.HealthRequest())))[0].name == "UNAUTHENTICATED"
            assert (await status_of(old.LoadModel(go.LoadModelRequest(), metadata=token))) == (
                grpc.StatusCode.NOT_FOUND,
                "not there",
            )
            failed = await status_of(old.UnloadModel(go.UnloadModelRequest(), metadata=token))
            assert failed[0] == grpc.StatusCode.INTERNAL and "secret" not in failed[1]
            assert [_ async for _ in viseme.Render(pb.RenderRequest(), metadata=token)]
            endless = viseme.Render(pb.RenderRequest(avatar="endless"), metadata=token, timeout=1)
            assert (await status_of(endless))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
            left = viseme.Render(pb.RenderRequest(avatar="endless"), metadata=token)
            await left.read()
            left.cancel()
            live = viseme.Live(metadata=token)
            await live.write(pb.LiveRequest(pcm=b"a"))
            await live.read()
            await live.done_writing()
            assert await live.read() is grpc.aio.EOF
            await until(lambda: running.fakes.viseme.cancelled == 2)
            for n in range(20):  # with a token, and without
                made_up = channel.unary_unary(f"/made.Up/M{n}")
                assert (await status_of(made_up(b"", metadata=token)))[0].name == "UNIMPLEMENTED"
                assert (await status_of(made_up(b"")))[0].name == "UNAUTHENTICATED"
            monolithic, ours = "monolithic.MonolithicService", "viseme.v1.Viseme"

            async def all_counted():
                counted = await read(running)
                return {
                    labels: value
                    for (name, *labels), value in counted.items()
                    for labels in [tuple(labels)]
                    if name == "viseme_requests_total"
                } == {
                    ("OK", "Health", monolithic): 2,
                    ("UNAUTHENTICATED", "Health", monolithic): 1,
                    ("NOT_FOUND", "LoadModel", monolithic): 1,
                    ("INTERNAL", "UnloadModel", monolithic): 1,
                    ("OK", "Render", ours): 1,
                    ("DEADLINE_EXCEEDED", "Render", ours): 1,
                    ("CANCELLED", "Render", ours): 1,
                    ("OK", "Live", ours): 1,
                    ("UNIMPLEMENTED", "unknown", "unknown"): 20,
                    ("UNAUTHENTICATED", "unknown", "unknown"): 20,
                }

            await until(all_counted)
            counted = await read(running)
            assert counted["viseme_request_seconds_count", "Render"] == 3
            assert counted["viseme_request_seconds_sum", "Render"] >= 0.9
            assert not any("made" in part for labels in counted for part in labels)

    asyncio.run(main())
    assert "UnloadModel failed" in caplog.text and "a secret of ours" in caplog.text


def test_gauges_are_set_when_they_are_read():
    async def main():
        fakes = Fakes()
        fakes.avatars.go.clear()
        async with serving(fakes=fakes) as running:
            first = await read(running)
            assert first["viseme_loaded_avatars",] == 0 and first["viseme_sessions", "anna"] == 1
            fakes.avatars.go.set()
            fakes.avatars.bytes, fakes.viseme.open = 5, {"berta": 2}
            second = await read(running)
            assert second["viseme_loaded_avatars",] == 1
            assert second["viseme_device_bytes", "cpu"] == 5
            assert second["viseme_sessions", "anna"] == 0  # a session that ended
            assert second["viseme_sessions", "berta"] == 2

    asyncio.run(main())


def test_pages():
    async def main():
        async with serving() as running, httpx.AsyncClient(base_url=running.url) as web:
            for page in ("healthz", "readyz"):
                await until(lambda page=page: ok(web, page))
                assert (await web.get(f"/{page}")).text == "ok\n"
            assert (await web.head("/healthz")).status_code == 200
            assert (await web.post("/healthz")).status_code == 405
            assert (await web.get("/etc/passwd")).status_code == 404
            assert "server" not in (await web.get("/healthz")).headers
            running.fakes.avatars.failure = RuntimeError("secret")
            for page in ("healthz", "readyz"):
                answer = await web.get(f"/{page}")
                assert answer.status_code == 503 and "secret" not in answer.text

    async def ok(web, page):
        return (await web.get(f"/{page}")).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize("share", [0.0, 0.2, 0.21, 1.0])
def test_lateness(share):
    """The share of the last seconds only; batches and renders are never late."""
    metrics = Metrics()
    lateness = Lateness(metrics)
    assert lateness.on_time
    metrics.frames.labels("anna", "render").inc(10000)
    metrics.frames.labels("anna", "live").inc(60)
    metrics.frames.labels("berta", "live").inc(40)
    metrics.late.labels("berta").inc(round(100 * share))
    for _ in range(WINDOW):
        lateness.sample()
        assert lateness.share == pytest.approx(share)
        assert lateness.on_time == (share <= 0.2)
    lateness.sample()  # what was late is over
    assert lateness.share == 0 and lateness.on_time


def test_late_frames_make_it_unready():
    async def main():
        async with serving() as running, httpx.AsyncClient(base_url=running.url) as web:

            async def page():
                return (await web.get("/readyz")).text

            async def unready():
                running.server.metrics.frames.labels("anna", "live").inc(2)
                running.server.metrics.late.labels("anna").inc()
                return await page() == "50% of the live frames are late\n"

            await until(unready)
            assert (await web.get("/readyz")).status_code == 503

    asyncio.run(main())
