"""Clients that are broken or mean: answered, bounded, logged once, and forgotten."""

import asyncio
import json
import logging
import os
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import websockets
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from serve.web import bodies, protocol
from serve.web import socket as socket_module
from tests.serve.web.site import SECONDS, TOKEN, Client, client, http, run, serving

pytestmark = pytest.mark.usefixtures("left_soon")

KEYS = ["type", "avatar", "token", "sample_rate", "channels", "clock", "picture", "prebuffer", "text", "sdp", "sessionid", "interrupt", "audiotype", "x"]  # fmt: skip
WORDS = ["open", "flush", "interrupt", "say", "echo", "chat", "offer", "start_record", "end_record", "tiny", "taken", "h264", "jpeg", "ID", ""]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(WORDS),
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6), max_leaves=12)  # fmt: skip
OBJECTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8).map(json.dumps)
TEXTS = st.one_of(OBJECTS, JSON.map(json.dumps), st.text(max_size=200))
LINES = ["v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", "m=video 9 UDP/TLS/RTP/SAVPF 96", "a=rtpmap:96 H264/90000", "a=mid:0", "a=ice-ufrag:x", "a=ice-pwd:y", "a=recvonly", "a=fingerprint:sha-256 00", "a=setup:actpass", "c=IN IP4 0.0.0.0", "a=group:BUNDLE 0", "m=audio 9 UDP/TLS/RTP/SAVPF 111", "a=candidate:1 1 udp 1 127.0.0.1 9 typ host"]  # fmt: skip
SDPS = st.lists(st.sampled_from(LINES) | st.text(max_size=30), max_size=25).map("\r\n".join)


def drawn(strategy, count: int) -> list:
    """Return that many values, the same ones each time."""
    found = []

    @settings(
        derandomize=True, database=None, max_examples=count, deadline=None, phases=[Phase.generate]
    )
    @given(strategy)
    def collect(value):
        found.append(value)

    collect()
    return found


