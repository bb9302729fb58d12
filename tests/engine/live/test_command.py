"""`python -m engine.live` from end to end: the mp4 shows and plays what was said, when it was said.

The networks are as small as can be: the mouth is as bright as the sound of its frame is loud.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.io import wavfile

from engine.live.__main__ import main
from engine.loop import frame_numbers
from tests.conftest import DEMO, ROOT

RATE = 24000
BEEPS = [(0.3, 0.5), (0.86, 1.06)]  # seconds
PICTURES = 8  # frames of the avatar; each has another gray in its corner
CORNER, MOUTH = np.s_[2:14, 2:14], np.s_[34:50, 34:50]  # away from edges


def gray(picture: int) -> int:
    return 40 + 24 * picture


def slice_and_mean(kind: str, inputs: dict, axis: int, span: tuple[int, int]) -> onnx.ModelProto:
    """The mean over a part of the last input."""
    shapes = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
        for name, shape in inputs.items()
    ]
    constants = {
        "first": np.array([span[0]]), "last": np.array([span[1]]), "axis": np.array([axis]),
        "all": np.array([1, 2, 3]), "four": np.float32(4), "eight": np.float32(8),
        "zero": np.float32(0), "begin": np.array([0]), "three": np.array([3]),
        "channels": np.array([1]), "copies": np.array([1, 512]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [node("Slice", [shapes[-1].name, "first", "last", "axis"], ["part"])]
    if kind == "audio_encoder":  # from -4, silence, to 4: 0 to 1, in all 512 values
        nodes += [
            node("ReduceMean", ["part", "all"], ["mean"], keepdims=0),
            node("Add", ["mean", "four"], ["above"]),
            node("Div", ["above", "eight"], ["loudness"]),
            node("Unsqueeze", ["loudness", "channels"], ["column"]),
            node("Tile", ["column", "copies"], ["output"]),
        ]
        output = [512]
    else:
        nodes += [
            node("ReduceMean", ["part", "all"], ["mean"], keepdims=1),
            node("Slice", ["face", "begin", "three", "channels"], ["picture"]),
            node("Mul", ["picture", "zero"], ["black"]),
            node("Add", ["black", "mean"], ["output"]),
        ]
        output = [3, 320, 320]
    used = {name for made in nodes for name in made.input}
    graph = helper.make_graph(
        nodes, "g", shapes,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *output])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items() if n in used],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def avatars(tmp_path_factory):
    """fps -> an avatar of 66 x 65 pixels, whose mouth is bright while its frame is loud."""
    networks = {
        # of a window of 16 mel rows, the first three: its frame's own 40 ms
        "audio_encoder": slice_and_mean("audio_encoder", {"mel": (1, 80, 16)}, 3, (0, 3)),
        # of the 16 features, the frame's own: the tenth
        "generator": slice_and_mean(
            "generator", {"face": (6, 320, 320), "audio": (32, 16, 16)}, 1, (18, 20)
        ),
    }

    def make(fps: int) -> Path:
        root = tmp_path_factory.mktemp("avatar") / "small"
        (root / "frames").mkdir(parents=True)
        record = {"name": "small", "fps": fps, "frames": "frames", "boxes": "boxes.json"}
        for kind, model in networks.items():
            onnx.save(model, root / f"{kind}.onnx")
            record[kind] = f"{kind}.onnx"
        for number in range(PICTURES):
            picture = np.full((65, 66, 3), gray(number), np.uint8)
            Image.fromarray(picture).save(root / "frames" / f"{number}.png")
        (root / "boxes.json").write_text(json.dumps([[20, 20, 64, 64]] * PICTURES))
        (root / "avatar.json").write_text(json.dumps(record))
        return root

    return {fps: make(fps) for fps in (25, 30)}


def beeping(seconds: float = 1.3) -> np.ndarray:
    """(S,) float: silence, and beeps of 50 tones, which are loud in most mel bands.

    Not of noise: AAC replaces it by other noise.
    """
    t = np.arange(round(seconds * RATE)) / RATE
    random = np.random.default_rng(0)
    tones = sum(
        np.sin(2 * np.pi * hertz * t + random.uniform(0, 7))
        for hertz in random.uniform(80, 7600, 50)
    )
    on = sum(((t >= begin) & (t < end)).astype(float) for begin, end in BEEPS)
    sound = 0.6 * on * tones / np.abs(tones).max()
    return np.round(sound * 32768) / 32768


def write_wav(path: Path, sound: np.ndarray) -> Path:
    wavfile.write(path, RATE, (sound * 32768).astype(np.int16))
    return path


def talk(*arguments: object) -> int:
    return main([*map(str, arguments), "--no-progress"])


def decoded(
    file: Path | io.BytesIO,
) -> tuple[list[tuple[Fraction, np.ndarray]], np.ndarray]:
    """The frames, if there are any, with their times, and (C, S) sound from time 0 on."""
    frames, blocks = [], []
    with av.open(file) as container:
        for frame in container.decode():
            if isinstance(frame, av.AudioFrame):
                assert frame.sample_rate == RATE and (blocks or frame.pts == 0)
                blocks.append(frame.to_ndarray())
            else:
                frames.append((frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")))
    return frames, np.concatenate(blocks, axis=1)


def as_aac(sound: np.ndarray) -> np.ndarray:
    """(C, S) sound as FFmpeg's AAC leaves it."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE)
        stream.layout = {1: "mono", 2: "stereo"}[len(sound)]
        stream.bit_rate = 96000 * len(sound)
        samples = np.ascontiguousarray(sound, np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "fltp", stream.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    file.seek(0)
    return decoded(file)[1]


def begin_of(heard: np.ndarray, spoken: np.ndarray) -> int:
    """The sample of what is heard at which what was spoken begins."""
    size = len(heard) + len(spoken)
    products = np.fft.rfft(heard, size) * np.fft.rfft(spoken, size).conj()
    return int(np.fft.irfft(products, size)[: len(heard)].argmax())


def of_summary(said: str) -> tuple[int, int]:
    """What the command printed: how many frames there were, and how many without a picture.

    Skips the test where speech could not be pushed in real time: it has gaps then.
    """
    found = re.search(r": (\d+) frames, .* (\d+) without picture, (\d+) underruns\n", said)
    assert found, said
    frames, skipped, underruns = map(int, found.groups())
    if underruns:
        pytest.skip("this machine is too busy to push speech in real time")
    return frames, skipped


def check(path: Path, fps: int, spoken: np.ndarray, said: str, *, channels: int = 1) -> None:
    """Compare an mp4 with the speech, as far as its pictures were not skipped."""
    count, skipped = of_summary(said)
    frames, sound = decoded(path)
    first = count - len(frames)  # there is nothing to show before the first picture
    assert first <= skipped
    assert [when for when, _ in frames] == [Fraction(i, fps) for i in range(first, count)]
    begin = begin_of(sound[0], spoken)
    assert begin % (RATE // fps) == 0  # with a frame
    # whole, and nothing besides
    whole = np.zeros((channels, count * RATE // fps))
    whole[:, begin : begin + len(spoken)] = spoken
    expected = as_aac(whole)
    assert sound.shape == expected.shape and np.abs(sound - expected).max() < 1e-3
    levels: dict[bool, list[float]] = {True: [], False: []}
    numbers = islice(frame_numbers(PICTURES), first, None)
    for (when, rgb), number in zip(frames, numbers, strict=False):
        if abs(int(rgb[CORNER].mean()) - gray(number)) > 8:
            skipped -= 1  # the last picture is shown for longer
            continue
        at, frame = float(when) - begin / RATE, 1 / fps
        # with one frame before it and one after it
        if any(b <= at - frame and at + 2 * frame <= e for b, e in BEEPS):
            levels[True].append(rgb[MOUTH].mean())
        elif all(e <= at - frame or at + 2 * frame <= b for b, e in BEEPS):
            levels[False].append(rgb[MOUTH].mean())
    assert skipped >= 0
    assert min(levels[True], default=255) > 100 and max(levels[False], default=0) < 30, levels
    if not skipped:
        assert len(levels[True]) >= 2 * (0.2 * fps - 3) and len(levels[False]) > 0.5 * fps


def test_flash_and_beep(avatars, tmp_path, capsys):
    """From a file of 24 kHz, in the precision that the CPU has."""
    spoken = beeping()
    audio, out = write_wav(tmp_path / "speech.wav", spoken), tmp_path / "out.mp4"
    assert talk("--avatar", avatars[25], "--audio", audio, "-o", out) == 0
    printed = capsys.readouterr()
    check(out, 25, spoken, printed.out)
    assert re.fullmatch(
        rf"{out}: \d+ frames, [\d.]+ s, first frame \d+ ms after its first sample, \d+ late, "
        r"\d+ without picture, \d+ underruns\n",
        printed.out,
    )
    assert re.search("^small: generator in (ONNX Runtime|OpenVINO) ", printed.err, re.MULTILINE)
    with av.open(str(out)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height) == (66, 66)  # 65 made even
        assert (sound.codec_context.name, sound.rate) == ("aac", RATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "speech.wav"]


def test_flash_and_beep_from_stdin(avatars, tmp_path, monkeypatch, capsys):
    """Stereo at 30 frames a second, in float32."""
    spoken = beeping()
    pcm = (np.stack([spoken, spoken], axis=1) * 32768).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(pcm)))
    out = tmp_path / "out.mp4"
    options = ["--sample-rate", RATE, "--channels", 2, "--precision", "fp32"]
    assert talk("--avatar", avatars[30], "--audio", "-", "-o", out, *options) == 0
    printed = capsys.readouterr()
    assert "generator in ONNX Runtime " in printed.err
    check(out, 30, spoken, printed.out, channels=2)


def test_utterances(avatars, tmp_path, capsys):
    """The pause is silent, and the second one begins with a frame."""
    spoken = beeping()
    audio, out = write_wav(tmp_path / "speech.wav", spoken), tmp_path / "out.mp4"
    options = ["--utterance", 0.7, "--pause", 0.5, "--prebuffer", 0.2]
    assert talk("--avatar", avatars[25], "--audio", audio, "-o", out, *options) == 0
    of_summary(capsys.readouterr().out)
    _, (sound,) = decoded(out)
    first, second = spoken[: round(0.7 * RATE)], spoken[round(0.7 * RATE) :]
    begins = [begin_of(sound, first)]
    rest = begins[0] + len(first)
    begins.append(rest + begin_of(sound[rest:], second))
    assert all(begin % (RATE // 25) == 0 for begin in begins)
    assert begins[1] - begins[0] > len(first) + 0.2 * RATE
    assert np.abs(sound[rest + 2048 : begins[1] - 2048]).max() < 0.01


def test_interrupted(avatars, tmp_path):
    """Ctrl-C in the middle of a session."""
    command = [sys.executable, "-m", "engine.live", "--avatar", str(avatars[25]), "--no-progress"]
    command += ["--audio", str(DEMO / "speech.wav"), "-o", str(tmp_path / "o.mp4")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        deadline = time.monotonic() + 300
        while not any(path.stat().st_size for path in tmp_path.glob(".o.*.partial.mp4")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        out, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert error.endswith("interrupted: nothing was written\n")
    assert "Traceback" not in error and out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.mkv"], r"out\.mkv does not end in \.mp4"),
        (["--audio", "no.wav"], r"no\.wav does not exist"),
        (["--avatar", "nobody"], "nobody"),
        (["-o", "nowhere/out.mp4"], "nowhere/out.mp4 cannot be written: No such file"),
        (["-o", "speech.mp4", "--audio", "speech.mp4"], "speech.mp4 is the speech itself"),
        (["--prebuffer", "11"], r"prebuffer is 11\.0; expected 0 to 10 seconds"),
        (["--utterance", "0"], r"utterance is 0\.0; expected at least 0\.1 seconds"),
        (["--utterance", "nan"], r"utterance is nan; expected at least 0\.1 seconds"),
        (["--pause", "-1"], r"pause is -1\.0; expected 0 to 600 seconds"),
        (["--audio", "-", "--sample-rate", "4000"], "sample rate is 4000; expected 8000 to 192000"),
        (["--audio", "-"], "the speech has 0 samples"),
        (["--audio", "spoilt.wav"], "is nan; expected a finite value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options(avatars, tmp_path, monkeypatch, capsys, options, message):
    """One line each, and nothing half-written stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO()))
    write_wav(Path("speech.wav"), beeping(0.5))
    Path("speech.mp4").write_bytes(Path("speech.wav").read_bytes())
    spoilt = beeping(0.5).astype(np.float32)
    spoilt[9000] = np.nan
    wavfile.write("spoilt.wav", RATE, spoilt)
    there = sorted(tmp_path.iterdir())
    given = {"--avatar": avatars[25], "--audio": "speech.wav", "-o": "out.mp4"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    assert talk(*(word for pair in given.items() for word in pair)) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("small: ")]
    assert len(lines) == 1 and re.match(f"error: .*{message}", lines[0]), printed.err
    assert printed.out == "" and sorted(tmp_path.iterdir()) == there


def test_unknown_options(avatars, capsys):
    required = ["--avatar", avatars[25], "--audio", "a.wav", "-o", "o.mp4"]
    for wrong in (["--precision", "int8"], ["--channels", "6"], ["--colour"]):
        with pytest.raises(SystemExit, match="2"):
            talk(*required, *wrong)
        assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)


def test_a_precision_that_the_cpu_lacks(avatars, tmp_path, monkeypatch, capsys):
    if not find_spec("openvino"):
        pytest.skip("OpenVINO is not installed")
    monkeypatch.setattr("engine.runtime.openvino.has_bf16", lambda: False)
    audio = write_wav(tmp_path / "speech.wav", beeping(0.5))
    options = ["-o", tmp_path / "o.mp4", "--precision", "bf16"]
    assert talk("--avatar", avatars[25], "--audio", audio, *options) == 2
    assert "this CPU has neither AVX512_BF16 nor AMX; expected fp32" in capsys.readouterr().err
