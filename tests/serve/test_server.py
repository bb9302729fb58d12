"""The server over real sockets: health, reflection, tokens, TLS, limits, its start and its end."""

import asyncio
import gc
import re
import socket
import ssl
import weakref
from contextlib import suppress

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine.errors import InputError
from examples.client import main as client
from serve import http
from serve.config import Config
from serve.rpc.protos import monolithic_pb2 as go
from serve.rpc.protos import monolithic_pb2_grpc, viseme_pb2_grpc
from serve.rpc.protos import viseme_pb2 as pb
from tests.conftest import ROOT
from tests.serve.stage import SECONDS, TOKEN, Fakes, config, serving, status_of, until

Code = grpc.StatusCode
CASES = ROOT / "tests" / "cases"
TLS = {"certificate": CASES / "localhost.pem", "key": CASES / "localhost.key"}
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def bearer(token: str) -> tuple:
    return (("authorization", f"Bearer {token}"),)


async def health_of(channel, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def ready(running) -> bool:
    async with httpx.AsyncClient() as web:
        return (await web.get(f"{running.url}/readyz")).status_code == 200


# --- services ------------------------------------------------------------------------------------


def test_all_kinds_of_calls_pass_the_interceptors():
    async def main():
        async with serving() as running, running.channel() as channel:
            stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
            assert (await stub.Health(go.HealthRequest())).max_models == 7
            viseme = viseme_pb2_grpc.VisemeStub(channel)
            parts = [p.frames.first async for p in viseme.Render(pb.RenderRequest())]
            assert parts == [0, 1, 2]
            live = viseme.Live()
            for sound in (b"ab", b"cd"):
                await live.write(pb.LiveRequest(pcm=sound))
                assert (await live.read()).piece.sound == sound
            await live.done_writing()
            assert await live.read() is grpc.aio.EOF and await live.code() == Code.OK

    asyncio.run(main())


def test_reflection_describes_every_service():
    async def main():
        async with serving() as running, running.channel() as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            listed = [
                service.name
                async for answer in stub.ServerReflectionInfo(
                    iter([reflection_pb2.ServerReflectionRequest(list_services="")])
                )
                for service in answer.list_services_response.service
            ]
            assert set(listed) == {
                "monolithic.MonolithicService",
                "viseme.v1.Viseme",
                "grpc.health.v1.Health",
                "grpc.reflection.v1alpha.ServerReflection",
            }
            for name in listed:
                request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
                async for answer in stub.ServerReflectionInfo(iter([request])):
                    assert answer.file_descriptor_response.file_descriptor_proto

    asyncio.run(main())


def test_health_follows_the_preload():
    async def main():
        fakes = Fakes()
        fakes.avatars.go.clear()
        async with serving(fakes=fakes) as running, running.channel() as channel:
            names = ("", "monolithic.MonolithicService", "viseme.v1.Viseme")
            for name in names:
                assert await health_of(channel, name) == NOT_SERVING
            assert not await ready(running)
            fakes.avatars.go.set()
            await until(lambda: ready(running))
            for name in names:
                assert await health_of(channel, name) == SERVING
            unknown = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="x")
            )
            assert (await status_of(unknown))[0] == Code.NOT_FOUND

    asyncio.run(main())


def test_one_avatar_that_cannot_be_loaded_does_not_keep_the_others(caplog):
    models = {name: {"avatar": "/", "preload": True} for name in ("anna", "berta")}

    async def main():
        fakes = Fakes({"anna": InputError("no boxes")})
        async with serving(config(models=models), fakes) as running:
            await until(lambda: ready(running))

    asyncio.run(main())
    assert "model anna cannot be loaded: no boxes" in caplog.text


def test_a_server_without_any_avatar_ends():
    async def main():
        fakes = Fakes({"anna": InputError("no boxes")})
        async with serving(fakes=fakes) as running:
            with pytest.raises(InputError, match="model anna cannot be loaded: no boxes"):
                await running.task

    asyncio.run(main())


