"""The command: its files, its output, and its errors."""

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from engine import Avatar, Pipeline
from engine.device.host_copy import copy_to_host
from engine.media.speech import read_speech
from engine.render import _describe, main
from engine.render import render as render_file
from tests.conftest import DEMO, ROOT
from tests.engine import tiny
from tests.engine.files import silent_film, write_audio

RATE = 16000


@pytest.fixture(scope="module")
def audio(tmp_path_factory, speech):
    """0.6 s of speech in a file."""
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    wavfile.write(path, RATE, (speech[16000:25600].numpy() * 32767).astype(np.int16))
    return path


def render(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def test_the_mp4(native, audio, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert render("--avatar", native, "--audio", audio, "-o", out) == 0
    printed = capsys.readouterr()
    if not torch.cuda.is_available():  # which runtime, and why
        assert re.search(
            r"^shared: generator in ONNX Runtime [\d.]+, cpu, torch.float32 \(the default on a CPU\)$",
            printed.err,
            re.MULTILINE,
        )
    said = printed.out.strip().splitlines()
    assert said[-1].startswith(f"{out}: 14 frames, 0.56 s of video, ")
    for stage in ("read speech", "log_mel", "audio encoder", "face_input", "generator", "write"):
        assert stage in said[-1]

    with av.open(str(out)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.average_rate) == (500, 392, 25)  # 391 made even
        assert (sound.codec_context.name, sound.rate) == ("aac", RATE)
        times = [frame.pts * video.time_base for frame in container.decode(video)]
    assert [float(t) for t in times] == [i / 25 for i in range(14)]
    with av.open(str(out)) as container:
        heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    spoken = read_speech(audio).numpy()
    assert np.corrcoef(heard[: len(spoken)], spoken)[0, 1] > 0.95
    assert abs(len(heard) / RATE - 14 / 25) < 0.08 + 1024 / RATE
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_the_command_is_a_function(native, audio, tmp_path, capsys):
    out = tmp_path / "o.mp4"
    options = {"images": tmp_path / "frames", "image_format": "jpg", "device": "cpu"}
    summary = render_file(avatar=native, audio=audio, output=out, progress=False, **options)
    assert capsys.readouterr().out == ""
    assert (summary.output, summary.frames, summary.video_seconds) == (out, 14, 0.56)
    assert 0 < summary.render_seconds < summary.total_seconds
    assert list(summary.stages) == [
        "read speech", "log_mel", "windows", "audio encoder", "frames", "face_input", "generator",
        "composite", "write",
    ]  # fmt: skip
    assert str(summary).startswith(f"{out}: 14 frames, 0.56 s of video, ")
    assert " s in all (read speech " in str(summary)
    assert str(replace(summary, stages={})).endswith(" s in all")
    assert len(list((tmp_path / "frames").iterdir())) == 14 and out.exists()


def test_the_runtimes_are_printed():
    """Both are printed if they differ, and the memory of the buffers."""
    generator = SimpleNamespace(description="tensorrt 11, cuda", reason="generator.plan fits")
    encoder = SimpleNamespace(description="ONNX Runtime 2, cuda", reason="there is no plan")
    pipeline = SimpleNamespace(generator=generator, audio_encoder=encoder, buffer_bytes=3 << 28)
    assert _describe(pipeline) == (
        "generator in tensorrt 11, cuda (generator.plan fits), "
        "audio encoder in ONNX Runtime 2, cuda (there is no plan), 0.75 GiB of buffers"
    )
    pipeline = SimpleNamespace(generator=encoder, audio_encoder=encoder, buffer_bytes=0)
    assert _describe(pipeline) == "generator in ONNX Runtime 2, cuda (there is no plan)"


def test_the_demos_length(tmp_path, native, speech):
    """Both streams of a longer render have the same length, up to a frame and AAC's padding."""
    out = tmp_path / "out.mp4"
    assert render("--avatar", native, "--audio", DEMO / "speech.wav", "-o", out) == 0
    with av.open(str(out)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        frames = Pipeline(Avatar.load(native)).frame_count(speech)
        assert frames == int((len(speech) // 200 + 1 - 16) / 80 * 25) + 4
        assert video.frames == frames + 1  # the last one is repeated
        lengths = [float(stream.duration * stream.time_base) for stream in (video, sound)]
    assert abs(lengths[0] - len(speech) / RATE) <= 0.04
    assert 0 <= lengths[1] - len(speech) / RATE <= 1024 / RATE


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_frames(native, audio, tmp_path, kind):
    folder = tmp_path / "frames"
    folder.mkdir()  # an empty one may exist
    options = ["--frames", folder, "--frames-format", kind, "--mode", "direct", "--loop", "wrap"]
    options += ["--start-frame", 2, "--batch-size", 4, "--device", "cpu"]
    assert render("--avatar", native, "--audio", audio, "-o", tmp_path / "o.mp4", *options) == 0
    assert sorted(path.name for path in folder.iterdir()) == [f"{i:06}.{kind}" for i in range(14)]
    pipeline = Pipeline(Avatar.load(native))
    batches = pipeline.render(audio, mode="direct", loop="wrap", start_frame=2)
    first = next(batches)[0].numpy().astype(int)
    image = np.asarray(Image.open(folder / f"000000.{kind}")).astype(int)
    assert np.abs(image - first).mean() < (0.001 if kind == "png" else 2)


def test_jpeg(native, audio, tmp_path):
    """The frames equal those of --frames, as JPEG; a higher quality gives larger files."""
    sizes = []
    for quality in (60, 95):
        folder = tmp_path / f"q{quality}"
        options = ["--jpeg", folder, "--quality", quality, "--device", "cpu"]
        assert render("--avatar", native, "--audio", audio, "-o", tmp_path / "o.mp4", *options) == 0
        assert sorted(p.name for p in folder.iterdir()) == [f"{i:06}.jpg" for i in range(14)]
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
        first = next(Pipeline(Avatar.load(native)).render(audio))[0].numpy().astype(int)
        with Image.open(folder / "000000.jpg") as image:
            assert image.format == "JPEG"
            assert np.abs(np.asarray(image).astype(int) - first).mean() < 3
    assert sizes[0] < 0.7 * sizes[1]


def test_batches_on_the_host_are_the_batches():
    batches = [torch.full((2, 4, 4, 3), i, dtype=torch.uint8) for i in range(5)]
    pairs = list(copy_to_host(iter(batches)))
    assert all(pair[0] is batch for pair, batch in zip(pairs, batches, strict=True))
    assert all(np.shares_memory(pixels, frames.numpy()) for frames, pixels in pairs)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "picture"),
    [("a.mp3", "libmp3lame", 44100, False), ("a.m4a", "aac", 48000, False), ("a.mp4", "aac", 44100, True), ("a.flac", "flac", 8000, False)],
)  # fmt: skip
def test_any_audio(native, tmp_path, name, codec, rate, picture):
    t = np.arange(rate // 2) / rate
    samples = np.stack([np.sin(2 * np.pi * 200 * t), np.sin(2 * np.pi * 300 * t)]) * 0.3
    path = write_audio(tmp_path / name, samples, rate, codec, picture)
    assert render("--avatar", native, "--audio", path, "-o", tmp_path / "o.mp4") == 0
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.audio[0].channels == 2


def test_a_warning_is_one_line(own, audio, tmp_path, capsys):
    root = own.native()
    (root / "boxes.json").write_text("[[20, 30, 120, 130], [20, 30, 120, 130]]")
    assert render("--avatar", root, "--audio", audio, "-o", tmp_path / "o.mp4") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warnings == [
        "warning: avatar 'native' has 4 frames and 2 boxes; the first 2 of both are used"
    ]


# --- bad input -----------------------------------------------------------------------------------


def wav(samples):
    return lambda path: wavfile.write(path, RATE, samples.astype(np.float32))


def spoilt(value):
    samples = np.zeros(20000)
    samples[4321] = value
    return wav(samples)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("no audio"), "cannot be read as audio or video"),
        (wav(np.zeros(0)), "0 samples"),
        (
            wav(np.zeros(1600)),
            "too short: 1600 samples at 16 kHz (0.100 s); expected at least 3000 (0.19 s)",
        ),
        (spoilt(np.nan), "sample 4321 (0.270 s) of channel 0 is nan"),
        (spoilt(np.inf), "sample 4321 (0.270 s) of channel 0 is inf"),
        (silent_film, "no audio stream"),
    ],
)
def test_bad_speech(native, tmp_path, capsys, make, message):
    path = tmp_path / "speech.wav"
    make(path)
    before = set(tmp_path.iterdir())
    assert render("--avatar", native, "--audio", path, "-o", tmp_path / "o.mp4") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and message in said[-1] and str(path) in said[-1]
    assert len([line for line in said if "error" in line]) == 1
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--avatar", "nowhere"], "nowhere does not exist"),
        (["-o", "no/folder/o.mp4"], "cannot be written: No such file or directory"),
        (["-o", "/proc/o.mp4"], "/proc/o.mp4 cannot be written"),
        (["-o", "o.avi"], "does not end in .mp4"),
        (["--batch-size", "0"], "batch size is 0"),
        (["--start-frame", "99"], "start frame is 99; expected 0 to 11"),
        (["--generator", "no.onnx"], "no.onnx (generator) does not exist"),
        (["--runtime", "torch"], "cannot run in PyTorch; expected a checkpoint"),
        (["--frames", "."], "exists; expected a new name or an empty folder"),
        (["--frames", "/proc"], "/proc is a mount point; expected a new name or an empty folder"),
        (["--frames", "no/folder"], "cannot be created"),
        (["--jpeg", "."], "exists; expected a new name or an empty folder"),
        (["--jpeg", "images", "--quality", "0"], "quality is 0; expected 1 to 100"),
    ],
)
def test_bad_options(native, audio, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    arguments = ["--avatar", native, "--audio", audio, "-o", tmp_path / "o.mp4", *options]
    assert render(*arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ") and message in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu(native, audio, tmp_path, capsys):
    arguments = ["--avatar", native, "--audio", audio, "-o", tmp_path / "o.mp4", "--device", "cuda"]
    assert render(*arguments) == 2
    assert "PyTorch finds no CUDA GPU here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--loop", "bounce"],
        ["--mode", "x"],
        ["--batch-size", "x"],
        ["--frames", "a", "--jpeg", "b"],
    ],
)
def test_invalid_choices(native, audio, capsys, options):
    with pytest.raises(SystemExit) as caught:
        render("--avatar", native, "--audio", audio, "-o", "o.mp4", *options)
    (said,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and said.startswith("error: ") and options[1] in said


def test_inputs_are_not_overwritten(own, audio, tmp_path, capsys):
    root = own.native(video=True)
    film = root / "frames.mp4"
    spoken = write_audio(tmp_path / "speech.mp4", np.zeros((1, 9600)), RATE, "aac")
    for out, message in [(film, "is a file of the avatar"), (spoken, "is the speech itself")]:
        before = out.read_bytes()
        assert render("--avatar", root, "--audio", spoken, "-o", out) == 2
        assert message in capsys.readouterr().err and out.read_bytes() == before
    out = tmp_path / "o.mp4"
    assert render("--avatar", root, "--audio", spoken, "-o", out, "--frames", out) == 2
    assert "is the video and the folder of the images" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("target", ["empty", "nowhere"])
def test_a_link_as_the_folder_of_images(native, audio, tmp_path, capsys, monkeypatch, target):
    """A folder cannot replace it, which otherwise would be noticed only after the render."""
    monkeypatch.setattr("engine.render.Avatar.load", None)
    (tmp_path / "empty").mkdir()
    link = tmp_path / "link"
    link.symlink_to(target)
    options = ["-o", tmp_path / "o.mp4", "--frames", link]
    assert render("--avatar", native, "--audio", audio, *options) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"error: {link} is a link; expected a new name or an empty folder"
    assert {path.name for path in tmp_path.iterdir()} == {"empty", "link"} and link.is_symlink()


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("before o.mp4", "nothing was written"),
        ("after o.mp4", "{o} was written, {frames} not"),
        ("before frames", "{o} was written, {frames} not"),
        ("after frames", "{o} and {frames} were written"),
    ],
)
def test_ctrl_c_when_the_outputs_get_their_names(tmp_path, capsys, monkeypatch, at, said, existing):
    """The last thing that is said is true, also of files that were there before."""
    avatar = tiny.write_avatar(tmp_path / "avatar")
    audio = tiny.write_speech(tmp_path / "a.wav", 0.5)
    output, frames = tmp_path / "o.mp4", tmp_path / "frames"
    if existing:
        output.write_text("before")
        frames.mkdir()
    rename, moment = Path.replace, at.split()

    def interrupted_rename(partial, path):
        if moment == ["before", path.name]:
            os.kill(os.getpid(), signal.SIGINT)
        rename(partial, path)
        if moment == ["after", path.name]:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Path, "replace", interrupted_rename)
    options = ["--avatar", avatar, "--audio", audio, "-o", output, "--frames", frames]
    assert render(*options, "--device", "cpu") == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == "interrupted: " + said.format(o=output, frames=frames)
    is_new = output.exists() and output.read_bytes() != b"before"
    assert is_new == ("o.mp4" in line)
    assert (frames.exists() and any(frames.iterdir())) == line.endswith("were written")
    assert {path.name for path in tmp_path.iterdir()} <= {"avatar", "a.wav", "o.mp4", "frames"}


