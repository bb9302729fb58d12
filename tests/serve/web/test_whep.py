"""Players over WHEP: real connections of aiortc's client to a whole server."""

import asyncio
import re
import socket

import aioice
import grpc
import numpy as np
import pytest

from serve.refused import Refused
from serve.rpc.protos import viseme_pb2_grpc
from serve.web import peer as peer_module
from serve.web import session as session_module
from serve.web.peer import Peer
from tests.serve.rpc.server import opening, refusal
from tests.serve.web.player import Player
from tests.serve.web.stage import TOKEN, Kept, run, serving, until


def test_picture_and_sound_with_the_session_s_time(live, monkeypatch):
    """The time stamps are the session's counts, from the first packet to the last, and the reports
    of both tracks say the same time."""
    put, given = Peer.put, []

    def noting(self, piece):
        given.append(piece)
        put(self, piece)

    monkeypatch.setattr(Peer, "put", noting)

    async def main():
        async with serving(live) as server:
            session = await server.web.open("tiny", sample_rate=48000)
            player = Player()
            answer = await player.watch(server.http, f"/whep/{session.id}")
            assert answer.status_code == 201
            assert re.fullmatch(rf"/whep/{session.id}/[\w-]+", answer.headers["Location"])
            assert answer.headers["Content-Type"] == "application/sdp"
            assert "VP8" not in answer.text and "candidate" in answer.text
            session.push((8000 * np.sin(np.arange(48000) / 10)).astype(np.int16))
            session.flush()
            await until(lambda: all(len(r) >= 2 for r in player.reports.values()))
            await player.until("video", 60)
            gone = await server.http.delete(player.location)
            assert gone.status_code == 200 and session.peer is None
            again = await server.http.delete(player.location)
            assert again.status_code == 200
            await player.close()
            await session.close()
            return player

    player = run(main())
    units = player.access_units()[:-1]
    assert player.keyframes()[0] == 0
    pieces = [piece for piece in given if piece.picture]
    for (_, data), piece in zip(units, pieces, strict=False):
        assert _units(data) == _units(piece.picture)
    numbers = [piece.number for piece in pieces]
    assert len(pieces) >= len(units) > 50 and len(numbers) == len(set(numbers))
    origin = units[0][0] - pieces[0].time * 90000
    for (timestamp, _), piece in zip(units, pieces, strict=False):
        assert (timestamp - origin - piece.time * 90000) % 2**32 == 0
    stamps = np.array(player.timestamps("audio"))
    assert (np.diff(stamps) % 2**32 == 960).all()
    # the time, in NTP's, of the session's beginning, by the reports of each track
    first = {"video": origin, "audio": stamps[0] + 312 - given[0].time * 48000}
    begins = {
        kind: [
            report.ntp_timestamp / 2**32 - ((report.rtp_timestamp - first[kind]) % 2**32) / rate
            for report in player.reports[kind]
        ]
        for kind, rate in (("video", 90000), ("audio", 48000))
    }
    every = [float(begin) for found in begins.values() for begin in found]
    assert max(every) - min(every) < 0.001
    frames = player.pictures()
    assert len(frames) == len(player.access_units()) and frames[0][1].shape == (96, 80, 3)


def _units(data: bytes) -> tuple[bytes, ...]:
    """Return the NAL units of an access unit, whose start codes may have 3 or 4 bytes."""
    return tuple(part.rstrip(b"\0") for part in data.split(b"\0\0\1") if part.strip(b"\0"))