# --- who may call --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        (bearer(TOKEN), Code.OK),
        (bearer("another-token-of-16"), Code.OK),
        ((("authorization", f"bearer  {TOKEN}"),), Code.OK),
        (None, Code.UNAUTHENTICATED),
        (bearer(""), Code.UNAUTHENTICATED),
        (bearer(TOKEN[:-1]), Code.UNAUTHENTICATED),
        (bearer(TOKEN + "x"), Code.UNAUTHENTICATED),
        (bearer(TOKEN.upper()), Code.UNAUTHENTICATED),
        ((("authorization", TOKEN),), Code.UNAUTHENTICATED),
        ((("authorization", f"Basic {TOKEN}"),), Code.UNAUTHENTICATED),
        ((*bearer(TOKEN), *bearer("x")), Code.UNAUTHENTICATED),
        ((("x-token", f"Bearer {TOKEN}"),), Code.UNAUTHENTICATED),
    ],
)
def test_tokens(metadata, code):
    """Each kind of call; health needs none."""

    async def main():
        async with (
            serving(config(tokens=(TOKEN, "another-token-of-16"))) as running,
            running.channel() as channel,
        ):
            viseme = viseme_pb2_grpc.VisemeStub(channel)
            reflect = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            calls = [
                lambda: viseme.ListAvatars(pb.ListAvatarsRequest(), metadata=metadata),
                lambda: viseme.Render(pb.RenderRequest(), metadata=metadata),
                lambda: viseme.Live(iter([pb.LiveRequest(pcm=b"a")]), metadata=metadata),
                lambda: reflect(iter([question]), metadata=metadata),
            ]
            for call in calls:
                # grpc.aio's client says this of a call that the server ends while it writes
                while "Internal error from Core" in (status := await status_of(call())):
                    pass
                found, details = status
                assert found == code and TOKEN not in details
                assert code == Code.OK or "token" in details
            await until(lambda: ready(running))
            assert await health_of(channel) == SERVING
            unknown = channel.unary_unary("/a.B/C")(b"", metadata=metadata)
            expected = Code.UNIMPLEMENTED if code == Code.OK else code
            assert (await status_of(unknown))[0] == expected

    asyncio.run(main())


def test_without_a_token_no_message_is_read():
    """Even one over the limit is answered with the status of the token."""

    async def main():
        async with (
            serving(config(tokens=(TOKEN,), max_message_size_mb=1)) as running,
            running.channel() as channel,
        ):
            stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
            big = go.CompositeBatchRequest(raw_audio=bytes(3 << 20))
            assert (await status_of(stub.InferBatchComposite(big)))[0] == Code.UNAUTHENTICATED
            found = await status_of(stub.InferBatchComposite(big, metadata=bearer(TOKEN)))
            assert found[0] == Code.RESOURCE_EXHAUSTED

    asyncio.run(main())


def test_tls():
    async def main():
        root = TLS["certificate"].read_bytes()
        async with serving(config(tls=TLS)) as running:
            credentials = grpc.ssl_channel_credentials(root)
            async with grpc.aio.secure_channel(
                f"localhost:{running.server.port}", credentials
            ) as channel:
                stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
                assert (await stub.Health(go.HealthRequest())).healthy
            async with running.channel() as channel:  # in clear text
                stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
                assert (await status_of(stub.Health(go.HealthRequest())))[0] == Code.UNAVAILABLE
            port = running.server.http_port
            context = ssl.create_default_context(cadata=root.decode())
            async with httpx.AsyncClient(verify=context) as web:
                answer = await web.get(f"https://127.0.0.1:{port}/healthz")
                assert answer.text == "ok\n"
            async with httpx.AsyncClient() as web:
                with pytest.raises(httpx.HTTPError):
                    await web.get(f"http://127.0.0.1:{port}/healthz")

    asyncio.run(main())


