"""Clients' files are decoded in a process that may crash, hang or want all memory."""

import asyncio
import errno
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.errors import InputError
from engine.media.speech import audio_blocks, read_speech
from serve import decoding
from tests.conftest import ROOT
from tests.engine.live.stage import voice
from tests.engine.tiny import write_speech

CASES = ROOT / "tests" / "cases"


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path, monkeypatch):
    """No file, no descriptor, no process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    asyncio.run(asyncio.sleep(0))
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert not list(folder.iterdir()) and not children()
    assert len(os.listdir("/proc/self/fd")) == before


def children() -> list[int]:
    return [
        int(path.name)
        for path in Path("/proc").iterdir()
        if path.name.isdigit() and parent_of(path) == os.getpid()
    ]


def parent_of(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def decoded(data: bytes, **options) -> decoding.Decoded:
    return asyncio.run(decoding.decode(data, **{"max_seconds": 60} | options))


@pytest.mark.parametrize("name", ["speech.wav", "eight_channels.opus", "late_sound.mp4"])
def test_samples_are_those_of_the_reader(tmp_path, name):
    """And the sound for the video is a WAV file that FFmpeg reads as the original."""
    path = write_speech(tmp_path / name, 2) if name == "speech.wav" else CASES / name
    sound = tmp_path / "sound.wav"
    found = decoded(path.read_bytes(), sound=sound)
    assert found.pcm.dtype == np.float32 and not found.warnings
    assert torch.equal(torch.from_numpy(found.pcm), read_speech(path))
    assert joined(sound)[1] == joined(path)[1]
    assert np.array_equal(joined(sound)[0], joined(path)[0])


def joined(path: Path) -> tuple[np.ndarray, int]:
    blocks = list(audio_blocks(path))
    return np.concatenate([block for block, _, _ in blocks], axis=1), blocks[0][1]


def test_a_wav_of_our_own(tmp_path):
    sound = np.stack([voice(1, 5000), voice(2, 5000)])
    decoding.write_wav(tmp_path / "a.wav", sound, 22050)
    found, rate = joined(tmp_path / "a.wav")
    assert np.array_equal(found, sound) and rate == 22050


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "file is empty; expected a media file, such as"),
        (b"no sound" * 1000, "file cannot be read as audio or video: Invalid data"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "file is an HLS playlist, which names other files"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "file is an FFmpeg concat script"),
    ],
)  # fmt: skip
def test_what_is_no_sound(data, line):
    with pytest.raises(InputError, match=line):
        decoded(data)


def test_damage(tmp_path):
    """Half of a file, and one with other bytes in it: sound, or one line."""
    data = bytearray((CASES / "trimmed.mp4").read_bytes())
    for damaged in (data[: len(data) // 2], data.replace(b"mdat", b"mdta")):
        try:
            decoded(bytes(damaged))
        except InputError as error:
            assert "file" in str(error) and "/proc" not in str(error)


def test_too_long(tmp_path):
    data = write_speech(tmp_path / "a.wav", 3).read_bytes()
    with pytest.raises(InputError, match="file is longer than 2.5 s"):
        decoded(data, max_seconds=2.5)


# --- processes that go wrong ---------------------------------------------------------------------

BEGIN = f"""
import importlib.util, os, signal, sys, time
spec = importlib.util.spec_from_file_location("limits", {str(ROOT / "serve/decoding_process.py")!r})
limits = importlib.util.module_from_spec(spec)
spec.loader.exec_module(limits)
parent, source, pcm, sound, seconds = sys.argv[1:]
limits.limit(int(parent), **limits.LIMITS)
"""
OK = 'print(\'{"rate": 16000, "channels": 1, "warnings": []}\')\n'


@pytest.fixture
def process(monkeypatch):
    """Let a process run this code in place of the decoder, with its limits."""

    def run(code: str) -> None:
        monkeypatch.setattr(decoding, "COMMAND", [sys.executable, "-P", "-c", BEGIN + code])

    return run


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its decoder ended with SIGSEGV"),
        ("import ctypes; ctypes.string_at(0)", "its decoder ended with SIGSEGV"),
        ("os.abort()", "its decoder ended with SIGABRT"),
        ("sys.exit(3)", "its decoder failed"),
        ("", "its decoder failed"),
        ("bytearray(3 << 30)", "its decoder failed"),
        ("import mmap; kept = [mmap.mmap(-1, 1 << 28, mmap.MAP_PRIVATE) for _ in range(12)]", "its decoder failed"),
        ("os.truncate(int(pcm), 2 << 30)", "its decoder ended with SIGXFSZ|its decoder failed"),
        ("print('{' * 100_000)", "its decoder failed"),
        ("print('[1]')", "its decoder failed"),
        ("print('{\"error\": \"' + 'x' * 5000 + '\\\\n\"}')", "^x{400,}.* ... .*\\\\n$"),
        (OK, "its decoder wrote 0 bytes"),
        ("os.write(int(pcm), b'123')\n" + OK, "its decoder wrote 3 bytes"),
        ("os.truncate(int(pcm), 4 * 16000 * 61)\n" + OK, "its decoder wrote 3904000 bytes"),
        ("open('/proc/self/fd/9' * 0 or '/dev/null'); os.open('.', 0)\nwhile True: os.dup(1)", "its decoder failed"),
    ],
)  # fmt: skip
def test_a_process_that_goes_wrong(process, code, line):
    process(code)
    with pytest.raises(InputError, match=line) as caught:
        decoded(b"x")
    assert len(str(caught.value)) <= 1000 and "\n" not in str(caught.value)


def test_a_full_disk_is_no_fault_of_the_file(process):
    process("print('{\"full\": true}')")
    with pytest.raises(OSError, match="No space left on device") as caught:
        decoded(b"x")
    assert caught.value.errno == errno.ENOSPC


def test_limits_of_the_process(process, monkeypatch):
    """Which it cannot raise again, and nothing that is the server's."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/the/host")
    process(
        "import resource as r\n"
        "most = [r.getrlimit(n) for n in (r.RLIMIT_DATA, r.RLIMIT_CPU, r.RLIMIT_NOFILE)]\n"
        "assert all(soft == hard > 0 for soft, hard in most), most\n"
        "status = open('/proc/self/status').read()\n"
        "assert 'NoNewPrivs:\\t1' in status\n"
        "assert os.getcwd() == '/' and 'SECRET' not in os.environ\n"
        "assert os.environ['LD_LIBRARY_PATH'] == '/of/the/host'\n"
        "inner = {int(n) for n in os.listdir('/proc/self/fd')}\n"
        "inner = {n for n in inner if os.path.exists(f'/proc/self/fd/{n}')}\n"
        "assert inner == {0, 1, 2, int(source), int(pcm)}, inner\n"
        "assert open(f'/proc/self/fd/{source}', 'rb').read() == b'the file'\n"
        "os.write(int(pcm), bytes(16000))\n" + OK
    )
    os.environ["SECRET"] = "x"
    kept = os.open("/", os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        assert len(decoded(b"the file").pcm) == 4000
    finally:
        os.close(kept)
        del os.environ["SECRET"]


def test_files_are_closed_in_threads(process, monkeypatch):
    """What is freed when they are closed may be a gigabyte."""
    closing, temporary = [], decoding._temporary

    def opened():
        file = temporary()
        close = file.close
        watched = SimpleNamespace(
            fileno=file.fileno, seek=file.seek,
            close=lambda: (closing.append(threading.current_thread()), close()),
        )  # fmt: skip
        return watched

    monkeypatch.setattr(decoding, "_temporary", opened)
    monkeypatch.setattr(decoding, "_samples", lambda *_: np.zeros(9))
    process(OK)
    assert len(decoded(b"x").pcm) == 9
    assert len(closing) == 2 and threading.main_thread() not in closing


def test_a_process_that_hangs(process, monkeypatch):
    monkeypatch.setattr(decoding, "TIMEOUT", 0.5)
    for code in ("time.sleep(1000)", "os.close(1); time.sleep(1000)"):
        process(code)
        with pytest.raises(InputError, match="the file was not decoded within 0.5 s"):
            decoded(b"x")


def test_a_process_ends_with_the_call(process):
    """That of a call which is cancelled, at once."""
    process("open(f'/proc/self/fd/{pcm}', 'wb').write(b'1'); time.sleep(1000)")

    async def main() -> None:
        task = asyncio.create_task(decoding.decode(b"x", max_seconds=1))
        deadline = time.monotonic() + 30
        while not children() and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert children()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not children()

    asyncio.run(main())