def test_statuses(live, monkeypatch):
    """What players are told, before and after a session is there."""
    monkeypatch.setattr("aioice.stun.RETRY_MAX", 0)  # there is no STUN server

    async def main():
        config = {"web": {"ice_servers": [{"urls": ["stun:127.0.0.1:9"]}]}}
        async with serving(live, server={"tokens": [TOKEN]}, **config) as server:
            http, sdp = server.http, {"Content-Type": "application/sdp"}
            player, other = Player(), Player("video")
            answer = await player.watch(http, "/whep/17")
            assert answer.status_code == 401 and "Bearer" in answer.headers["WWW-Authenticate"]
            http.headers["Authorization"] = f"Bearer {TOKEN}"
            offer = await other.offer()
            for path, headers, content, status, line in [
                ("/whep/17", sdp, offer, 404, "there is no session '17'"),
                ("/whep/x", sdp, offer, 404, "there is no session 'x'"),
                ("/whep/?avatar=nobody", sdp, offer, 404, "model 'nobody' not configured"),
                ("/whep/", sdp, offer, 400, "expected /whep/?avatar=NAME"),
                ("/whep/?avatar=tiny", {"Content-Type": "text/plain"}, offer, 415, "application/sdp"),
                ("/whep/?avatar=tiny", sdp, "", 400, "no line v=0"),
                ("/whep/?avatar=tiny", sdp, "v=0\r\ns=-\r\n", 400, "0 sections"),
                ("/whep/?avatar=tiny", sdp, "x" * 200_000, 413, "larger"),
                ("/whep/?avatar=tiny", sdp, _without(offer, "a=ice-pwd"), 400, "no ice-ufrag or ice-pwd"),
                ("/whep/?avatar=tiny", sdp, _without(offer, "a=fingerprint"), 400, "no fingerprint"),
                ("/whep/?avatar=tiny", sdp, offer.replace("recvonly", "sendonly"), 400, "receives"),
                ("/whep/?avatar=tiny", sdp, offer.replace("H264", "H263"), 406, "no H.264"),
                ("/whep/?avatar=tiny", sdp, offer.replace("packetization-mode=1", "packetization-mode=0"), 406, "H.264 (baseline"),
                ("/whep/?avatar=tiny", sdp, offer.replace("a=rtpmap", "a=rtpmap:x"), 400, "cannot be read"),
                ("/whep/?avatar=tiny", {**sdp, "Origin": "https://evil.example"}, offer, 403, "origin"),
            ]:  # fmt: skip
                answer = await http.post(path, content=content, headers=headers)
                assert (answer.status_code, answer.text.count("\n")) == (status, 1), answer.text
                assert line in answer.text
            await server.until_free()
            session = await server.web.open("tiny")
            answer = await player.watch(http, f"/whep/{session.id}")
            assert answer.status_code == 201
            assert answer.headers["Link"] == '<stun:127.0.0.1:9>; rel="ice-server"'
            answer = await other.watch(http, f"/whep/{session.id}")
            assert answer.status_code == 409 and "has a player" in answer.text
            answer = await http.patch(player.location, content="a=candidate")
            assert answer.status_code == 405 and "DELETE" in answer.headers["Allow"]
            answer = await http.options(f"/whep/{session.id}")
            assert answer.status_code == 204 and answer.headers["Accept-Post"] == "application/sdp"
            assert (await http.delete(f"/whep/{session.id}/x")).status_code == 404
            await session.close()
            await player.close()
            await other.close()
            path = "/whep/{session}"
            assert server.counted("requests", service="http", method=path, code="404") == 2
            assert server.counted("requests", service="http", method=path, code="201") == 1

    run(main())


def _without(offer: str, start: str) -> str:
    return "".join(line for line in offer.splitlines(True) if not line.startswith(start))


@pytest.mark.usefixtures("left_late")
@pytest.mark.parametrize("kinds", [("video",), ("audio",)])
def test_players_of_one_kind_with_a_session_of_their_own(live, kinds):
    """It ends with the player, at once."""

    async def main():
        async with serving(live) as server:
            player = Player(*kinds)
            answer = await player.watch(server.http, "/whep/?avatar=tiny")
            assert answer.status_code == 201
            await player.until(kinds[0], 5)
            assert server.web.places.sessions() == {"tiny": 1}
            await server.http.delete(player.location)
            await server.until_free()
            await player.close()

    run(main())


def test_other_sections_of_an_offer_are_rejected(live):
    """A data channel and a second picture: the answer has all sections, two of them with port 0."""

    async def main():
        async with serving(live) as server:
            player = Player("video", "audio", "video")
            player.connection.createDataChannel("chat")
            offer, headers = await player.offer(), {"Content-Type": "application/sdp"}
            answer = await server.http.post("/whep/?avatar=tiny", content=offer, headers=headers)
            assert answer.status_code == 201
            ports = re.findall(r"m=(\w+) (\d+)", answer.text)
            assert [kind for kind, _ in ports] == ["video", "audio", "video", "application"]
            assert [port != "0" for _, port in ports] == [True, True, False, False]
            assert re.search(r"^a=group:BUNDLE 0 1\r$", answer.text, re.MULTILINE)
            assert re.findall(r"^a=mid:(\d)", answer.text, re.MULTILINE) == ["0", "1", "2", "3"]
            await server.http.delete(answer.headers["Location"])
            await player.close()
            await server.until_free()

    run(main())