def test_the_python_of_the_page_for_tls_and_tokens():
    """That of docs/clients.md."""
    page = (ROOT / "docs" / "clients.md").read_text()
    first, _, last = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    names: dict = {}
    imports = "\n".join(line for line in first.splitlines() if line.startswith(("import", "from")))
    exec(compile(imports + "\n" + last, "docs/clients.md", "exec"), names)

    def frames(address: str, token: str) -> list[int]:
        with names["connect"](address, TLS["certificate"]) as channel:
            return [p.frames.first for p in names["render"](channel, pb.RenderRequest(), token)]

    async def main():
        async with serving(config(tls=TLS, tokens=(TOKEN,))) as running:
            address = f"localhost:{running.server.port}"
            assert await asyncio.to_thread(frames, address, TOKEN) == [0, 1, 2]
            with pytest.raises(grpc.RpcError):
                await asyncio.to_thread(frames, address, f"{TOKEN}x")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--tls", "--ca", str(TLS["certificate"]), "--token", TOKEN], 0, ""),
        (["--ca", str(TLS["certificate"]), "--token", TOKEN], 0, ""),
        (["--ca", str(TLS["certificate"])], 2, "error: UNAUTHENTICATED: "),
        (["--tls", "--token", TOKEN], 2, "error: UNAVAILABLE: "),  # an unknown authority
        (["--token", TOKEN], 2, "error: UNAVAILABLE: "),  # in clear text
        (["--ca", "nowhere.pem"], 2, "error: [Errno 2] No such file or directory: 'nowhere.pem'"),
    ],
)
def test_the_example_client_with_tls(tmp_path, capsys, options, code, line):
    speech, output = tmp_path / "speech.wav", tmp_path / "o.mp4"
    speech.write_bytes(b"speech")

    async def main():
        async with serving(config(tls=TLS, tokens=(TOKEN,))) as running:
            given = [speech, "-o", output, "--render", "--no-progress"]
            given += ["--address", f"localhost:{running.server.port}", *options]
            return await asyncio.to_thread(client, [str(option) for option in given])

    assert asyncio.run(main()) == code
    assert capsys.readouterr().err.startswith(line) and output.exists() == (code == 0)
    assert len(list(tmp_path.iterdir())) == 1 + output.exists()


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "received"), [(1 << 20, 0), (0, 1 << 20)])
def test_messages_over_the_limit(sent, received):
    """In both directions; some bytes less are allowed."""

    async def main():
        async with serving(config(max_message_size_mb=1)) as running, running.channel() as channel:
            stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
            for less, expected in ((100, Code.OK), (0, Code.RESOURCE_EXHAUSTED)):
                request = go.CompositeBatchRequest(
                    raw_audio=bytes(max(sent - less, 0)), start_frame_idx=max(received - less, 0)
                )
                assert (await status_of(stub.InferBatchComposite(request)))[0] == expected

    asyncio.run(main())


def test_calls_at_a_time():
    """As many as the limits allow, and the hundred for lists; then RESOURCE_EXHAUSTED."""

    async def main():
        given = config()
        limits = given.limits.model_copy(
            update={"max_sessions": 1, "max_renders": 0, "max_requests": 1}
        )
        async with (
            serving(given.model_copy(update={"limits": limits})) as running,
            running.channel() as channel,
        ):
            viseme = viseme_pb2_grpc.VisemeStub(channel)
            calls = [viseme.Live() for _ in range(102)]
            for call in calls:
                await call.write(pb.LiveRequest(pcm=b"a"))
            for call in calls:
                assert (await call.read()).piece.sound == b"a"
            one_more = viseme.ListAvatars(pb.ListAvatarsRequest())
            assert (await status_of(one_more))[0] == Code.RESOURCE_EXHAUSTED
            for call in calls:
                call.cancel()

    asyncio.run(main())


