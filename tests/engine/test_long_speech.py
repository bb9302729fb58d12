"""A speech of any length is rendered with the memory of a short one, to the last bit as if all of
its samples, mel and features were there."""

import json
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

import engine.device.buffers
import engine.mel
import engine.pcm
import kernels
from engine import Avatar, InputError, Pipeline
from engine.device.stopwatch import Stopwatch
from engine.media.speech import read_speech
from engine.mel import LEAD, Mel
from engine.pcm import Speech, open_speech
from engine.rows import NewestRows
from tests.conftest import ROOT
from tests.engine import tiny

SECONDS = 60
FPS = 10
MIB = 1 << 20


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    """The speech of these tests has three pieces, and its features do not fit at once."""
    monkeypatch.setattr(engine.mel, "PIECE", LEAD)
    monkeypatch.setattr(engine.pcm, "KEPT_SECONDS", 1)
    monkeypatch.setattr(engine.device.buffers, "FEATURE_ROWS", 1)


@pytest.fixture(scope="module")
def stereo(tmp_path_factory) -> Path:
    """A voice, opposite in both channels, so that one is used alone, at another rate."""
    t = np.arange(SECONDS * 11025) / 11025
    voice = 9000 * np.sin(2 * np.pi * (200 + 90 * np.sin(t)) * t) * (1 + np.sin(5 * t)) / 2
    path = tmp_path_factory.mktemp("speech") / "stereo.wav"
    wavfile.write(path, 11025, np.stack([voice, -voice], axis=1).astype(np.int16))
    return path


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    folder = tiny.write_avatar(tmp_path_factory.mktemp("avatars") / "tiny", height=64, width=72)
    record = json.loads((folder / "avatar.json").read_text())
    (folder / "avatar.json").write_text(json.dumps(record | {"fps": FPS}))
    return Pipeline(Avatar.load(folder, device="cpu"))


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    return tiny.write_speech(tmp_path_factory.mktemp("speech") / "a.wav", SECONDS)


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("viseme-speech")]


