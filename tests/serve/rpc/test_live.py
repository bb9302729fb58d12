"""`Live`: pieces are the session's, interruptions, limits, and ends that leave nothing."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import av
import grpc
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import serve.rpc.viseme
from engine.live import Piece
from serve.rpc.protos import viseme_pb2 as pb
from tests.engine.live.stage import until_end, voice
from tests.engine.tiny import ENVIRONMENT
from tests.serve.rpc.server import FLUSH, INTERRUPT, opening, pcm, refusal, run, serving

S16, F32 = pb.SAMPLE_FORMAT_S16, pb.SAMPLE_FORMAT_F32
TAKEN = {"clock": pb.CLOCK_TAKEN, "picture": pb.PICTURE_RGB}


def speech(seconds: float, seed: int = 1, rate: int = 16000) -> np.ndarray:
    return voice(seed, int(seconds * rate))


async def pieces_of(call) -> list[pb.Piece]:
    return [message.piece async for message in call if message.HasField("piece")]


async def first(call, wanted: str, count: int = 1) -> list:
    """Read up to the last of so many messages of a kind."""
    found = []
    async for message in call:
        if message.WhichOneof("response") == wanted:
            found.append(getattr(message, wanted))
            if len(found) == count:
                return found
    raise AssertionError(f"the call ended after {len(found)} of {wanted}")


def as_frames(pieces: list[pb.Piece]) -> torch.Tensor:
    pixels = [np.frombuffer(piece.picture, np.uint8).reshape(96, 80, 3) for piece in pieces]
    return torch.from_numpy(np.stack(pixels))


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "channels", "format"), [(16000, 1, F32), (24000, 2, S16), (44100, 1, S16)]
)
def test_pieces_are_those_of_a_session(live, rate, channels, format):
    """Pictures and sound, whatever way the speech comes, of two utterances."""
    parts = [speech(1.3, seed, rate) for seed in range(1, channels + 1)]
    sound = np.stack(parts)
    if format == S16:
        sound = np.rint(sound * 32767).astype(np.int16)
    cuts = [0, 1, 700, rate // 2, rate // 2 + 3, sound.shape[1]]

    async def talk(server):
        call = server.stub.Live()
        options = {"sample_rate": rate, "channels": channels, "sample_format": format}
        await call.write(opening(**TAKEN, **options, loop="wrap", start_frame=2))
        opened = (await first(call, "opened"))[0]
        for _ in range(2):
            for begin, end in pairwise(cuts):
                await call.write(pcm(np.ascontiguousarray(sound[:, begin:end].T)))
            await call.write(FLUSH)
        await call.done_writing()
        return opened, await pieces_of(call)

    async def main():
        async with serving({"tiny": live}) as server:
            return await talk(server)

    opened, pieces = run(main())
    assert (opened.width, opened.height, opened.fps_numerator, opened.fps_denominator) == (
        80,
        96,
        25,
        1,
    )
    assert (opened.sample_rate, opened.channels, opened.sample_format) == (rate, channels, format)
    assert opened.prebuffer == pytest.approx(0.45) and opened.sessions == 1
    expected = []
    with live.open(
        sample_rate=rate, channels=channels, clock="taken", loop="wrap", start_frame=2
    ) as session:
        for _ in range(2):
            session.push(sound)
            session.flush()
        expected = until_end(session) + until_end(session)
    assert len(pieces) == len(expected) > 60
    assert torch.equal(as_frames(pieces), torch.cat([piece.frames for piece in expected]))
    type = np.int16 if format == S16 else np.float32
    for piece, other in zip(pieces, expected, strict=True):
        got = np.frombuffer(piece.sound, type).reshape(-1, channels).T
        scale = 32768 if format == S16 else 1
        assert np.array_equal(got.astype(np.float32) / scale, other.sound)
        assert (piece.number, piece.speaking, piece.utterance_end, piece.keyframe) == (
            other.number, other.speaking, other.end, True,
        )  # fmt: skip
        assert piece.time == float(other.time) and Fraction(piece.number, 25) == other.time
    whole = b"".join(piece.sound for piece in pieces)
    assert np.ascontiguousarray(sound.T).tobytes() in whole


def test_pieces_are_those_of_a_render(live):
    """Except for the last ones, which hear the silence after the speech."""
    sound = speech(2)

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(**TAKEN, sample_format=F32))
            await call.write(pcm(sound))
            await call.done_writing()
            pieces = await pieces_of(call)
            assert server.metrics.sums["frames", "tiny", "live"] == len(pieces) == 50
            return pieces

    rendered = torch.cat(list(live.pipeline.render(torch.from_numpy(sound))))
    frames = as_frames(run(main()))
    assert torch.equal(frames[: len(rendered) - 8], rendered[:-8])


def test_clients_get_their_own_frames(live):
    """Two at once, each as it would get alone."""

    async def talk(server, seed):
        call = server.stub.Live()
        await call.write(opening(**TAKEN, sample_format=F32))
        for part in np.array_split(speech(1.5, seed), 7):
            await call.write(pcm(part))
            await asyncio.sleep(0)
        await call.done_writing()
        return await pieces_of(call)

    async def main():
        async with serving({"tiny": live}) as server:
            alone = [await talk(server, seed) for seed in (1, 2)]
            return alone, await asyncio.gather(talk(server, 1), talk(server, 2))

    alone, together = run(main())
    assert together[0] != together[1]
    assert list(together) == alone


def test_in_real_time_silence_has_pieces_too(live):
    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(picture=pb.PICTURE_NONE))
            silent = await first(call, "piece", 3)
            await call.write(pcm(np.full(8000, 1000, np.int16)))
            await call.write(FLUSH)
            await call.done_writing()
            return silent, await pieces_of(call)

    silent, pieces = run(main())
    assert not any(any(piece.sound) or piece.speaking for piece in silent)
    numbers = [piece.number for piece in silent + pieces]
    assert numbers == list(range(len(numbers)))  # no gaps
    assert [piece.utterance_end for piece in pieces].index(True) == len(pieces) - 1
    assert all(piece.picture == b"" for piece in pieces)
    assert sum(piece.speaking for piece in pieces) == 13


# --- pictures ------------------------------------------------------------------------------------


def test_jpeg(live):
    async def main():
        async with serving({"tiny": live}) as server:
            for quality in (0, 20):
                call = server.stub.Live()
                await call.write(opening(clock=pb.CLOCK_TAKEN, jpeg_quality=quality))
                await call.write(pcm((speech(0.5) * 32767).astype(np.int16)))
                await call.done_writing()
                yield [piece.picture for piece in await pieces_of(call)]

    async def both():
        return [found async for found in main()]

    default, small = run(both())
    with live.open(clock="taken") as session:
        session.push((speech(0.5) * 32767).astype(np.int16))
        session.flush()
        expected = until_end(session)
    for data, piece in zip(default, expected, strict=True):
        file = io.BytesIO()
        Image.fromarray(piece.frames[0].numpy()).save(file, "jpeg", quality=75)
        assert data == file.getvalue()
    assert sum(map(len, small)) < sum(map(len, default)) / 2


def test_h264_can_be_decoded_after_interruptions_and_skipped_pictures(live, monkeypatch):
    """Every third picture is missing, as if it had been too late."""
    from serve.rpc import live as module

    count = module.LiveCall._count

    def skipping(self, piece):
        count(self, piece)
        if piece.number % 3 == 2:
            piece.frames = piece.frames[:0]

    monkeypatch.setattr(module.LiveCall, "_count", skipping)

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(clock=pb.CLOCK_TAKEN, picture=pb.PICTURE_H264))
            pieces = []
            for _ in range(4):
                await call.write(pcm((speech(1) * 32767).astype(np.int16)))
                pieces += await first(call, "piece", 7)
                await call.write(INTERRUPT)
            await call.done_writing()
            return pieces + await pieces_of(call)

    pieces = run(main())
    sent = [piece for piece in pieces if piece.picture]
    assert len(sent) < len(pieces) and {p.number % 3 for p in sent} == {0, 1}
    decoder = av.CodecContext.create("h264", "r")
    decoder.options = {"err_detect": "explode"}
    frames = []
    for piece in sent:
        frames += decoder.decode(av.Packet(piece.picture))
    frames += decoder.decode(None)
    assert len(frames) == len(sent) and not any(frame.is_corrupt for frame in frames)
    assert sent[0].keyframe and (frames[0].width, frames[0].height) == (80, 96)


# --- interruptions -------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [pb.CLOCK_WALL, pb.CLOCK_TAKEN])
def test_after_an_interruption_nothing_of_the_old_speech_comes(live, clock):
    """The old speech is positive, the new one negative."""

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(clock=clock, picture=pb.PICTURE_H264))
            await call.write(pcm(np.full(160_000, 900, np.int16)))
            await call.write(FLUSH)
            while not (await first(call, "piece"))[0].speaking:
                pass
            await call.write(INTERRUPT)
            await call.write(pcm(np.full(16_000, -900, np.int16)))
            await call.done_writing()
            messages = [message async for message in call]
            return messages, server.metrics.sums

    messages, _ = run(main())
    kinds = [message.WhichOneof("response") for message in messages]
    (at,) = (
        n for n, m in enumerate(messages)
        if kinds[n] == "event" and m.event.WhichOneof("event") == "interrupted"
    )  # fmt: skip
    before, after = messages[:at], [m.piece for m in messages[at:] if m.HasField("piece")]
    position = messages[at].event.interrupted.position
    assert after[0].time == pytest.approx(position)
    assert all(m.piece.time < position for m in before if m.HasField("piece"))
    assert not any(m.piece.utterance_end for m in before if m.HasField("piece"))
    for n, piece in enumerate(after):
        samples = np.frombuffer(piece.sound, np.int16)
        old = (samples > 0).nonzero()[0]
        # only the fade of 10 ms
        assert not len(old) or (n == 0 and old[-1] < 160)
        assert piece.speaking == bool((samples < 0).any())
    assert sum(piece.speaking for piece in after) == 25 and after[-1].utterance_end


def test_an_interruption_without_speech_is_answered(live):
    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(clock=pb.CLOCK_TAKEN))
            await call.write(INTERRUPT)
            assert (await first(call, "event"))[0].interrupted.position == 0
            await call.done_writing()
            assert await refusal(call) == (grpc.StatusCode.OK, "")

    run(main())


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "code", "line"),
    [
        ([], "INVALID_ARGUMENT", "the first message is empty; expected open"),
        ([FLUSH], "INVALID_ARGUMENT", "the first message is flush; expected open"),
        ([pb.LiveRequest()], "INVALID_ARGUMENT", "the first message is empty; expected open"),
        ([opening("nobody")], "NOT_FOUND", "model 'nobody' not configured"),
        ([opening("../etc\n")], "NOT_FOUND", "model '../etc\\n' not configured"),
        ([opening(sample_rate=7999)], "INVALID_ARGUMENT", "sample rate is 7999; expected 8000 to 192000"),
        ([opening(sample_rate=-1)], "INVALID_ARGUMENT", "sample rate is -1; expected 8000 to 192000"),
        ([opening(channels=3)], "INVALID_ARGUMENT", "channels is 3; expected 1 or 2"),
        ([opening(sample_format=7)], "INVALID_ARGUMENT", "sample format is 7; expected 1 (S16) or 2 (F32)"),
        ([opening(picture=9)], "INVALID_ARGUMENT", "picture is 9; expected 1 (JPEG), 2 (H264), 3 (RGB) or 4 (NONE)"),
        ([opening(clock=5)], "INVALID_ARGUMENT", "clock is 5; expected 1 (WALL) or 2 (TAKEN)"),
        ([opening(prebuffer=float("nan"))], "INVALID_ARGUMENT", "prebuffer is nan; expected 0 to 10 seconds"),
        ([opening(prebuffer=11)], "INVALID_ARGUMENT", "prebuffer is 11.0; expected 0 to 10 seconds"),
        ([opening(loop="once")], "INVALID_ARGUMENT", "loop is 'once'; expected one of: pingpong, wrap"),
        ([opening(start_frame=6)], "INVALID_ARGUMENT", "start frame is 6; expected 0 to 5"),
        ([opening(jpeg_quality=101)], "INVALID_ARGUMENT", "jpeg_quality is 101; expected 1 to 100, or 0 for the configured one"),
        ([opening(), opening()], "INVALID_ARGUMENT", "the session is open; expected pcm, flush or interrupt"),
        ([opening(), pb.LiveRequest()], "INVALID_ARGUMENT", "the message is empty; expected pcm, flush or interrupt"),
        ([opening(channels=2), pb.LiveRequest(pcm=b"123")], "INVALID_ARGUMENT", "pcm has 3 bytes; expected a multiple of 4, 2 x int16"),
        ([opening(), pcm(np.zeros(960_001, np.int16))], "INVALID_ARGUMENT", "pcm has 60.0 s; expected at most 60 s"),
        ([opening(sample_format=F32), pcm(np.array([0, np.nan], "<f4"))], "INVALID_ARGUMENT", "pcm has a sample of nan; expected -1 to 1"),
        ([opening(sample_format=F32), pcm(np.array([0, -1e9], "<f4"))], "INVALID_ARGUMENT", "pcm has a sample of -1e+09; expected -1 to 1"),
    ],
)  # fmt: skip
def test_what_is_refused(live, messages, code, line):
    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            for message in messages:
                await call.write(message)
            if not messages:
                await call.done_writing()
            return await refusal(call)

    assert run(main()) == (getattr(grpc.StatusCode, code), line)


def test_no_more_sessions_than_configured(live):
    async def main():
        async with serving({"tiny": live}, limits={"max_sessions": 1}) as server:
            one = server.stub.Live()
            await one.write(opening(clock=pb.CLOCK_TAKEN))
            opened = (await first(one, "opened"))[0]
            assert (opened.sessions, opened.capacity) == (1, 1)
            call = server.stub.Live()
            await call.write(opening())
            line = "1 sessions are open; expected fewer than 1"
            assert await refusal(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, line)
            await one.done_writing()
            assert await refusal(one) == (grpc.StatusCode.OK, "")
            again = server.stub.Live()
            await again.write(opening())
            await first(again, "piece")
            again.cancel()

    run(main())


def test_no_more_sessions_than_the_device_has_time_for(live, monkeypatch):
    monkeypatch.setattr(live, "capacity", lambda: 1)

    async def main():
        async with serving({"tiny": live}) as server:
            one = server.stub.Live()
            await one.write(opening())
            await first(one, "opened")
            call = server.stub.Live()
            await call.write(opening())
            line = (
                "1 sessions of this avatar are open, and cpu has time for 1 at 25 frames a second"
            )
            assert await refusal(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, line)
            one.cancel()

    run(main())


def test_speech_far_ahead(live, monkeypatch):
    """In real time it is refused, since an interruption would wait behind it; else it waits."""
    from serve import speech
    from serve.rpc import live as module

    monkeypatch.setattr(speech, "WAITING_SECONDS", 2.0)
    monkeypatch.setattr(speech, "MESSAGE_SECONDS", 1.0)
    monkeypatch.setattr(module, "MESSAGE_SECONDS", 1.0)
    convert, waiting = module.LiveCall._convert, []

    def noting(self, data):
        waiting.append(self._backlog.waiting)
        convert(self, data)

    monkeypatch.setattr(module.LiveCall, "_convert", noting)

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(picture=pb.PICTURE_NONE))
            for _ in range(4):
                await call.write(pcm(np.ones(16_000, np.int16)))
            code, line = await refusal(call)
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "s of speech wait to be shown; expected at most 2 s with what comes now" in line
            call = server.stub.Live()
            await call.write(opening(clock=pb.CLOCK_TAKEN, picture=pb.PICTURE_NONE))
            reading = asyncio.create_task(pieces_of(call))
            for _ in range(6):
                await call.write(pcm(np.ones(16_000, np.int16)))
            await call.done_writing()
            return await reading

    assert len(run(main())) == 150
    assert max(waiting) <= 32_000 and len(waiting) >= 8


# --- ends ----------------------------------------------------------------------------------------


async def speaking(server, **options):
    """A call in the middle of speech."""
    call = server.stub.Live(**options)
    await call.write(opening(sample_rate=24000))
    await call.write(pcm(np.full(24000 * 20, 1000, np.int16)))
    await first(call, "piece", 3)
    assert server.sessions() == 1
    return call


def test_a_cancelled_call_frees_its_session(live):
    async def main():
        async with serving({"tiny": live}) as server:
            (await speaking(server)).cancel()
            await server.until_free()
            assert len(asyncio.all_tasks()) < 10

    run(main())


def test_a_deadline_frees_the_session(live):
    async def main():
        async with serving({"tiny": live}) as server:
            call = await speaking(server, timeout=1.5)
            code, _ = await refusal(call)
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
            await server.until_free()

    run(main())


CLIENT = """
import sys, grpc, time
from serve.rpc.protos import viseme_pb2 as pb, viseme_pb2_grpc
def requests():
    yield pb.LiveRequest(open=pb.OpenSession(avatar="tiny"))
    yield pb.LiveRequest(pcm=bytes(64000))
    time.sleep(1000)