def test_connections_that_ask_for_nothing_do_not_take_the_pages_places(monkeypatch):
    """Neither silent ones, nor those of half a request."""
    monkeypatch.setattr(http, "SILENT_SECONDS", 0.2)

    async def main():
        async with serving() as running:
            pairs = []
            for number in range(http.CONNECTIONS + 1):
                pairs.append(await asyncio.open_connection("127.0.0.1", running.server.http_port))
                if number % 2:
                    pairs[-1][1].write(b"GET /healthz HTTP/1.1\r\nHost: a")
            await until(lambda: ready(running))
            for reader, writer in pairs:
                with suppress(ConnectionResetError):
                    async with asyncio.timeout(SECONDS):
                        assert await reader.read() == b""
                writer.close()

    asyncio.run(main())


def test_a_flood_of_connections_keeps_nobody_out(monkeypatch):
    """Idle ones give way to new ones, whose requests are answered at once."""
    monkeypatch.setattr(http, "SILENT_SECONDS", 1000.0)
    monkeypatch.setattr(http, "UNREAD_SECONDS", 1000.0)
    limits = {"limits": {"max_sessions": 0}}

    async def main():
        async with serving(config().model_validate(config().model_dump() | limits)) as running:
            port, pairs = running.server.http_port, []
            for number in range(2 * http.CONNECTIONS):
                pairs.append(await asyncio.open_connection("127.0.0.1", port))
                if number % 2:
                    pairs[-1][1].write(b"GET /healthz HTTP/1.1\r\nHost: a")
            await until(lambda: ready(running))
            async with httpx.AsyncClient(trust_env=False) as client:
                answers = [await client.get(f"{running.url}/healthz") for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200] * 3
            assert len(running.server._http.server_state.connections) <= http.CONNECTIONS
            for _, writer in pairs:
                writer.transport.abort()

    asyncio.run(main())


def test_who_reads_no_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr(http, "UNREAD_SECONDS", 0.3)

    async def main():
        async with serving() as running:
            _, writer = await asyncio.open_connection("127.0.0.1", running.server.http_port)
            writer.transport.pause_reading()
            ask = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
            async with asyncio.timeout(SECONDS):
                while not writer.transport.is_closing():
                    if writer.transport.get_write_buffer_size() < 1 << 20:
                        writer.write(ask)
                    await asyncio.sleep(0.02)
            connections = running.server._http.server_state.connections
            await until(lambda: not connections)
            assert writer.transport.is_closing() and not connections
            async with httpx.AsyncClient(trust_env=False) as client:  # who reads is served
                assert (await client.get(f"{running.url}/healthz")).status_code == 200
            writer.transport.abort()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("server", "web", "refused"),
    [
        ({}, {}, True),
        ({"host": "localhost"}, {}, True),
        ({}, {"origins": ["https://talk.example.org"]}, True),
        ({}, {"origins": ["*"]}, False),
        ({"tokens": [TOKEN]}, {}, False),
        ({"host": "0.0.0.0"}, {}, False),
    ],
)
def test_foreign_names_of_this_machine(server, web, refused):
    """A page that makes its name stand for 127.0.0.1 cannot use a server without tokens."""
    given = Config.model_validate(config(**server).model_dump() | {"web": web})
    own = ["localhost", "LOCALHOST:1", "127.0.0.1:8010", "[::1]", "[::1]:8010"]
    own += ["talk.example.org"] if web else []
    foreign = ["evil.example", "evil.example:8010", "localhost.evil.example", "127.0.0.1.nip.io"]
    foreign += ["", "[::2]", "x@localhost", "169.254.169.254", "[", "localhost\\evil.example"]

    async def main():
        async with serving(given) as running, httpx.AsyncClient(trust_env=False) as client:
            for host in [*own, *foreign]:
                for path in ("/metrics", "/nothing"):
                    headers = {"Host": host}
                    answer = await client.get(f"{running.url}{path}", headers=headers)
                    assert (answer.status_code == 421) == (refused and host in foreign), host
                if answer.status_code == 421:
                    assert "expected localhost or 127.0.0.1" in answer.text

    asyncio.run(main())


