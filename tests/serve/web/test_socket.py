"""`/v1/live`: pieces are the session's, events, limits, and ends that leave nothing."""

import asyncio
import io
import json
from contextlib import ExitStack, nullcontext, suppress
from itertools import pairwise

import av
import numpy as np
import pytest
import torch
import websockets
from PIL import Image

from serve.refused import Refused
from serve.web import outbox as outbox_module
from serve.web import socket as socket_module
from tests.engine.live.stage import until_end, voice
from tests.serve.web.site import (
    TAKEN,
    TOKEN,
    Client,
    client,
    pieces,
    run,
    serving,
)

pytestmark = pytest.mark.usefixtures("left_soon")


def speech(seconds: float, seed: int = 1, rate: int = 16000) -> np.ndarray:
    return voice(seed, int(seconds * rate))


def s16(samples: np.ndarray) -> np.ndarray:
    return np.rint(samples * 32767).astype(np.int16)


def kinds(messages: list) -> list[str]:
    return [m["type"] if isinstance(m, dict) else "piece" for m in messages]


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "channels", "format"), [(16000, 1, "f32"), (24000, 2, "s16"), (44100, 1, "s16")]
)
def test_pieces_are_those_of_a_session(live, rate, channels, format):
    """Pictures and sound, whatever way the speech comes, of two utterances."""
    sound = np.stack([speech(1.3, seed, rate) for seed in range(1, channels + 1)])
    if format == "s16":
        sound = s16(sound)
    cuts = [0, 1, 700, rate // 2, rate // 2 + 3, sound.shape[1]]
    options = {"sample_rate": rate, "channels": channels, "sample_format": format}

    async def main():
        async with (
            serving(live) as site,
            client(site, clock="taken", picture="jpeg", **options) as talk,
        ):
            for _ in range(2):
                for begin, end in pairwise(cuts):
                    await talk.push(sound[:, begin:end])
                await talk.tell(type="flush")
            messages = await talk.all(2)
            await talk.tell(type="close")
            assert await talk.refusal() == (1000, "")
            assert site.metrics.sums["frames", "tiny", "live"] >= len(pieces(messages))
            return talk.opened, messages

    opened, messages = run(main())
    assert opened.pop("session") in range(1, 2**53)
    assert opened.pop("runtime").startswith("generator in ")
    assert opened.pop("capacity") > 0 and opened.pop("prebuffer") == 0.45
    assert opened == {
        "type": "opened", "avatar": "tiny", "width": 80, "height": 96, "fps": 25.0, **options,
        "picture": "jpeg", "clock": "taken", "sessions": 1, "voice": False,
    }  # fmt: skip
    got = pieces(messages)
    with live.open(sample_rate=rate, channels=channels, clock="taken") as session:
        for _ in range(2):
            session.push(sound)
            session.flush()
        expected = until_end(session) + until_end(session)
    assert len(got) == len(expected) > 60
    type = np.int16 if format == "s16" else np.float32
    for piece, other in zip(got, expected, strict=True):
        file = io.BytesIO()
        Image.fromarray(other.frames[0].numpy()).save(file, "jpeg", quality=75)
        assert piece.picture == file.getvalue() and piece.keyframe
        samples = np.frombuffer(piece.sound, type).reshape(-1, channels).T
        scale = 32768 if format == "s16" else 1
        assert np.array_equal(samples.astype(np.float32) / scale, other.sound)
        assert (piece.number, piece.speaking, piece.end, piece.time) == (
            other.number, other.speaking, other.end, float(other.time),
        )  # fmt: skip
    assert np.ascontiguousarray(sound.T).tobytes() in b"".join(piece.sound for piece in got)
    changes = [m for m in messages if isinstance(m, dict) and m["type"] in ("speaking", "end")]
    begin, last = (n for n, piece in enumerate(got) if piece.speaking), got[-1].number
    assert changes[0] == {"type": "speaking", "speaking": True, "number": next(begin)}
    assert changes[-1] == {"type": "end", "number": last} and got[-1].end


def test_h264_is_that_of_a_render(live):
    """Decoded, it is close to the frames of a render, which show how loud the speech is."""
    sound = speech(2)

    async def main():
        async with (
            serving(live) as site,
            client(site, **TAKEN | {"sample_format": "f32"}, picture="h264") as talk,
        ):
            await talk.push(sound)
            await talk.tell(type="flush")
            return pieces(await talk.all())

    got = run(main())
    rendered = torch.cat(list(live.pipeline.render(torch.from_numpy(sound)))).numpy()
    decoder = av.CodecContext.create("h264", "r")
    frames = [f for piece in got for f in decoder.decode(av.Packet(piece.picture))]
    frames += decoder.decode(None)
    assert len(frames) == len(got) == 50 and got[0].keyframe
    means = [frame.to_ndarray(format="rgb24").mean((1, 2)).mean() for frame in frames[:40]]
    expected = rendered[:40].mean((1, 2, 3))
    assert np.abs(np.array(means) - expected).max() < 3 and np.ptp(expected) > 5


def test_in_real_time_without_pictures_there_are_events(live):
    async def main():
        async with serving(live) as site, client(site, sample_rate=16000) as talk:
            await talk.push(s16(speech(0.5)))
            await talk.tell(type="flush")
            messages = await talk.all()
            return messages, await talk.event("stats"), site.sessions.find(talk.opened["session"])

    messages, stats, session = run(main())
    assert not pieces(messages)
    told = [m for m in messages if m["type"] in ("speaking", "end")]
    assert [m["type"] for m in told] == ["speaking", "end"]
    assert told[1]["number"] - told[0]["number"] == 12  # 0.5 s
    assert stats["frames"] == session.counts.frames or stats["frames"] > 12
    assert stats["delay_ms"] > 0 and stats["made_fps"] > 0 and stats["sessions"] == 1
    assert set(stats) == {
        "type", "rtp", "frames", "late", "skipped", "underruns", "sessions", "delay_ms", "made_fps",
    }  # fmt: skip
    assert stats["rtp"] is None  # there is no player


def test_underruns_are_told(live):
    async def main():
        async with serving(live) as site, client(site, sample_rate=16000) as talk:
            await talk.push(s16(speech(0.6)))
            return await talk.event("underrun")

    assert run(main()) == {"type": "underrun", "total": 1}


# --- interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", ["wall", "taken"])
def test_after_an_interruption_nothing_of_the_old_speech_comes(live, clock):
    """The old speech is positive, the new one negative."""
    old, new = np.full(32000, 8000, np.int16), np.full(8000, -8000, np.int16)

    async def main():
        async with (
            serving(live) as site,
            client(site, sample_rate=16000, clock=clock, picture="jpeg") as talk,
        ):
            await talk.push(old)
            await talk.event("speaking")
            for _ in range(3):
                await talk.next()
            await talk.tell(type="interrupt")
            before = []
            while True:
                before.append(await talk.next())
                if isinstance(before[-1], dict) and before[-1]["type"] == "interrupted":
                    break
            await talk.push(new)
            await talk.tell(type="flush")
            return before, await talk.all()

    before, after = run(main())
    position = before[-1]["position"]
    assert all(piece.time < position for piece in pieces(before))
    got = pieces(after)
    assert got[0].time == position
    sound = np.concatenate([np.frombuffer(piece.sound, np.int16) for piece in got])
    assert (sound[160:] <= 0).all() and (sound == -8000).sum() > 8000 - 160  # 10 ms fade out


def test_an_interruption_when_nothing_is_said_is_told_too(live):
    async def main():
        async with serving(live) as site, client(site, **TAKEN, picture="jpeg") as talk:
            await talk.tell(type="interrupt")
            first = await talk.event("interrupted")
            await talk.push(s16(speech(0.2)))
            await talk.tell(type="flush")
            shown = pieces(await talk.all())
            await asyncio.sleep(0.1)  # nothing is on its way
            await talk.tell(type="interrupt")
            return first, shown, await talk.event("interrupted")

    first, shown, second = run(main())
    assert first["position"] == 0 and second["position"] == (shown[-1].number + 1) / 25


# --- what is refused -----------------------------------------------------------------------------


OPEN = {"type": "open"}
REFUSALS = [
    ("no JSON", 1008, "the body is no JSON"),
    (b"1234", 1008, "the first message is binary; expected JSON"),
    ([], 1008, "the body is []; expected a JSON object"),
    ({"type": "flush"}, 1008, "the first message is of type 'flush'; expected 'open'"),
    ({}, 1008, "the first message is of type None"),
    (OPEN | {"rate": 1}, 1008, "'rate' is not known; expected: type, avatar"),
    (OPEN | {"avatar": "nobody"}, 1008, "model 'nobody' not configured"),
    (OPEN | {"avatar": 7}, 1008, "avatar is 7; expected text"),
    (OPEN | {"sample_rate": 100}, 1008, "sample rate is 100; expected 8000 to 192000"),
    (OPEN | {"sample_rate": 0}, 1008, "sample_rate is 0"),
    (OPEN | {"sample_rate": "48000"}, 1008, "sample_rate is '48000'; expected a whole number"),
    (OPEN | {"sample_rate": 1 << 70}, 1008, "sample"),
    (OPEN | {"channels": 3}, 1008, "channels is 3; expected 1 or 2"),
    (OPEN | {"sample_format": "u8"}, 1008, "sample_format is 'u8'; expected 's16' or 'f32'"),
    (OPEN | {"clock": "sun"}, 1008, "clock is 'sun'; expected 'wall' or 'taken'"),
    (OPEN | {"picture": "vp8"}, 1008, "picture is 'vp8'; expected 'none', 'jpeg' or 'h264'"),
    (OPEN | {"prebuffer": 11}, 1008, "prebuffer is 11"),
    (OPEN | {"prebuffer": -1}, 1008, "prebuffer is -1"),
    ("[" * 50_000, 1008, "the body is no JSON"),
    ('{"type":"open","prebuffer":NaN}', 1008, "the body is no JSON"),
    (OPEN | {"x": [[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]}, 1008, "the body is no JSON of at most 20"),
    ("x" * 100_001, 1009, "the message has 100001 characters; expected at most 100000"),
]  # fmt: skip


def test_first_messages_that_are_refused(live):
    async def main():
        async with serving(live) as site:
            for message, code, line in REFUSALS:
                async with site.connect() as socket:
                    text = json.dumps(message) if isinstance(message, dict | list) else message
                    await socket.send(text)
                    got = await Client(socket).refusal()
                    assert got[0] == code and got[1].startswith(line), (message, got)

    run(main())


MESSAGES = [
    ("{}", 1008, "a message is of type None; expected flush, interrupt, say or close"),
    (json.dumps(OPEN), 1008, "a message is of type 'open'; expected flush"),
    ("7", 1008, "the body is 7; expected a JSON object"),
    ('{"type": "say"}', 1008, "text is None; expected text"),
    (b"123", 1008, "pcm has 3 bytes; expected a multiple of 2"),
    (bytes(2 * 16000 * 61), 1009, "pcm has 61.0 s; expected at most 60 s"),
    (bytes(9 << 20), 1009, ""),  # by the library, before it is in memory
]


def test_messages_that_are_refused(live):
    """The session ends at once, also if somebody watches it."""

    async def main():
        async with serving(live) as site:
            for message, code, line in MESSAGES:
                async with client(site, **TAKEN) as talk:
                    with (
                        site.sessions.get(talk.opened["session"]).hold() if line else nullcontext()
                    ):
                        with suppress(websockets.ConnectionClosed):  # before all is sent
                            await talk.socket.send(message)
                        got = await talk.refusal()
                        assert got[0] == code and got[1].startswith(line), (message[:50], got)
                        if line:
                            await site.until_free()
            async with client(site, sample_rate=16000, sample_format="f32") as talk:
                await talk.push(np.array([0.1, np.nan], np.float32))
                assert await talk.refusal() == (1008, "pcm has a sample of nan; expected -1 to 1")

    run(main())


def test_texts_that_cannot_be_spoken_do_not_end_the_session(live):
    async def main():
        async with serving(live) as site, client(site, **TAKEN) as talk:
            await talk.tell(type="say", text="hello")
            told = await talk.event("unspoken")
            await talk.push(s16(speech(0.2)))
            await talk.tell(type="flush")
            return told, await talk.all()

    told, messages = run(main())
    assert "this server has no voice" in told["message"]
    assert kinds(messages)[-1] == "end"


def test_more_speech_than_may_wait(live):
    async def main():
        async with serving(live) as site, client(site, sample_rate=8000) as talk:
            for _ in range(11):
                await talk.push(np.ones(8000 * 60, np.int16))
            return await talk.refusal()

    code, line = run(main())
    assert code == 1008 and "s of speech wait to be shown; expected at most 590 s" in line


def test_tokens(live):
    server = {"server": {"tokens": (TOKEN,)}}

    async def main():
        async with serving(live, **server) as site:
            for headers, message, good in [
                ({}, {}, False),
                ({}, {"token": "x" * 20}, False),
                ({"Authorization": "Bearer wrong"}, {"token": TOKEN}, False),
                ({"Authorization": f"Basic {TOKEN}"}, {}, False),
                ({"Authorization": f"Bearer {TOKEN}"}, {}, True),
                ({}, {"token": TOKEN}, True),
            ]:
                async with site.connect(additional_headers=headers) as socket:
                    talk = Client(socket)
                    if good:
                        await talk.open(**TAKEN | message)
                        continue
                    await talk.tell(**OPEN | message)
                    code, line = await talk.refusal()
                    assert code == 1008 and "token" in line and TOKEN not in line

    run(main())


def test_origins(live):
    """Other web pages may not use the server, unless they are configured."""

    async def main():
        for origins in ((), ("https://page.example",), ("*",)):
            async with serving(live, web={"origins": origins}) as site:
                for origin, good in [
                    (f"http://127.0.0.1:{site.port}", True),
                    ("https://page.example", bool(origins)),
                    ("https://other.example", origins == ("*",)),
                    ("http://127.0.0.1", origins == ("*",)),
                    ("null", origins == ("*",)),
                ]:
                    try:
                        async with site.connect(origin=origin) as socket:
                            await Client(socket).open(**TAKEN)
                        assert good, origin
                    except websockets.InvalidStatus as error:
                        assert not good and error.response.status_code == 403
                        assert b"is not one of web.origins" in error.response.body

    run(main())


def test_another_address(live):
    async def main():
        async with serving(live) as site:
            with pytest.raises(websockets.InvalidStatus) as caught:
                await site.connect("/v1/live/")
            return caught.value.response

    told = run(main())
    assert told.status_code == 404
    assert told.body == b"there is no WebSocket at '/v1/live/'; expected /v1/live\n"


def test_places_are_limited(live):
    async def main():
        async with (
            serving(live, limits={"max_sessions": 1}) as site,
            client(site, **TAKEN),
            site.connect() as socket,
        ):
            await socket.send(json.dumps(OPEN))
            return await Client(socket).refusal()

    assert run(main()) == (1008, "1 sessions are open; expected fewer than 1")


def test_sockets_without_a_session_are_limited():
    """Those of one address, and all. Who is refused is told which."""
    waiting, there = socket_module.Waiting(), ExitStack()
    for address in "abcde":
        leave, *_ = [there.enter_context(waiting.place(address)) for _ in range(20)]
    for address, whose in (("a", "20 connections of a"), ("f", "100 connections")):
        with pytest.raises(Refused, match=f"^{whose} wait to be opened; expected fewer") as caught:
            waiting.place(address)
        assert caught.value.status == 503
    leave()
    leave()  # a second time it does nothing
    with waiting.place("f"), pytest.raises(Refused):
        waiting.place("f")
    there.close()
    assert waiting._of.total() == 0


# --- ends ----------------------------------------------------------------------------------------


def test_who_sends_no_first_message_is_cut_off(live, monkeypatch):
    monkeypatch.setattr(socket_module, "OPEN_SECONDS", 0.2)

    async def main():
        async with serving(live) as site, site.connect() as socket:
            return await Client(socket).refusal()

    code, line = run(main())
    assert code == 1008 and line.startswith("no message came for 0.2 s")


def test_who_says_nothing_is_cut_off(live):
    """Not while something is spoken, which takes longer than that."""

    async def main():
        async with (
            serving(live, limits={"idle_seconds": 0.9}) as site,
            client(site, sample_rate=16000) as talk,
        ):
            await talk.push(s16(speech(1.2)))
            await talk.tell(type="flush")
            await talk.all()
            return await talk.refusal()

    assert run(main()) == (1008, "no message came, and nothing was spoken, for 0.9 s")


def test_a_session_lasts_its_time(live):
    async def main():
        async with serving(live, limits={"max_session_seconds": 0.3}) as site, client(site) as talk:
            return await talk.refusal()

    code, line = run(main())
    assert code == 1008 and line == "the session was 0.3 s long, the most"


def test_when_the_server_ends(live):
    async def main():
        async with serving(live) as site, client(site) as talk:
            await site.sessions.close()
            return await talk.refusal()

    assert run(main()) == (1001, "the server is ending")


@pytest.mark.parametrize("picture", ["jpeg", "h264"])
def test_who_reads_nothing_loses_pictures_and_then_the_connection(live, monkeypatch, picture):
    """Memory does not grow: of the pieces that wait, a few have pictures."""
    monkeypatch.setattr(outbox_module, "MOST_SECONDS", 1.2)
    made = []

    class Watched(outbox_module.Outbox):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.most = self.most_pieces = 0
            made.append(self)

        def put(self, piece):
            super().put(piece)
            self.most = max(self.most, self._pictures)
            self.most_pieces = max(self.most_pieces, self._pieces)

    monkeypatch.setattr(socket_module, "Outbox", Watched)

    async def main():
        async with serving(live) as site, site.connect(max_queue=1) as socket:
            await Client(socket).open(
                sample_rate=192000, channels=2, sample_format="f32", picture=picture
            )
            socket.transport.pause_reading()
            await site.until_free()
            socket.transport.abort()

    run(main())
    (outbox,) = made
    assert outbox.most <= outbox_module.MOST_PICTURES + 1
    assert (
        outbox._dropped > 5 and outbox.most_pieces <= (1.2 + 1) * 25
    )  # a busy machine makes some at once


def test_who_reads_slowly_can_decode_what_comes(live, monkeypatch):
    """Pictures of H.264 are dropped up to a keyframe."""
    monkeypatch.setattr(outbox_module, "MOST_PICTURES", 3)
    send = outbox_module.Outbox._send

    async def slowly(self, message):
        await send(self, message)
        if not isinstance(message, dict) and message.number % 10 == 0:
            await asyncio.sleep(0.3)

    monkeypatch.setattr(outbox_module.Outbox, "_send", slowly)

    async def main():
        async with serving(live) as site, client(site, picture="h264") as talk:
            got = []
            while len(got) < 50:
                message = await talk.next()
                got += [] if isinstance(message, dict) else [message]
            return got

    got = run(main())
    assert [piece.number for piece in got] == list(range(got[0].number, got[0].number + 50))
    sent = [piece for piece in got if piece.picture]
    assert 5 < len(sent) < 47
    decoder = av.CodecContext.create("h264", "r")
    decoder.options = {"err_detect": "explode"}
    frames = [f for piece in sent for f in decoder.decode(av.Packet(piece.picture))]
    frames += decoder.decode(None)
    assert len(frames) == len(sent) and not any(frame.is_corrupt for frame in frames)


def test_a_socket_that_is_closed_in_words_ends_its_session(live, monkeypatch):
    """At once, whoever else holds it; one that just goes is forgotten only."""
    monkeypatch.setattr("serve.web.session.LEFT_SECONDS", 1000.0)
    monkeypatch.setattr(socket_module, "MOST_OF_ADDRESS", 1)  # that wait: none does

    async def main():
        async with serving(live) as site, client(site) as talk, client(site) as other:
            session, left = (site.sessions.get(c.opened["session"]) for c in (talk, other))
            with session.hold(), left.hold():
                await talk.tell(type="close")
                other.socket.transport.abort()
                await asyncio.wait_for(session.ended.wait(), 30)
                async with asyncio.timeout(30):
                    while left._sinks:
                        await asyncio.sleep(0.01)
                assert not left.ended.is_set()
                await left.close()

    run(main())


def test_sessions_end_when_their_sockets_go(live):
    async def main():
        async with serving(live) as site:
            for _ in range(3):
                async with client(site, picture="jpeg") as talk:
                    await talk.next()
                    assert site.places.sessions() == {"tiny": 1} and len(site.sessions) == 1
                    talk.socket.transport.abort()
                await site.until_free()
                assert not site.places.sessions() and not len(site.sessions)

    run(main())