def resident() -> int:
    """Return the bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def faults(caplog) -> list:
    """Return what was logged of our own faults, and anything with a traceback."""
    return [r for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]


def test_any_message_over_a_socket(live, caplog):
    """As the first one, and after a right one: the connection ends with a line, or goes on."""
    texts, data = drawn(TEXTS, 200), drawn(st.binary(max_size=100), 50)

    async def first(site, message):
        async with site.connect() as socket:
            with suppress(websockets.ConnectionClosed):
                await socket.send(message)
            told = await Client(socket).next()
            if told["type"] == "opened":
                return
            assert told["type"] == "error" and told["message"], message
            code, _ = await Client(socket).refusal()
            assert code in (1008, 1009), message

    async def second(site, messages):
        while messages:
            async with client(site, sample_rate=16000, clock="taken") as talk:
                with suppress(websockets.ConnectionClosed):
                    while messages and not talk.socket.close_code:
                        await talk.socket.send(messages.pop())
                        await asyncio.sleep(0)

    async def main():
        async with serving(live) as site:
            for message in texts:
                await first(site, message)
            await second(site, [*texts[:100], *data])
            await site.until_free()
            async with client(site, sample_rate=16000) as talk:  # it is as before
                await talk.push(np.full(8000, 5000, np.int16))
                await talk.tell(type="flush")
                assert (await talk.all())[-1]["type"] == "end"

    run(main())
    assert not faults(caplog)


def test_any_body(live, caplog):
    texts, sdps = drawn(TEXTS, 240), drawn(SDPS, 120)
    paths = ["/human", "/is_speaking", "/interrupt_talk", "/record", "/set_audiotype", "/offer"]

    async def main():
        async with serving(live) as site, http(site) as asked, client(site) as talk:
            id = str(talk.opened["session"])
            for number, text in enumerate(texts):
                body = text.replace('"ID"', id).encode("utf-8", "surrogatepass")
                answer = await asked.post(paths[number % len(paths)], content=body)
                assert answer.status_code == 200 and answer.json()["code"] in (0, -1)
            for number, text in enumerate(sdps):
                if number % 2:
                    answer = await asked.post("/offer", json={"sdp": text, "type": "offer"})
                    assert answer.status_code == 200 and answer.json()["code"] == -1
                else:
                    kind = {"Content-Type": "application/sdp"}
                    answer = await asked.post(f"/whep/{id}", content=text.encode(), headers=kind)
                    assert answer.status_code in (400, 406, 409, 413)
            await talk.push(np.full(8000, 5000, np.int16))
            await talk.tell(type="flush")
            await talk.event("end")

    run(main())
    assert not faults(caplog)


def test_a_thousand_opens_from_one_address(live, caplog, monkeypatch):
    """A few wait; the others are refused at once. One line is logged, and memory is as before."""
    monkeypatch.setattr(socket_module, "OPEN_SECONDS", 1000.0)
    most = socket_module.MOST_OF_ADDRESS

    async def one(site):
        """Return a socket that waits, or the status of the refusal."""
        try:
            return await site.connect()
        except websockets.InvalidStatus as error:
            assert error.response.headers["Retry-After"]
            return error.response.status_code

    async def main():
        async with serving(live) as site:
            sizes = []
            for _ in range(5):
                found = await asyncio.gather(*(one(site) for _ in range(200)))
                waiting = [socket for socket in found if not isinstance(socket, int)]
                assert found.count(503) == 200 - most and len(waiting) == most
                for socket in waiting:
                    await socket.close()
                await site.until_unconnected()
                sizes.append((resident(), descriptors()))
            async with client(site):  # there is a place for who is right
                pass
            return sizes

    with caplog.at_level(logging.INFO):
        sizes = run(main())
    assert sizes[-1][0] - sizes[1][0] < 10 << 20 and sizes[-1][1] <= sizes[0][1] + 5
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("serve")]
    assert 1 <= len(lines) <= 5 and all("WebSockets are refused" in line for line in lines)


def test_huge_bodies_take_no_memory(live):
    """Of those that say how large they are, and of those that do not."""

    async def endless(count: int):
        for _ in range(count):
            yield bytes(1 << 20)

    async def main():
        async with serving(live) as site, http(site) as asked:
            for path, kind in [
                ("/human", "application/json"),
                ("/offer", "application/json"),
                ("/humanaudio", "multipart/form-data; boundary=x"),
            ]:
                before = resident()
                answer = await asked.post(path, content=endless(50), headers={"Content-Type": kind})
                assert answer.json()["msg"].startswith(("the body is larger", "the form cannot"))
                assert resident() - before < 40 << 20
            answer = await asked.post(
                "/whep/1", content=endless(3), headers={"Content-Type": "application/sdp"}
            )
            assert answer.status_code in (404, 413)
            head = b"POST /human HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(head)
            writer.write_eof()
            async with asyncio.timeout(SECONDS):
                await reader.read()
            writer.close()

    run(main())


def test_uploads_are_counted(live, monkeypatch):
    """Those beyond a few are refused, and the places come back."""
    monkeypatch.setattr(bodies, "MAX_UPLOADS", 2)
    monkeypatch.setattr(bodies, "PART_SECONDS", 0.5)
    head = b"POST /humanaudio HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 500\r\n\r\n--x\r\n"

    async def main():
        async with serving(live) as site:

            async def slow():
                reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
                writer.write(head)
                answer = await reader.readuntil(b"}")
                writer.transport.abort()
                return answer

            for _ in range(2):
                answers = await asyncio.gather(*(slow() for _ in range(4)))
                assert sum(b"came too slowly" in answer for answer in answers) == 2
                assert (
                    sum(b"2 files are being sent; expected fewer" in answer for answer in answers)
                    == 2
                )

    run(main())


# --- the protocol of WebSockets ------------------------------------------------------------------


async def upgraded(site, **options):
    """Open a socket by hand; return its streams."""
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, **options)
    writer.write(
        b"GET /v1/live HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def frame(opcode: int, data: bytes, *, fin: bool = True) -> bytes:
    """Return a client's frame of fewer than 126 bytes, masked with zeros."""
    return struct.pack("!BB", opcode | (0x80 if fin else 0), 0x80 | len(data)) + bytes(4) + data