def test_an_endless_header_of_a_page(monkeypatch):
    """It is refused before it takes memory, whatever parsers are installed; the next client is
    served."""
    monkeypatch.setattr("uvicorn.protocols.http.auto.AutoHTTPProtocol", None)

    async def main():
        async with serving() as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.server.http_port)
            writer.write(b"GET /healthz HTTP/1.1\r\n")
            sent = 0
            with suppress(ConnectionError):
                while not reader.at_eof() and sent < 64 << 20:
                    writer.write(b"a: " + bytes([98]) * 60_000 + b"\r\n")
                    await writer.drain()
                    sent += 60_000
                    await asyncio.sleep(0)
            assert sent < 64 << 20
            writer.close()
            await until(lambda: ready(running))

    asyncio.run(main())


def test_a_client_may_ping_every_5_seconds_but_not_all_the_time():
    """HTTP/2 by hand: the server answers a ping, and tells who pings without a pause to go away."""

    async def main():
        async with serving() as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
            ping = (8).to_bytes(3, "big") + b"\x06\x00" + bytes(4) + b"12345678"
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04\x00" + bytes(4))
            writer.write(ping)
            kinds, last = [], b""
            while 7 not in kinds:  # GOAWAY
                head = await reader.readexactly(9)
                last = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kinds.append(head[3])
                if head[3] == 6 and head[4] & 1:
                    writer.write(ping)
            assert kinds.count(6) >= 1 and b"too_many_pings" in last
            writer.close()

    asyncio.run(main())


def test_a_call_whose_path_is_not_text_does_not_end_the_server(caplog):
    """Not even from a client without a token."""

    async def main():
        async with serving(config(tokens=(TOKEN,))) as running:
            await until(lambda: ready(running))
            port = running.server.port
            for path in (b"/\xf4/Health", b"\xff"):
                async with running.channel() as channel:
                    call = channel.unary_unary(path)(b"", timeout=SECONDS)
                    assert (await status_of(call))[0] != Code.OK

                async def answers():
                    async with running.channel() as channel:
                        stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
                        call = stub.Health(go.HealthRequest(), metadata=bearer(TOKEN), timeout=5)
                        return (await status_of(call))[0] == Code.OK

                await until(answers)
            async with running.channel() as channel:
                assert await health_of(channel) == SERVING
                anonymous = monolithic_pb2_grpc.MonolithicServiceStub(channel).Health(
                    go.HealthRequest()
                )
                assert (await status_of(anonymous))[0] == Code.UNAUTHENTICATED
            assert running.server.port == port and not running.task.done()

    asyncio.run(main())
    assert caplog.text.count("gRPC is started anew") == 2  # else the calls were harmless


# --- the end -------------------------------------------------------------------------------------


def test_a_call_that_runs_is_waited_for():
    async def main():
        async with serving(config(drain_seconds=600)) as running, running.channel() as channel:
            await until(lambda: ready(running))
            viseme = viseme_pb2_grpc.VisemeStub(channel)
            live = viseme.Live()
            await live.write(pb.LiveRequest(pcm=b"a"))
            await live.read()
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == SERVING
            running.stop.set()
            assert (await watch.read()).status == NOT_SERVING
            for call in (
                viseme.ListAvatars(pb.ListAvatarsRequest()),
                viseme.Render(pb.RenderRequest()),
                viseme.Live(iter([pb.LiveRequest()])),
            ):
                assert await status_of(call) == (Code.UNAVAILABLE, "the server is ending")
            assert await health_of(channel, "viseme.v1.Viseme") == NOT_SERVING
            assert not await ready(running)
            await live.write(pb.LiveRequest(pcm=b"b"))  # it goes on
            assert (await live.read()).piece.sound == b"b"
            assert not running.task.done()
            await live.done_writing()
            assert await live.read() is grpc.aio.EOF and await live.code() == Code.OK
            await running.task  # though somebody watches its health

    asyncio.run(main())