@pytest.mark.parametrize("place", ["engine.render.open_speech", "engine.render.VideoWriter.write"])
def test_ctrl_c_that_pyav_swallows(native, audio, tmp_path, capsys, monkeypatch, place):
    """What a signal's handler raises inside PyAV may be ignored, as here."""
    interrupted = threading.Event()

    def swallow(*_, **__) -> torch.Tensor:
        try:
            for _ in range(300):  # one that comes before the main thread waits is handled later
                os.kill(os.getpid(), signal.SIGINT)
                if interrupted.wait(timeout=0.1):
                    break
        except KeyboardInterrupt:
            pass
        return torch.zeros(16000)

    def handler(*_) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(place, swallow)
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert render("--avatar", native, "--audio", audio, "-o", tmp_path / "o.mp4") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted: nothing was written" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert not [t for t in threading.enumerate() if t.name.startswith("viseme-apart")]


def test_system_errors_are_one_line(native, audio, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.render.VideoWriter.write", full)
    assert render("--avatar", native, "--audio", audio, "-o", tmp_path / "o.mp4") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: No space left on device"
    assert render("--avatar", "x" * 300, "--audio", audio, "-o", tmp_path / "o.mp4") == 2
    assert "File name too long" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_middle_of_a_render(own, audio, tmp_path, capsys):
    """A damaged frame is noticed when it is decoded, after other frames were written."""
    root = own.native()
    path = root / "frames" / "00003.jpg"
    path.write_bytes(path.read_bytes()[:600])
    options = ["--frames", tmp_path / "frames", "--batch-size", 1]
    assert render("--avatar", root, "--audio", audio, "-o", tmp_path / "o.mp4", *options) == 2
    assert "00003.jpg cannot be read as an image" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["avatars"]


def test_help_describes_every_option():
    done = subprocess.run(
        [sys.executable, "-m", "engine.render", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in ("--avatar", "--audio", "--loop {pingpong,wrap}", "--runtime", "--frames DIR"):
        assert option in done.stdout


# --- precision -----------------------------------------------------------------------------------


@pytest.fixture
def plain(native, audio, tmp_path) -> list[object]:
    """The options of a render with networks that cost little."""
    cases = ROOT / "tests" / "cases"
    networks = ["--generator", cases / "meter.onnx", "--audio-encoder"]
    networks += [cases / "loudness_encoder.onnx", "--device", "cpu", "--no-progress"]
    return ["--avatar", native, "--audio", audio, "-o", tmp_path / "o.mp4", *networks]


def test_precision(plain, capsys):
    assert render(*plain, "--precision", "fp32") == 0
    said = capsys.readouterr().err
    assert "generator in ONNX Runtime " in said and "(for fp32, as requested)" in said
    with pytest.raises(SystemExit, match="2"):
        render(*plain, "--precision", "int8")
    assert "invalid choice: 'int8'" in capsys.readouterr().err


def test_bf16(plain, tmp_path, capsys):
    """Where the CPU has it; elsewhere a line says what it lacks."""
    openvino = pytest.importorskip("engine.runtime.openvino", reason="OpenVINO is not installed")
    code = render(*plain, "--precision", "bf16")
    said = capsys.readouterr().err
    if openvino.has_bf16():
        assert code == 0
        assert "generator in OpenVINO " in said and "bfloat16 (for bf16, as requested)" in said
    else:
        assert code == 2
        assert said == (
            "error: precision is bf16, but this CPU has neither AVX512_BF16 nor AMX; expected fp32\n"
        )
        assert list(tmp_path.iterdir()) == []


def test_bf16_on_a_cpu_without_it(plain, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    monkeypatch.setattr("engine.runtime.openvino.has_bf16", lambda: False)
    assert render(*plain, "--precision", "bf16") == 2
    assert "neither AVX512_BF16 nor AMX; expected fp32" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bf16_in_another_runtime(plain, tmp_path, capsys):
    assert render(*plain, "--precision", "bf16", "--runtime", "onnxruntime") == 2
    assert capsys.readouterr().err == (
        "error: precision is bf16, but the runtime is onnxruntime; expected openvino\n"
    )
    assert list(tmp_path.iterdir()) == []