def test_players_that_vanish(live, monkeypatch):
    """Without a goodbye: their sessions are freed, and that of a player that is there is not."""
    monkeypatch.setattr(peer_module, "SILENT_SECONDS", 1.5)
    monkeypatch.setattr(session_module, "LEFT_SECONDS", 1.8)

    async def report(player):
        """More often than aiortc does, which may wait for 1.5 s."""
        while True:
            await player.report_loss(0.0)
            await asyncio.sleep(0.1)

    async def main():
        async with serving(live, limits={"max_sessions": 3}) as server:
            players, reports = [Player() for _ in range(3)], []
            for player in players:
                session = await server.web.open("tiny")
                assert (await player.watch(server.http, f"/whep/{session.id}")).status_code == 201
                await player.until("video", 1)
                reports.append(asyncio.create_task(report(player)))
            late = Player()
            answer = await late.watch(server.http, "/whep/?avatar=tiny")
            assert answer.status_code == 429 and answer.headers["Retry-After"] == "5"
            assert "3 sessions are open; expected fewer than 3" in answer.text
            one = players.pop()
            for player in players:
                player.say_nothing_more()
            await until(lambda: server.web.places.sessions() == {"tiny": 1})
            await asyncio.sleep(0.5)
            assert one.connection.connectionState == "connected" and session.peer is not None
            assert session.lost is None
            one.say_nothing_more()
            await server.until_free()
            assert session.lost == "the player said nothing for 1.5 s"
            answer = await server.http.post(
                f"/whep/{session.id}", headers={"Content-Type": "application/sdp"}
            )
            assert answer.status_code == 404
            for task in reports:
                task.cancel()
            for player in [*players, one, late]:
                await player.close()

    run(main())


def test_a_stun_server_that_is_silent(live, monkeypatch):
    """It is not waited for as long as aiortc would: 5 s for each answer."""
    seconds, gather = [], aioice.Connection.get_component_candidates

    def noting(self, component, addresses, timeout=5):
        if self.stun_server is not None:  # the server's, not the player's
            seconds.append(timeout)
            timeout = 0.05
        return gather(self, component, addresses, timeout)

    monkeypatch.setattr(aioice.Connection, "get_component_candidates", noting)

    async def main(port):
        config = {"web": {"ice_servers": [{"urls": [f"stun:127.0.0.1:{port}"]}]}}
        async with serving(live, **config) as server:
            player = Player()
            assert (await player.watch(server.http, "/whep/?avatar=tiny")).status_code == 201
            await player.close()

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        run(main(silent.getsockname()[1]))
    assert seconds and set(seconds) == {peer_module.GATHER_SECONDS} and max(seconds) < 5


def test_a_player_that_never_connects(live, monkeypatch):
    """It is gone within 10 s, as one that is killed later. A session is kept for it meanwhile."""
    assert peer_module.CONNECT_SECONDS + peer_module.LOOK_SECONDS < 10
    monkeypatch.setattr(peer_module, "CONNECT_SECONDS", 0.2)

    async def main():
        async with serving(live) as server:
            player = Player()
            session = await server.web.open("tiny")
            headers = {"Content-Type": "application/sdp"}
            offer = await player.offer()
            answer = await server.http.post(f"/whep/{session.id}", content=offer, headers=headers)
            assert answer.status_code == 201
            await until(lambda: session.peer is None)
            assert session.lost == "the player did not connect in 0.2 s"
            await player.close()
            await session.close()

    run(main())


def test_drain(live):
    """New sessions are refused; one that runs may end by itself, and then it is told why."""

    async def main():
        async with serving(live, server={"drain_seconds": 1.0}) as server:
            session = await server.web.open("tiny")
            kept, player = Kept(), Player()
            session.attach(kept)
            assert (await player.watch(server.http, f"/whep/{session.id}")).status_code == 201
            server.stop.set()
            await until(lambda: server.web.ending)
            refused = await Player().watch(server.http, "/whep/?avatar=tiny")
            assert refused.status_code == 503 and "the server is ending" in refused.text
            count = len(kept.pieces)
            await kept.until(count + 10)
            await until(lambda: bool(kept.ended))
            assert kept.ended == ["the server is ending"]
            await until(lambda: player.connection.connectionState == "closed")
            await player.close()

    run(main())


def test_one_count_of_sessions_for_grpc_and_http(live):
    """The place of a session is taken for both, and free for both."""

    async def main():
        async with (
            serving(live, limits={"max_sessions": 1}) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = viseme_pb2_grpc.VisemeStub(channel)
            session = await server.web.open("tiny")
            call = stub.Live()
            await call.write(opening())
            code, line = await refusal(call)
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert line == "1 sessions are open; expected fewer than 1"
            await session.close()
            call = stub.Live()
            await call.write(opening())
            await call.read()
            with pytest.raises(Refused, match="1 sessions are open; expected fewer than 1"):
                await server.web.open("tiny")
            text = (await server.http.get("/metrics")).text
            assert 'viseme_sessions{avatar="tiny"} 1.0' in text
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            await server.until_free()

    run(main())