@pytest.mark.parametrize("hurry", [False, True])
def test_a_call_that_does_not_end_is_cancelled(hurry):
    async def main():
        seconds = 600 if hurry else 0.1
        async with serving(config(drain_seconds=seconds)) as running, running.channel() as channel:
            viseme = viseme_pb2_grpc.VisemeStub(channel)
            call = viseme.Render(pb.RenderRequest(avatar="endless"))
            for _ in range(3):
                await call.read()
            running.stop.set()
            if hurry:
                await until(lambda: running.server.unready() == "the server is ending")
                assert not running.task.done()
                running.hurry.set()
            await running.task
            assert running.fakes.viseme.cancelled == 1
            assert await call.code() in (Code.UNAVAILABLE, Code.CANCELLED)

    asyncio.run(main())


def test_an_end_while_avatars_are_loaded():
    async def main():
        fakes = Fakes()
        fakes.avatars.go.clear()
        async with serving(fakes=fakes) as running:
            assert running.server.unready() == "avatars are being loaded"
            running.stop.set()
            await running.task
            assert running.task.done() and not fakes.avatars.go.is_set()
            assert running.server.unready() == "the server is ending"

    asyncio.run(main())


def test_ports_are_free_after_the_end():
    async def main():
        ports, used = [], []
        for _ in range(2):
            given = config(**dict(zip(("port", "http_port"), ports, strict=False)))
            async with serving(given) as running:
                ports = [running.server.port, running.server.http_port]
                used.append(ports)
        assert used[0] == used[1] and min(used[0]) > 0

    asyncio.run(main())


def test_a_server_that_ended_is_collected():
    async def main():
        async with serving() as running, running.channel() as channel:
            stub = monolithic_pb2_grpc.MonolithicServiceStub(channel)
            await stub.Health(go.HealthRequest())
            return weakref.ref(running.fakes.viseme)

    viseme = asyncio.run(main())
    gc.collect()
    assert viseme() is None


# --- it cannot start -----------------------------------------------------------------------------


def not_started(given) -> str:
    async def main():
        fakes = Fakes()
        async with asyncio.timeout(30):
            with pytest.raises(InputError) as error:
                await fakes.server(given).start()
        return str(error.value)

    line = asyncio.run(main())
    assert "\n" not in line
    return line


@pytest.mark.parametrize("which", ["port", "http_port"])
def test_a_busy_port_is_one_line(which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expected = f"127.0.0.1 port {port} cannot be listened at: Address already in use"
        assert not_started(config(**{which: port})).startswith(expected)


def test_another_server_on_the_port_is_one_line():
    async def main():
        async with serving() as running:
            for which in ("port", "http_port"):
                taken = getattr(running.server, which)
                with pytest.raises(InputError, match=f"port {taken} cannot be listened at: Addr"):
                    await Fakes().server(config(**{which: taken})).start()

    asyncio.run(main())


@pytest.mark.parametrize("host", ["192.0.2.1", "a\0b", "é" * 80])
def test_a_wrong_host_is_one_line(host):
    assert "cannot be listened at" in not_started(config(host=host))


@pytest.mark.parametrize("what", ["swapped", "empty", "another's key", "locked", "folder"])
def test_a_bad_certificate_is_one_line(tmp_path, what):
    tls = dict(TLS)
    if what == "swapped":
        tls = {"certificate": TLS["key"], "key": TLS["certificate"]}
    elif what == "folder":
        tls["certificate"] = tmp_path
    elif what == "empty":
        tls["key"] = tmp_path / "key"
        tls["key"].touch()
    else:
        tls["key"] = CASES / {"another's key": "other.key", "locked": "locked.key"}[what]
    line = not_started(config(tls=tls))
    assert line.startswith("TLS: ") and "cannot be used: " in line and "PRIVATE" not in line