def open_mel(speech: Speech, *, fps: float, start: int):
    cpu = torch.device("cpu")
    return Mel.open(
        speech, fps, cpu, upload=lambda pcm: [pcm], start=start, most=64,
        stopwatch=Stopwatch.off(cpu),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*the mono mix keeps")
def test_windows(stereo):
    """Of a file that is decoded again, and of a tensor, from any window on."""
    pcm = read_speech(stereo)
    opened = open_speech(stereo)
    assert not opened.held and opened.count == len(pcm)
    whole = kernels.log_mel(pcm)
    assert len(whole) > 2 * engine.mel.PIECE
    for speech in (opened, open_speech(pcm)):
        for fps in (25.0, float(Fraction(30000, 1001)), 1.0):
            count = kernels.mel_window_count(len(whole), fps)
            for start in (0, count // 2, count - 1):
                found = torch.empty(count - start, 1, 80, 16)
                with open_mel(speech, fps=fps, start=start) as mel:
                    for first in range(start, count, 61):
                        part = found[first - start :][:61]
                        mel.windows(first, len(part), out=part)
                assert torch.equal(found, kernels.mel_windows(whole, fps=fps, start=start))
    assert readers() == []


@pytest.fixture(scope="module")
def frames(pipeline, speech) -> torch.Tensor:
    """Of a render that has all of the speech at once."""
    assert engine.mel.PIECE > SECONDS * 80 and engine.device.buffers.FEATURE_ROWS > SECONDS * FPS
    return torch.cat(list(pipeline.render(read_speech(speech))))


@pytest.mark.parametrize("skip", [5, 444])
def test_frames(pipeline, speech, frames, skip):
    opened = open_speech(speech)
    assert not opened.held and pipeline.frame_count(opened) == len(frames)
    assert torch.equal(torch.cat(list(pipeline.render(opened, skip=skip))), frames[skip:])


def test_a_render_that_is_given_up(pipeline, speech):
    batches = pipeline.render(speech)
    next(batches)
    assert readers() == ["viseme-speech_0"]
    batches.close()
    assert readers() == []


SUSPENDED = """
import sys
import engine.pcm
from engine import Avatar, Pipeline

engine.pcm.KEPT_SECONDS = 1
batches = Pipeline(Avatar.load(sys.argv[1], device="cpu")).render(sys.argv[2])
print(len(next(batches)))
"""


def test_a_process_that_ends_during_a_render(speech, tmp_path):
    """Of a file that is being decoded again."""
    command = [sys.executable, "-c", SUSPENDED, tiny.write_avatar(tmp_path / "tiny"), speech]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) > 0 and done.stderr == ""


@pytest.mark.parametrize("seconds", [20, SECONDS - 1, SECONDS + 1, SECONDS + 60])
def test_a_file_that_changes_before_it_is_decoded_again(pipeline, tmp_path, seconds):
    path = tiny.write_speech(tmp_path / "a.wav", SECONDS)
    batches = pipeline.render(path)
    tiny.write_speech(path, seconds)
    with pytest.raises(InputError, match=r"a\.wav changed while it was in use"):
        for _ in batches:
            pass
    assert readers() == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_file_that_is_replaced_by_one_as_long(tmp_path, begun):
    """Before it is decoded again, or meanwhile."""
    path, other = tmp_path / "a.wav", tmp_path / "b.wav"
    opened = open_speech(tiny.write_speech(path, SECONDS))
    reader = opened.reader()
    if begun:
        reader.read(0, 16000)
    wavfile.write(other, 16000, np.full(opened.count, 99, np.int16))
    other.replace(path)
    with pytest.raises(InputError, match=r"a\.wav changed while it was in use"):
        reader.read(0, opened.count)


def test_an_hour(tmp_path, monkeypatch):
    """The samples would take 230 MB, the mel 92 MB."""
    monkeypatch.undo()
    path = write_silence(tmp_path / "a.flac", 3600)
    monkeypatch.setattr(kernels, "log_mel", lambda pcm: torch.zeros(1 + len(pcm) // 200, 80))
    before = reset_peak()
    opened = open_speech(path)
    out = torch.empty(64, 1, 80, 16)
    with open_mel(opened, fps=25.0, start=0) as mel:
        for first in range(0, 3590 * 25, 64):
            mel.windows(first, 64, out=out)
    assert peak() - before < 150 * MIB


def write_silence(path: Path, seconds: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=16000, options={"frame_size": "65535"})
        stream.layout, stream.format = "mono", "s16"
        block = np.zeros((1, 65535), np.int16)
        for number in range(seconds * 16000 // 65535):
            frame = av.AudioFrame.from_ndarray(block, "s16", "mono")
            frame.sample_rate, frame.time_base = 16000, Fraction(1, 16000)
            frame.pts = number * 65535
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def peak() -> int:
    """Return the most bytes that this process has held at once."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    pytest.skip("this system does not say the peak of a process's memory")


def reset_peak() -> int:
    """Forget the peak, and return the bytes that are held now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not forget the peak of a process's memory")
    return peak()


# --- rows ----------------------------------------------------------------------------------------


@given(
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 9)), max_size=40),
    first=st.integers(0, 5),
)
def test_newest_rows(steps, first):
    """Each step appends some rows, of which up to 9 are kept with the ones before."""
    rows = NewestRows(7 + 2 * 9, 1, torch.int64, torch.device("cpu"), first=first)
    stop = first
    for count, kept in steps:
        keep = max(stop - kept, rows.first)
        rows.append(torch.arange(stop, stop + count)[:, None], keep)
        stop += count
        assert rows.stop == stop and rows.first <= keep
        assert rows.rows()[:, 0].tolist() == list(range(rows.first, stop))


def test_rows_for_which_there_is_no_room():
    rows = NewestRows(10, 1, torch.int64, torch.device("cpu"))
    rows.append(torch.zeros(8, 1, dtype=torch.int64), 0)
    with pytest.raises(ValueError, match="3 rows more than 8 do not fit 10"):
        rows.append(torch.zeros(3, 1, dtype=torch.int64), 0)
