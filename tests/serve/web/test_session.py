"""Sessions of HTTP clients, from what is said to what their sinks get."""

import asyncio
import gc
import weakref
from collections import deque
from contextlib import asynccontextmanager
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from engine.errors import InputError
from engine.live import Live
from serve.config import Config
from serve.places import Places
from serve.refused import Refused
from serve.web import session as module
from serve.web.sessions import MOST_ID, WebSessions
from serve.web.tracks import OpusStream
from tests.engine.live.stage import until_end, voice
from tests.serve.rpc.server import FakeMetrics, FakeRegistry
from tests.serve.web.stage import Kept, run, until

pytestmark = pytest.mark.usefixtures("left_late")

S16 = {"sample_rate": 16000, "clock": "taken"}


class Voice:
    """Says a letter as 0.1 s of its number; of "!" it fails, and it waits for `go`."""

    max_characters = 20

    def __init__(self):
        self.go, self.closed = asyncio.Event(), 0
        self.go.set()

    async def speak(self, text, sample_rate):
        try:
            for letter in text:
                await self.go.wait()
                if letter == "!":
                    raise InputError("the voice is hoarse")
                yield np.full(sample_rate // 10, ord(letter), np.int16)
        finally:
            self.closed += 1

    async def close(self):
        pass


class Opened:
    """Sessions without a server. At the end, nothing of them may be left."""

    def __init__(self, live: Live, voice=None, **limits):
        self.live, self.registry, self.metrics = live, FakeRegistry({"tiny": live}), FakeMetrics()
        config = Config.model_validate({"limits": limits})
        self.places = Places(config.limits.max_sessions)
        self.web = WebSessions(self.registry, config, self.metrics, self.places, voice)

    async def __aenter__(self) -> WebSessions:
        self._before = asyncio.all_tasks()
        return self.web

    async def __aexit__(self, *_: object) -> None:
        await self.web.close()
        assert not len(self.web) and not self.places.sessions() and not +self.registry.in_use
        assert not len(self.live.scheduler)
        assert not asyncio.all_tasks() - self._before


def sound_of(kept: Kept) -> np.ndarray:
    """Return (S,) int16 of what a sink got, without the silence around it."""
    whole = np.concatenate([piece.sound[0] for piece in kept.pieces])
    return np.trim_zeros(np.rint(whole * 32768).astype(np.int16))


async def until_ends(kept: Kept, ends: int = 1) -> None:
    await until(lambda: sum(piece.end for piece in kept.pieces) >= ends)


# --- pieces --------------------------------------------------------------------------------------


def test_all_sinks_get_the_pieces_of_the_session(live):
    """Pictures and sound together; those of H.264 can be decoded, also by who comes later."""
    spoken = voice(1, 24000)

    async def main():
        opened = Opened(live)
        async with opened as web:
            session = await web.open("tiny", **S16)
            rgb, h264, none, late = Kept("rgb"), Kept("h264"), Kept(), Kept("h264")
            for sink in (rgb, h264, none):
                session.attach(sink)
            session.push(spoken)
            await h264.until(3)  # soon after a keyframe: the next one is not at once
            session.attach(late)
            session.push(spoken)
            session.flush()
            await until_ends(rgb)
            assert opened.metrics.sums["frames", "tiny", "live"] == len(rgb.pieces)
            await session.close("enough")
            return rgb, h264, none, late

    rgb, h264, none, late = run(main())
    with live.open(clock="taken") as session:
        session.push(np.concatenate([spoken, spoken]))
        session.flush()
        expected = until_end(session)
    count = len(expected)
    assert [piece.number for piece in rgb.pieces[:count]] == list(range(count))
    for piece, other in zip(rgb.pieces, expected, strict=False):
        assert piece.time == other.time and np.array_equal(piece.sound, other.sound)
        assert np.array_equal(piece.frame, other.frames[0].numpy())
        assert (piece.speaking, piece.end) == (other.speaking, other.end)
    assert h264.pieces[0].keyframe
    assert [
        piece.sound is other.sound for piece, other in zip(none.pieces, rgb.pieces, strict=True)
    ]
    for kept in (h264, late):
        pictures = [piece for piece in kept.pieces if piece.picture]
        assert pictures[0].keyframe and len(pictures) > len(kept.pieces) - 12
        decoder = av.CodecContext.create("h264", "r")
        decoder.options = {"err_detect": "explode"}
        frames = [f for p in pictures for f in decoder.decode(av.Packet(p.picture))]
        assert len(frames) == len(pictures)
        assert not any(frame.is_corrupt for frame in frames)
    for kept in (rgb, h264, none, late):
        assert kept.ended == ["enough"]


def test_the_clock_goes_on_without_sinks(live):
    async def main():
        async with Opened(live) as web:
            session = await web.open("tiny")
            with session.hold():
                await until(lambda: session.counts.frames > 5)
                kept = Kept()
                session.attach(kept)
                assert (await kept.until(1))[0].number > 4

    run(main())


def test_a_sink_that_fails_is_left_out(live, caplog):
    class Broken(Kept):
        def put(self, piece):
            raise RuntimeError("of a sink")

    async def main():
        async with Opened(live) as web:
            session = await web.open("tiny")
            broken, kept = Broken(), Kept()
            session.attach(broken)
            session.attach(kept)
            await kept.until(3)
            await until(lambda: bool(broken.ended))
            assert not kept.ended

    run(main())
    assert caplog.text.count("RuntimeError: of a sink") == 1


def test_sinks_do_not_disturb_each_other(live, caplog):
    """One that another one detaches gets nothing more, and one that fails at the end is one."""

    class Jealous(Kept):
        def put(self, piece):
            super().put(piece)
            session.detach(detached)

        def end(self, reason):
            raise RuntimeError("of a sink")

    async def main():
        nonlocal session
        async with Opened(live) as web:
            session = await web.open("tiny")
            for sink in (Jealous("h264"), detached, last):
                session.attach(sink)
            await last.until(5)
            await session.close("enough")

    session, detached, last = None, Kept("h264"), Kept("h264")
    run(main())
    assert (detached.pieces, detached.ended, last.ended) == ([], [], ["enough"])
    assert caplog.text.count("RuntimeError: of a sink") == 1
    assert "a client of a session failed" in caplog.text


def test_a_session_as_taken_waits_for_its_slowest_sink(live):
    """Nothing is made without an utterance or a sink, and nothing is lost."""

    class Slow(Kept):
        def __init__(self):
            super().__init__()
            self.go = asyncio.Event()

        async def room(self):
            await self.go.wait()

    async def main():
        async with Opened(live) as web:
            session = await web.open("tiny", **S16)
            session.push(voice(1, 32000))
            session.flush()
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert not session.counts.frames
            slow, kept = Slow(), Kept()
            session.attach(kept)
            session.attach(slow)
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert len(kept.pieces) <= 1
            slow.go.set()
            await until_ends(slow)
            assert len(slow.pieces) == len(kept.pieces) == 50

    run(main())


# --- what is said --------------------------------------------------------------------------------


def test_speech_comes_in_order(live):
    """Large and small parts, texts and flushes: heard is what was said, utterance by utterance."""
    parts = [np.full(count, value, np.int16) for value, count in [(5, 90000), (6, 100), (7, 3)]]

    async def main():
        async with Opened(live, Voice()) as web:
            session = await web.open("tiny", **S16)
            kept = Kept()
            session.attach(kept)
            for part in parts:
                session.push(part)
            session.flush()
            session.say("ab")
            session.say("  ")
            session.push(parts[1])
            session.flush()
            await until_ends(kept, 3)
            assert session.fault is None
            return sound_of(kept)

    heard = run(main())
    a, b = (np.full(1600, ord(letter), np.int16) for letter in "ab")
    expected = np.concatenate([*parts, a, b, parts[1]])
    assert np.array_equal(heard[heard != 0], expected)


def test_interrupt_stops_sound_and_texts(live):
    """What was pushed before is not heard any more, what comes after it is."""

    async def main():
        voice = Voice()
        async with Opened(live, voice) as web:
            session = await web.open("tiny", **S16)
            kept = Kept()
            session.push(np.full(160_000, 3, np.int16))  # not yet in the session
            session.say("abc")
            session.interrupt()
            voice.go.clear()
            session.say("def")
            await asyncio.sleep(0.05)
            assert session.interrupt() == 0
            voice.go.set()
            session.attach(kept)
            session.push(np.full(1600, 9, np.int16))
            session.flush()
            await until_ends(kept)
            assert voice.closed == 1  # the one that had begun
            return sound_of(kept)

    assert set(run(main())) == {9}


def test_speech_after_an_interruption_comes_in_order(live):
    """Large parts are on their way for a while. Whoever pushed them may write to their memory."""

    async def main():
        async with Opened(live) as web:
            session = await web.open("tiny", **S16)
            kept, large = Kept(), np.full(160_000, 3, np.int16)
            session.push(large)
            await asyncio.sleep(0)
            session.interrupt()
            large[:] = 5
            session.push(large)
            large[:] = 9
            await asyncio.sleep(0)  # the one that was interrupted ends
            session.push(np.full(100, 7, np.int16))
            session.flush()
            session.attach(kept)
            await until_ends(kept)
            return sound_of(kept)

    heard = run(main())
    assert np.array_equal(heard[heard != 3], np.repeat([5, 7], [160_000, 100]))


def test_a_voice_that_fails(live):
    """The next text is spoken all the same."""

    async def main():
        async with Opened(live, Voice()) as web:
            session = await web.open("tiny", **S16)
            kept = Kept()
            session.attach(kept)
            session.say("a!b")
            await until(lambda: session.fault is not None)
            assert session.fault == "the voice is hoarse"
            session.say("c")
            await until_ends(kept, 2)
            assert session.fault is None
            return sound_of(kept)

    heard = run(main())
    assert set(heard[heard != 0]) == {ord("a"), ord("c")}


def test_refusals(live, monkeypatch):
    monkeypatch.setattr("serve.speech.WAITING_SECONDS", 2.0)
    monkeypatch.setattr("serve.speech.MESSAGE_SECONDS", 1.0)

    async def main():
        async with Opened(live, Voice(), max_sessions=1) as web:
            session = await web.open("tiny", channels=2, **S16)
            with session.hold():
                ones = np.ones((2, 16000), np.float32)
                for samples, line in [
                    (ones[:1], r"shape \(1, 16000\); expected \(2, S\)"),
                    (ones[0], r"shape \(1, 16000\)"),
                    (ones.astype(np.float64), "float64; expected int16 or float32"),
                    (ones * np.nan, "a sample of nan"),
                    (-ones * 2000, "a sample of 2000"),
                ]:
                    with pytest.raises(Refused, match=line) as caught:
                        session.push(samples)
                    assert caught.value.status == 400
                session.push(ones)
                session.push(ones)
                for push in (session.push, session.push_waiting):
                    with pytest.raises(Refused, match="expected at most 2 s") as caught:
                        made = push(np.tile(ones, 3))
                        await made
                    assert caught.value.status == (429 if push == session.push else 413)
                waiting = asyncio.create_task(session.push_waiting(ones))
                await asyncio.sleep(0)
                assert not waiting.done()
                session.interrupt()
                await waiting
                with pytest.raises(Refused, match="21 characters; expected at most 20") as caught:
                    session.say("a" * 21)
                assert caught.value.status == 413
                session.voice.go.clear()
                for _ in range(21):
                    session.say("a")
                    await asyncio.sleep(0)
                with pytest.raises(Refused, match="20 texts wait") as caught:
                    session.say("a")
                assert caught.value.status == 429 and caught.value.retry_seconds == 5
                with pytest.raises(Refused, match="1 sessions are open; expected fewer than 1"):
                    await web.open("tiny")
                assert web.find(session.id) is web.find(str(session.id)) is session
                for unknown in (session.id + 1, "x", "²", "1" * 5000, "-1", ""):
                    assert web.find(unknown) is None
                assert 0 < session.id <= MOST_ID
            await session.close("it was enough")
            for use in (session.flush, session.interrupt, lambda: session.push(ones[:, :5])):
                with pytest.raises(Refused, match="it was enough") as caught:
                    use()
                assert caught.value.status == 410
            for options, line in [
                ({"sample_rate": 5}, "sample rate is 5"),
                ({"clock": "slow"}, "clock is 'slow'"),
                ({"prebuffer": -1}, "prebuffer is -1"),
            ]:
                with pytest.raises(Refused, match=line) as caught:
                    await web.open("tiny", **options)
                assert caught.value.status == 400
            web.ending = True
            with pytest.raises(Refused, match="the server is ending") as caught:
                await web.open("tiny")
            assert caught.value.status == 503

    run(main())


def test_utterances_that_wait(live, monkeypatch):
    """Not more than so many, in the session and on their way to it; one that goes on has room."""
    monkeypatch.setattr("serve.speech.MOST_UTTERANCES", 3)
    one = np.full(1, 9, np.int16)

    def fill(session):
        for _ in range(3):
            session.push(one)
            session.push(one)
            session.flush()
        with pytest.raises(Refused, match="in at most 3 utterances") as caught:
            session.push(one)
        assert caught.value.status == 429

    async def main():
        async with Opened(live, Voice()) as web:
            session = await web.open("tiny", **S16)
            kept, go = Kept(), session.voice.go
            fill(session)
            waiting = asyncio.create_task(session.push_waiting(one))
            await asyncio.sleep(0)
            assert not waiting.done()
            session.attach(kept)
            await waiting
            session.flush()
            await until_ends(kept, 4)
            go.clear()
            session.say("a")  # what follows waits for it
            fill(session)
            for _ in range(100):
                session.flush()
            assert len(session._feed._said) <= 10
            session.interrupt()
            session.say("a")
            fill(session)
            go.set()
            await until_ends(kept, 8)
            fill(session)

    run(main())


# --- ends ----------------------------------------------------------------------------------------


def test_a_session_that_nobody_holds_ends(live, monkeypatch):
    """Not while one of two holds it; one that was left long ago, at once."""
    monkeypatch.setattr(module, "LEFT_SECONDS", 0.1)

    async def main():
        async with Opened(live) as web:
            forgotten = await web.open("tiny")
            await forgotten.ended.wait()
            session = await web.open("tiny")
            first, second = session.held(), session.held()
            first()
            first()  # twice is once
            await asyncio.sleep(0.3)
            assert not session.ended.is_set()
            second()
            await session.ended.wait()
            monkeypatch.setattr(module, "LEFT_SECONDS", 1000.0)
            session = await web.open("tiny")
            session.held()(1001.0)
            await session.ended.wait()

    run(main())


def test_nothing_refers_to_a_session_that_has_ended(live):
    """No timer either: a session may last for hours."""

    async def main():
        async with Opened(live) as web:
            session = await web.open("tiny")  # which would end in 5 s
            ended, there = session.ended, weakref.ref(session)
            await session.close()
            del session
            await asyncio.sleep(0)  # its task ends
            gc.collect()
            assert ended.is_set() and there() is None

    run(main())


def test_other_ends(live, monkeypatch):
    """By its length, by the device, and by an opener who leaves."""

    async def main():
        async with Opened(live, max_session_seconds=0.2) as web:
            kept = Kept()
            session = await web.open("tiny")
            session.attach(kept)
            await session.ended.wait()
            session = await web.open("tiny")
            session.attach(kept)
            live.scheduler.close_sessions(live._renderer, InputError("generator returned NaN"))
            await session.ended.wait()
            session = await web.open("tiny")
            session.attach(kept)
            live.scheduler.close_sessions(live._renderer)
            await session.ended.wait()
            opening = asyncio.create_task(web.open("tiny"))
            await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            await web.finished()
            return kept.ended

    assert run(main()) == [
        "the session was 0.2 s long, the most",
        "generator returned NaN",
        "the avatar was unloaded; open another session",
    ]


# --- sound in the long run -----------------------------------------------------------------------


def test_ends_while_an_avatar_is_loaded(live, caplog):
    """Of the client, whose place is free at once, and of the server."""

    async def main():
        async with Opened(live) as web:
            loaded, use = asyncio.Event(), web.registry.use

            @asynccontextmanager
            async def loading(name, timeout=None):
                async with use(name) as used:
                    await loaded.wait()
                    yield used

            async def opening():
                task = asyncio.create_task(web.open("tiny"))
                await until(lambda: web.registry.in_use["tiny"] == 1)
                return task

            web.registry.use = loading
            left = await opening()
            left.cancel()
            await until(lambda: not len(web) and not web.places.sessions())
            late = await opening()
            web.ending = True
            loaded.set()
            with pytest.raises(Refused, match="the server is ending"):
                await late
            web.ending = False
            loaded.clear()
            waiting = await opening()
            await web.close()
            with pytest.raises(Refused, match="the server is ending"):
                await waiting

    run(main())
    assert caplog.text == ""


def test_a_session_that_does_not_end_keeps_no_server(live, monkeypatch, caplog):
    """Whatever keeps it, such as a player whose connection is never closed."""
    monkeypatch.setattr("serve.web.sessions.END_SECONDS", 0.2)

    class Player:
        async def close(self):
            await asyncio.Event().wait()

    async def main():
        async with Opened(live) as web:
            session = await web.open("tiny")
            session.peer = Player()

    run(main())
    assert [record.getMessage() for record in caplog.records] == ["a session does not end"]


@pytest.mark.parametrize(
    ("rate", "fps"), [(44100, Fraction(30000, 1001)), (48000, Fraction(25)), (8000, Fraction(30))]
)
def test_opus_has_the_sound_s_time_for_long(rate, fps):
    """Three minutes: the last packet ends where the sound ends, and a click is where it was."""
    stream, count = OpusStream(rate, 1), 180 * rate
    first = 7 * rate + 13
    sound = np.zeros((1, count), np.float32)
    click = count - rate // 2
    sound[0, click : click + rate // 100] = 0.5
    packets, step = [], int(rate / fps)
    for begin in range(0, count, step):
        packets += stream.encode(sound[:, begin : begin + step], first + begin)
    times = np.array([time for time, _ in packets])
    origin = round(first * 48000 / rate)
    assert times[0] == origin - 312 and (np.diff(times) == 960).all()
    assert 0 <= origin + 180 * 48000 - 312 - (times[-1] + 960) < 960 + 480
    decoder, heard = av.CodecContext.create("libopus", "r"), []
    for _, data in packets[-60:]:
        heard += [f.to_ndarray().reshape(-1, 2)[:, 0] for f in decoder.decode(av.Packet(data))]
    samples = np.abs(np.concatenate(heard).astype(float))
    onset = times[-60] + int(np.flatnonzero(samples > samples.max() / 2)[0])
    assert abs(onset - origin - click * 48000 / rate) < 100  # 2 ms


def test_opus_of_sound_beyond_full_scale():
    """It is clipped: not all decoders can take it (libopus, `opus_encode_float`)."""
    loud = 3 * voice(1, 9600)[None]
    made, expected = (OpusStream(48000, 1).encode(x, 0) for x in (loud, loud.clip(-1, 1)))
    assert np.abs(loud).max() > 1 and made == expected and len(made) > 5


def test_an_hour_of_pieces():
    """Sound and picture that sinks get do not drift apart, and nothing is kept: a session of 24 kHz
    and 29.97 frames a second, of which the pieces are made by nothing."""
    fps, rate, count = Fraction(30000, 1001), 24000, 107_893
    silent = [np.zeros((1, n), np.float32) for n in (800, 801)]

    class Session:
        """What a session of the engine is to ours."""

        sample_rate, channels, counts, closed = (
            rate,
            1,
            SimpleNamespace(late=0, skipped=0, underruns=0),
            False,
        )

        def __init__(self):
            self.fps = fps

        async def __aiter__(self):
            for number in range(count):
                samples = rate * (number + 1) * 1001 // 30000 - rate * number * 1001 // 30000
                yield SimpleNamespace(
                    number=number, time=number / fps, frames=(), sound=silent[samples - 800],
                    speaking=False, end=False,
                )  # fmt: skip
                if not number % 500:
                    await asyncio.sleep(0)

        def close(self):
            self.closed = True

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

    class Counting(Kept):
        samples, worst, last = 0, Fraction(0), -1

        def __init__(self):
            super().__init__()
            self.given = deque(maxlen=50_000)

        def put(self, piece):
            assert piece.number == self.last + 1
            self.last = piece.number
            self.worst = max(self.worst, abs(piece.time - Fraction(self.samples, rate)))
            self.samples += piece.sound.shape[1]
            self.given.append(weakref.ref(piece))

    async def main():
        served = SimpleNamespace(name="x", avatar=SimpleNamespace(height=2, width=2))
        session = module.WebSession(
            1, Session(), served, pool=None, metrics=FakeMetrics(), voice=None, clock="wall",
            most_seconds=1e6, bitrate=1,
        )  # fmt: skip
        sinks = [Counting(), Counting()]
        for sink in sinks:
            session.attach(sink)
        await session.run()
        return sinks

    for sink in run(main()):
        assert sum(ref() is not None for ref in sink.given) < 5
        assert sink.last == count - 1 and sink.worst < Fraction(1, rate)