with grpc.insecure_channel(sys.argv[1]) as channel:
    for n, _ in enumerate(viseme_pb2_grpc.VisemeStub(channel).Live(requests())):
        if n == 3:
            print("talking", flush=True)
"""


def test_the_end_of_a_clients_process_frees_its_session(live):
    async def main():
        async with serving({"tiny": live}) as server:
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, server.address],
                stdout=subprocess.PIPE,
                env=ENVIRONMENT,
            )
            try:
                assert await asyncio.to_thread(client.stdout.readline) == b"talking\n"
                assert server.sessions() == 1
                os.kill(client.pid, signal.SIGKILL)
                await server.until_free()
            finally:
                client.kill()
                client.wait()
                client.stdout.close()

    run(main())


@pytest.mark.parametrize("opens", [True, False])
def test_a_client_that_says_nothing(live, opens):
    async def main():
        async with serving({"tiny": live}, limits={"idle_seconds": 0.3}) as server:
            call = server.stub.Live()
            if opens:
                await call.write(opening(picture=pb.PICTURE_NONE))
            return await refusal(call)

    lines = ["no message came for 0.3 s", "no message came, and nothing was spoken, for 0.3 s"]
    assert run(main()) == (grpc.StatusCode.ABORTED, lines[opens])


def test_a_client_that_opens_no_session(live, monkeypatch):
    """It keeps its place for less than the idle time."""
    monkeypatch.setattr(serve.rpc.viseme, "FIRST_SECONDS", 0.3)

    async def main():
        async with serving({"tiny": live}) as server:
            assert server.service._limits.idle_seconds == 60
            return await refusal(server.stub.Live())

    assert run(main()) == (grpc.StatusCode.ABORTED, "no message came for 0.3 s")


def test_a_client_that_listens_is_not_idle(live):
    """Speech of more than the idle time, and no message meanwhile."""

    async def main():
        async with serving({"tiny": live}, limits={"idle_seconds": 0.7}) as server:
            call = server.stub.Live()
            await call.write(opening(picture=pb.PICTURE_NONE))
            await call.write(pcm(np.ones(32_000, np.int16)))
            await call.write(FLUSH)
            ends = 0
            try:
                async for message in call:
                    ends += message.piece.utterance_end
            except grpc.aio.AioRpcError as error:
                return ends, error.code()

    assert run(main()) == (1, grpc.StatusCode.ABORTED)


def test_a_piece_at_the_moment_when_the_patience_ends(live):
    """The two tasks of a call go on in any order."""
    from serve.config import Limits, Output
    from serve.rpc.live import LiveCall, choice
    from tests.serve.rpc.server import FakeMetrics

    async def main():
        with live.open() as session:
            call = LiveCall(
                None, choice(pb.OpenSession(), Output()), SimpleNamespace(name="tiny"), session, None,
                idle_seconds=Limits().idle_seconds, metrics=FakeMetrics(), opened=None,
            )  # fmt: skip
            piece = Piece(0, None, np.zeros((1, 640), np.float32), None, True, False)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0) as call._patience:
                    try:
                        await asyncio.sleep(30)
                    finally:
                        call._count(piece)

    run(main())


def test_a_session_that_is_too_long(live):
    async def main():
        async with serving({"tiny": live}, limits={"max_session_seconds": 0.5}) as server:
            return await refusal(await speaking(server))

    assert run(main()) == (grpc.StatusCode.ABORTED, "the session was 0.5 s long, the most")


def test_the_end_of_the_server(live):
    async def main():
        async with serving({"tiny": live}) as server:
            call = await speaking(server)
            ended = asyncio.create_task(refusal(call))
            await server.service.close()
            late = server.stub.Live()
            await late.write(opening())
            return await ended, await refusal(late)

    assert run(main()) == ((grpc.StatusCode.UNAVAILABLE, "the server is ending"),) * 2


def test_an_avatar_that_is_unloaded(live):
    async def main():
        async with serving({"tiny": live}) as server:
            call = await speaking(server)
            live.scheduler.close_sessions(live._renderer)
            return await refusal(call)

    line = "the avatar was unloaded; open another session"
    assert run(main()) == (grpc.StatusCode.UNAVAILABLE, line)


def test_a_network_that_fails(live, monkeypatch):
    from engine.errors import InputError

    async def main():
        async with serving({"tiny": live}) as server:
            call = await speaking(server)
            live.scheduler.close_sessions(live._renderer, InputError("generator returned NaN"))
            return await refusal(call)

    assert run(main()) == (grpc.StatusCode.ABORTED, "generator returned NaN")


def test_an_encoder_that_fails(live, monkeypatch):
    """Which is not a mistake of the client."""
    from engine.errors import InputError
    from serve.rpc import live as module

    def fail(*_, **__):
        raise InputError("FFmpeg cannot open libx264 for 80 x 96")

    async def main():
        async with serving({"tiny": live}) as server:
            for name in ("__init__", "encode"):
                with monkeypatch.context() as patch:
                    patch.setattr(module.H264Encoder, name, fail)
                    call = server.stub.Live()
                    await call.write(opening(picture=pb.PICTURE_H264))
                    yield await refusal(call)

    async def both():
        return [found async for found in main()]

    line = "FFmpeg cannot open libx264 for 80 x 96"
    assert run(both()) == [(grpc.StatusCode.ABORTED, line)] * 2


def test_avatars(live, monkeypatch):
    monkeypatch.setattr(live, "capacity", lambda: 5)  # on a busy machine it is less

    async def main():
        async with serving({"tiny": live}, ("other",), limits={"max_sessions": 2}) as server:
            call = await speaking(server)
            found = await server.stub.ListAvatars(pb.ListAvatarsRequest())
            call.cancel()
            return found.avatars

    one, other = run(main())
    assert (one.name, one.loaded, one.width, one.height, one.fps) == ("tiny", True, 80, 96, 25)
    assert (one.sessions, one.capacity) == (1, 2)
    assert (other.name, other.loaded, other.width, other.capacity) == ("other", False, 0, 0)


# --- clients that read slowly --------------------------------------------------------------------


def test_a_client_that_reads_nothing(live, monkeypatch):
    """Few frames are made for it, its session is freed, and it is told when it reads."""
    from serve.rpc import calls

    monkeypatch.setattr(calls, "WRITE_SECONDS", 0.5)

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(**TAKEN))
            for _ in range(2):
                await call.write(pcm(np.ones(16_000 * 60, np.int16)))
            await call.done_writing()
            async with asyncio.timeout(30):
                while not server.metrics.sums["frames", "tiny", "live"] or server.sessions():
                    await asyncio.sleep(0.01)
            assert server.metrics.sums["frames", "tiny", "live"] < 1000  # of 3000
            assert server.places.sessions() == {"tiny": 1}  # as long as the call is there
            return await refusal(call)

    assert run(main()) == (grpc.StatusCode.ABORTED, "nothing was read for 0.5 s")


def test_a_client_that_stops_reading_for_a_while_loses_pictures_only(live):
    sound = speech(4, rate=192_000)

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            options = {"sample_rate": 192_000, "sample_format": F32, "picture": pb.PICTURE_RGB}
            await call.write(opening(**options))
            await call.write(pcm(sound))
            await call.done_writing()
            pieces = await first(call, "piece", 2)
            (state,) = live.scheduler._sessions
            async with asyncio.timeout(40):
                while state.counts.skipped < 5:
                    assert sum(len(piece.frames) for piece in list(state.queue)) <= 9
                    await asyncio.sleep(0.01)
            messages = [message async for message in call]
            pieces += [message.piece for message in messages if message.HasField("piece")]
            return pieces, messages, server.metrics.sums["skipped", "tiny"]

    pieces, messages, counted = run(main())
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    skipped = [m.event.skipped.total for m in messages if m.event.HasField("skipped")]
    assert skipped[-1] == counted == sum(not piece.picture for piece in pieces) >= 5
    assert sound.tobytes() in b"".join(piece.sound for piece in pieces)


# --- anything ------------------------------------------------------------------------------------

messages_of_a_client = st.lists(
    st.one_of(
        st.tuples(st.just("pcm"), st.integers(0, 9000)),
        st.tuples(st.sampled_from(["flush", "interrupt", "read"]), st.integers(1, 12)),
    ),
    max_size=12,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(messages=[("pcm", 9000), ("pcm", 6305), ("interrupt", 4), ("pcm", 388), ("flush", 12)])
@example(messages=[("pcm", 1), ("interrupt", 1), ("flush", 1), ("pcm", 640), ("flush", 1)])
@given(messages=messages_of_a_client)
def test_any_order_of_messages(live, messages):
    """Every call ends with OK; every utterance that was not interrupted is heard as a whole."""
    utterance = []  # what must be heard: pushed since the last interruption

    async def main():
        nonlocal utterance
        async with serving({"tiny": live}) as server:
            call = server.stub.Live()
            await call.write(opening(clock=pb.CLOCK_TAKEN, picture=pb.PICTURE_H264))
            waiting, got, level = 0, [], 0
            for kind, amount in messages:
                if kind == "pcm":
                    level += 1
                    utterance.append(np.full(amount, level, np.int16))
                    waiting += amount
                    await call.write(pcm(utterance[-1]))
                elif kind == "flush":
                    await call.write(FLUSH)
                elif kind == "interrupt":
                    utterance, waiting = [], 0
                    await call.write(INTERRUPT)
                elif waiting > 16_000:
                    got += await first(call, "piece")
            await call.done_writing()
            rest = [message async for message in call]
            return got, rest

    got, rest = run(main())
    pieces = got + [message.piece for message in rest if message.HasField("piece")]
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    samples = np.frombuffer(b"".join(piece.sound for piece in pieces), np.int16)
    expected = np.concatenate([np.empty(0, np.int16), *utterance])
    if len(expected):
        # What was interrupted fades out within 10 ms, over speech that follows at once.
        fade, tail = 160, samples[samples >= expected[0]]
        assert len(tail) == len(expected)
        assert np.array_equal(tail[fade:], expected[fade:])
        assert (tail[:fade] - expected[:fade] < expected[0]).all()
        assert pieces[-1].utterance_end