@pytest.mark.parametrize("case", ["utf-8", "fragments", "mask", "opcode", "pings"])
def test_who_breaks_the_protocol_is_cut_off(live, caplog, monkeypatch, case):
    """Without a traceback, and before it takes memory."""
    monkeypatch.setattr(protocol, "MAX_UNREAD", 1 << 16)
    data = {
        "utf-8": frame(1, b"\xff\xfe"),
        "fragments": frame(1, b"", fin=False) + frame(0, b"", fin=False) * 5000,
        "mask": b"\x81\x01x",
        "opcode": frame(7, b""),
        "pings": frame(9, bytes(100)) * 1000,
    }[case]

    async def main():
        async with serving(live) as site:
            reader, writer = await upgraded(site, limit=1 << 16)
            if case == "pings":
                writer.transport.pause_reading()  # of the answers
            before = resident()
            async with asyncio.timeout(SECONDS):
                with suppress(ConnectionError):
                    for _ in range(300 if case == "pings" else 1):
                        writer.write(data)
                        await writer.drain()
                    if case != "pings":
                        left = await reader.read()
                        assert left[:1] == b"\x88"  # a close frame
                    else:
                        raise AssertionError("it was not cut off")
            assert resident() - before < 30 << 20
            writer.transport.abort()

    with caplog.at_level(logging.INFO):
        run(main())
    assert not [r for r in caplog.records if r.exc_info or r.levelno >= logging.WARNING]


def test_strangers_send_no_large_messages(live):
    """Those of clients with a session may be larger."""

    async def main():
        async with serving(live, server={"tokens": [TOKEN]}) as site:
            async with site.connect() as socket:
                with suppress(websockets.ConnectionClosed):
                    await socket.send(" " * (protocol.MAX_FIRST + 1))
                assert await Client(socket).refusal() == (1009, "")
            async with client(site, token=TOKEN, sample_rate=16000) as talk:
                await talk.push(np.zeros(4 * protocol.MAX_FIRST // 2, np.int16))
                await talk.tell(type="flush")
                assert await talk.event("speaking")

    run(main())


def test_a_refused_socket_is_no_fault(live, caplog):
    async def main():
        async with serving(live) as site:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await site.connect(origin="https://evil.example").__aenter__()
            assert refused.value.response.status_code == 403

    run(main())
    assert not faults(caplog)


@pytest.mark.parametrize("clock", ["wall", "taken"])
def test_a_socket_that_is_never_read_is_aborted(live, monkeypatch, clock):
    """Closing waits for what was sent; that has an end. A session that waits for room has one."""
    monkeypatch.setattr(protocol, "ABORT_SECONDS", 0.5)
    monkeypatch.setattr("serve.web.outbox.MOST_SECONDS", 1.0)

    async def main():
        async with serving(live) as site:
            before = descriptors()
            async with site.connect(max_queue=1) as socket:
                talk = await Client(socket).open(
                    sample_rate=192000,
                    channels=2,
                    sample_format="f32",
                    picture="jpeg",
                    clock=clock,
                )
                if clock == "taken":
                    await talk.push(np.zeros((2, 192000 * 5), np.float32))
                socket.transport.pause_reading()
                await site.until_free()
                async with asyncio.timeout(SECONDS):
                    while descriptors() > before + 1:  # the client's own
                        await asyncio.sleep(0.05)
                assert not len(site.sessions) and descriptors() <= before + 1
                assert not socket.transport.is_reading()  # it has read nothing meanwhile
                socket.transport.abort()

    run(main())
