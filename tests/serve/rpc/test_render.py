"""`Render`: frames are `Pipeline.render`'s; files, formats, limits, and ends that leave nothing."""

import asyncio
import io
import shutil
import tempfile
import threading
from fractions import Fraction
from pathlib import Path

import av
import grpc
import numpy as np
import pytest
import torch
from PIL import Image

import kernels
from engine.errors import InputError
from engine.media.speech import read_speech
from engine.media.video import Video
from serve.rpc import render, viseme
from serve.rpc.protos import viseme_pb2 as pb
from tests.engine.live.stage import encode, expected_audio, voice
from tests.engine.tiny import write_speech
from tests.serve.rpc.server import refusal, run, serving

RGB, JPEG, MP4 = pb.RENDER_FORMAT_RGB, pb.RENDER_FORMAT_JPEG, pb.RENDER_FORMAT_MP4
S16, F32 = pb.SAMPLE_FORMAT_S16, pb.SAMPLE_FORMAT_F32


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """No file in the temporary folder, no thread."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    threads = set(threading.enumerate())
    yield
    assert not list(folder.iterdir())
    left = {thread.name for thread in set(threading.enumerate()) - threads}
    assert not {name for name in left if name.startswith("viseme")}


async def rendered(server, **fields) -> list[pb.RenderResponse]:
    request = pb.RenderRequest(avatar="tiny", **fields)
    return [message async for message in server.stub.Render(request)]


def once(live, **fields) -> list[pb.RenderResponse]:
    async def main():
        async with serving({"tiny": live}) as server:
            return await rendered(server, **fields)

    return run(main())


def as_frames(messages: list[pb.RenderResponse]) -> torch.Tensor:
    opened, *others = messages
    pictures, number = [], 0
    for message in others:
        assert message.frames.first == number
        pictures += message.frames.frames
        number = len(pictures)
    assert len(pictures) == opened.opened.frames
    shape = opened.opened.height, opened.opened.width, 3
    return torch.from_numpy(np.stack([np.frombuffer(p, np.uint8).reshape(shape) for p in pictures]))


@pytest.mark.parametrize("count", [3000, 3001, 7000, 8321, 40_000])
@pytest.mark.parametrize("options", [{}, {"loop": "wrap", "start_frame": 4}])
def test_frames_are_those_of_the_pipeline(live, count, options):
    """All of them, whatever of the speech is there at the end."""
    sound = voice(3, count)
    messages = once(live, pcm=pb.Pcm(samples=sound.tobytes(), format=F32), format=RGB, **options)
    expected = torch.cat(list(live.pipeline.render(torch.from_numpy(sound), **options)))
    assert torch.equal(as_frames(messages), expected)


@pytest.mark.parametrize("fps", [Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(120)])
@pytest.mark.parametrize("count", [24_000, 24_199, 26_500])
def test_the_tail_is_what_hears_silence_in_a_session(fps, count):
    """No frame before it does, at any rate."""
    sound = voice(6, count)
    mel = kernels.log_mel(torch.from_numpy(sound))
    features = torch.from_numpy(encode(kernels.mel_windows(mel, fps=float(fps)).numpy()))
    count = len(features) + 2
    rendered = kernels.feature_windows(features, start=0, count=count).numpy()
    live = expected_audio(sound, count, fps)
    same = [np.array_equal(one, other) for one, other in zip(rendered, live, strict=True)]
    assert all(same[: -render.TAIL]) and not all(same[-10:])


def test_long_speech_comes_to_the_session_in_parts(live, monkeypatch):
    monkeypatch.setattr(render, "AHEAD", 1.0)
    sound = voice(4, 100_000)
    messages = once(live, pcm=pb.Pcm(samples=sound.tobytes(), format=F32), format=RGB)
    expected = torch.cat(list(live.pipeline.render(torch.from_numpy(sound))))
    assert torch.equal(as_frames(messages), expected)


def save(path: Path, sound: np.ndarray, rate: int, codec: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "stereo" if len(sound) == 2 else "mono"
        frame = av.AudioFrame.from_ndarray(sound, "fltp", stream.layout.name)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.codec_context.format.name, stream.layout.name, rate)
        for part in resampler.resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [
        ("a.wav", "pcm_s16le", 44100, 2),
        ("a.mp3", "libmp3lame", 24000, 1),
        ("a.mp4", "aac", 48000, 2),
    ],
)
def test_files(live, tmp_path, name, codec, rate, channels):
    sound = np.stack([voice(n, rate) for n in range(channels)])
    path = save(tmp_path / name, sound, rate, codec)
    messages = once(live, file=path.read_bytes(), format=RGB)
    expected = torch.cat(list(live.pipeline.render(read_speech(path))))
    assert torch.equal(as_frames(messages), expected)


def test_pcm_is_as_a_file_of_it(live, tmp_path):
    """At another rate, in stereo."""
    sound = (np.stack([voice(1, 44100), voice(2, 44100)]) * 32767).astype(np.int16)
    pcm = pb.Pcm(samples=sound.T.tobytes(), sample_rate=44100, channels=2)
    path = save(tmp_path / "a.wav", sound.astype(np.float32) / 32768, 44100, "pcm_s16le")
    expected = torch.cat(list(live.pipeline.render(read_speech(path))))
    assert torch.equal(as_frames(once(live, pcm=pcm, format=RGB)), expected)


def test_jpeg(live):
    sound = voice(5, 8000)
    pcm = pb.Pcm(samples=sound.tobytes(), format=F32)
    opened, *messages = once(live, pcm=pcm, format=JPEG, jpeg_quality=90)
    frames = torch.cat(list(live.pipeline.render(torch.from_numpy(sound))))
    files = [file for message in messages for file in message.frames.frames]
    assert len(files) == len(frames) == opened.opened.frames
    for data, frame in zip(files, frames, strict=True):
        file = io.BytesIO()
        Image.fromarray(frame.numpy()).save(file, "jpeg", quality=90)
        assert data == file.getvalue()


@pytest.mark.parametrize("kind", ["file", "pcm"])
def test_mp4(live, tmp_path, monkeypatch, kind):
    """The picture is the render's, the sound the speech's own, at its own rate."""
    monkeypatch.setattr(render, "CHUNK", 5000)
    monkeypatch.setattr(render, "PROGRESS_SECONDS", 0.0)
    rate = 24000
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate).astype(np.float32)
    samples = np.rint(tone * 32767).astype(np.int16)
    if kind == "file":
        path = save(tmp_path / "a.wav", samples[None].astype(np.float32) / 32768, rate, "pcm_s16le")
        fields = {"file": path.read_bytes()}
    else:
        fields = {"pcm": pb.Pcm(samples=samples.tobytes(), sample_rate=rate)}
    opened, *messages = once(live, **fields)
    parts = [m.mp4 for m in messages if m.HasField("mp4")]
    assert len(parts) > 1
    made = [m.progress.frames for m in messages if m.HasField("progress")]
    assert made == list(range(1, opened.opened.frames + 1))
    video = tmp_path / "out.mp4"
    video.write_bytes(b"".join(parts))
    frames = torch.cat(list(live.pipeline.render(read_speech_of(samples, rate, tmp_path))))
    found = Video(video)
    pictures = np.stack([found.pixels(frame) for _, frame in found.frames()])
    assert abs(len(pictures) - len(frames)) <= 1 and found.fps == 25
    n = min(len(pictures), len(frames))
    luma = np.array([0.2126, 0.7152, 0.0722])  # colors have half the pixels, and this is noise
    error = np.abs((pictures[:n] - frames[:n].numpy().astype(float)) @ luma).mean(axis=(1, 2))
    others = np.abs((pictures[1:n] - frames[: n - 1].numpy().astype(float)) @ luma).mean()
    assert error.max() < 8 and others > 16
    with av.open(str(video)) as container:
        assert container.streams.audio[0].rate == rate
        heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    heard = heard[: len(tone)]
    spectrum = np.abs(np.fft.rfft(heard[4000:28000]))
    assert spectrum.argmax() == 440 and heard.std() == pytest.approx(tone.std(), rel=0.02)


def read_speech_of(samples: np.ndarray, rate: int, folder: Path) -> torch.Tensor:
    sound = samples[None].astype(np.float32) / 32768
    return read_speech(save(folder / "own.wav", sound, rate, "pcm_s16le"))


# --- what is refused -----------------------------------------------------------------------------

SECOND = pb.Pcm(samples=bytes(32000))


@pytest.mark.parametrize(
    ("fields", "code", "line"),
    [
        ({}, "INVALID_ARGUMENT", "the request has no speech; expected pcm or file"),
        ({"pcm": SECOND, "avatar": "nobody"}, "NOT_FOUND", "model 'nobody' not configured"),
        ({"pcm": pb.Pcm()}, "INVALID_ARGUMENT", "the request has no speech; expected pcm or file"),
        ({"pcm": pb.Pcm(samples=b"1")}, "INVALID_ARGUMENT", "pcm has 1 bytes; expected a multiple of 2, 1 x int16"),
        ({"pcm": pb.Pcm(samples=bytes(5998))}, "INVALID_ARGUMENT", "speech is too short: 2999 samples at 16 kHz (0.187 s); expected at least 3000 (0.19 s)"),
        ({"pcm": pb.Pcm(samples=bytes(64002))}, "INVALID_ARGUMENT", "pcm has 2.0 s; expected at most 2 s"),
        ({"pcm": SECOND, "format": 9}, "INVALID_ARGUMENT", "format is 9; expected 1 (MP4), 2 (JPEG) or 3 (RGB)"),
        ({"pcm": SECOND, "loop": "x"}, "INVALID_ARGUMENT", "loop is 'x'; expected one of: pingpong, wrap"),
        ({"pcm": SECOND, "start_frame": -1}, "INVALID_ARGUMENT", "start frame is -1; expected 0 to 5"),
        ({"pcm": SECOND, "jpeg_quality": -1}, "INVALID_ARGUMENT", "jpeg_quality is -1; expected 1 to 100, or 0 for the configured one"),
        ({"file": b""}, "INVALID_ARGUMENT", "the request has no speech; expected pcm or file"),
        ({"file": bytes(50_001)}, "INVALID_ARGUMENT", "file has 0.1 MB; expected at most 0.05"),
        ({"file": b"no sound" * 99}, "INVALID_ARGUMENT", "file cannot be read as audio or video: Invalid data found when processing input"),
    ],
)  # fmt: skip
def test_what_is_refused(live, fields, code, line):
    async def main():
        limits = {"max_speech_seconds": 2, "max_upload_mb": 0.05}
        async with serving({"tiny": live}, limits=limits) as server:
            request = pb.RenderRequest(**{"avatar": "tiny"} | fields)
            return await refusal(server.stub.Render(request))

    assert run(main()) == (getattr(grpc.StatusCode, code), line)


def long_request(format: int = RGB) -> pb.RenderRequest:
    return pb.RenderRequest(avatar="tiny", pcm=pb.Pcm(samples=bytes(3_200_000)), format=format)


async def first_frame(call) -> None:
    async for message in call:
        if message.HasField("frames") or message.HasField("progress"):
            return


def test_no_more_renders_than_configured(live):
    async def main():
        async with serving({"tiny": live}, limits={"max_renders": 1}) as server:
            one = server.stub.Render(long_request())
            await first_frame(one)
            found = await refusal(server.stub.Render(long_request()))
            one.cancel()
            await server.until_free()
            await rendered(server, pcm=SECOND)
            return found

    line = "1 renders run; expected fewer than 1"
    assert run(main()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, line)


@pytest.mark.parametrize("format", [RGB, MP4])
def test_a_cancelled_render_leaves_nothing(live, monkeypatch, format):
    """Its folder is made and removed in threads, because a disk may be slow."""
    monkeypatch.setattr(render, "PROGRESS_SECONDS", 0.0)
    where: dict[str, set[str]] = {"mkdir": set(), "rmtree": set()}

    def watch(owner, name):
        function = getattr(owner, name)

        def watched(path, *arguments, **options):
            if "viseme-render-" in str(path):
                where[name].add(threading.current_thread().name)
            return function(path, *arguments, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(Path, "mkdir")
    watch(shutil, "rmtree")

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Render(long_request(format))
            await first_frame(call)
            assert server.sessions() == 1
            call.cancel()
            await server.until_free()
            timed = server.stub.Render(long_request(format), timeout=0.5)
            code, _ = await refusal(timed)
            assert code == grpc.StatusCode.DEADLINE_EXCEEDED
            await server.until_free()

    run(main())
    for names in where.values():
        assert names and all(name.startswith("viseme-render") for name in names)


def test_who_cancels_a_render_waits_for_its_thread(live, monkeypatch):
    """So that nothing is closed while it is in use."""
    begun, release = threading.Event(), threading.Event()

    def write(self, frames):
        begun.set()
        assert release.wait(30)

    monkeypatch.setattr(render.VideoWriter, "write", write)

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Render(long_request(MP4))
            reading = asyncio.create_task(refusal(call))
            assert await asyncio.to_thread(begun.wait, 30)
            call.cancel()
            await asyncio.sleep(0.3)  # time to do it wrong
            found = [path.name for path in Path(tempfile.tempdir).rglob("*.wav")]
            running = server.service._renders
            release.set()
            await asyncio.gather(reading, return_exceptions=True)
            return found, running

    assert run(main()) == (["speech.wav"], 1)


def test_the_end_of_the_server(live):
    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Render(long_request())
            await first_frame(call)
            ended = asyncio.create_task(refusal(call))
            await server.service.close()
            return await ended

    assert run(main()) == (grpc.StatusCode.UNAVAILABLE, "the server is ending")


def test_the_end_of_the_server_while_a_thread_works_for_a_call(live, monkeypatch, caplog):
    """The thread is waited for, and other calls are answered meanwhile."""
    begun, answered = threading.Event(), threading.Event()
    waited = []

    def write(self, frames):
        begun.set()
        waited.append(answered.wait(10))

    monkeypatch.setattr(render.VideoWriter, "write", write)
    monkeypatch.setattr(viseme, "LEAVE_SECONDS", 0.1)

    async def main():
        async with serving({"tiny": live}) as server:
            call = asyncio.create_task(refusal(server.stub.Render(long_request(MP4))))
            assert await asyncio.to_thread(begun.wait, 30)
            closing = asyncio.create_task(server.service.close())
            await asyncio.wait([closing], timeout=0.5)
            assert not closing.done()
            other = await refusal(server.stub.Render(long_request()))
            answered.set()
            await closing
            assert not server.service._renders
            return await call, other

    ended, other = run(main())
    assert other == (grpc.StatusCode.UNAVAILABLE, "the server is ending")
    assert ended[0] == grpc.StatusCode.UNAVAILABLE
    assert waited == [True] and not [r for r in caplog.records if r.name.startswith("serve")]


@pytest.mark.parametrize("where", ["session", "tail"])
def test_a_network_that_fails(live, monkeypatch, where):
    def fail(*_, **__):
        raise InputError("generator returned NaN")

    async def main():
        async with serving({"tiny": live}) as server:
            if where == "tail":
                monkeypatch.setattr(live.pipeline, "render", fail)
                return await refusal(
                    server.stub.Render(pb.RenderRequest(avatar="tiny", pcm=SECOND))
                )
            call = server.stub.Render(long_request())
            await first_frame(call)
            live.scheduler.close_sessions(live._renderer, InputError("generator returned NaN"))
            return await refusal(call)

    assert run(main()) == (grpc.StatusCode.ABORTED, "generator returned NaN")


def test_live_sessions_go_first(live):
    """While a render runs, a session in real time gets its pictures."""

    async def main():
        async with serving({"tiny": live}) as server:
            call = server.stub.Render(long_request(MP4))
            reading = asyncio.create_task(refusal(call))
            with live.open() as session:
                numbers = []
                async for piece in session:
                    numbers.append(len(piece.frames))
                    if len(numbers) == 25:
                        break
            call.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert all(numbers)

    run(main())


def test_the_demo_file(live, tmp_path):
    """Whose speech is read once: by a process that has no other file."""
    path = write_speech(tmp_path / "speech.wav", 1.0)
    opened, *_ = once(live, file=path.read_bytes(), format=JPEG)
    assert opened.opened.frames == live.pipeline.frame_count(read_speech(path))
