"""The example's client, and the Python of docs/clients.md, against a running server."""

import asyncio
import re
import subprocess
import sys

import av
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.engine.tiny import ENVIRONMENT, write_speech
from tests.serve.rpc.server import run, serving


def client(live, *arguments, stdin: bytes = b"") -> subprocess.CompletedProcess:
    async def main():
        async with serving({"demo": live}) as server:
            command = [sys.executable, "-m", "examples.client", "--address", server.address]
            return await asyncio.to_thread(
                subprocess.run,
                [*command, "--no-progress", *map(str, arguments)],
                input=stdin, capture_output=True, env=ENVIRONMENT, timeout=50,
            )  # fmt: skip

    return run(main())


def durations(path) -> tuple[float, float]:
    """Seconds of picture and of sound."""
    with av.open(str(path)) as container:
        frames = sum(1 for _ in container.decode(video=0))
        rate = container.streams.video[0].average_rate
    with av.open(str(path)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        return frames / float(rate), samples / container.streams.audio[0].rate


@pytest.mark.parametrize("options", [[], ["--render"]])
def test_a_file(live, tmp_path, options):
    speech, out = write_speech(tmp_path / "speech.wav", 1.0), tmp_path / "out.mp4"
    done = client(live, speech, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    assert re.match(rb".*out.mp4: \d+ frames", done.stdout)
    picture, sound = durations(out)
    assert picture >= 0.9 and sound >= 0.95 and abs(picture - sound) < 0.15
    assert {path.name for path in tmp_path.iterdir()} == {"speech.wav", "out.mp4"}


def test_stdin(live, tmp_path):
    out = tmp_path / "out.mp4"
    done = client(live, "-", "-o", out, "--sample-rate", 192000, stdin=bytes(192001))
    assert done.returncode == 0, done.stderr
    assert durations(out)[1] >= 0.5


def test_an_error_is_one_line(live, tmp_path):
    speech = write_speech(tmp_path / "speech.wav", 1.0)
    done = client(live, speech, "-o", tmp_path / "out.mp4", "--avatar", "nobody")
    assert done.returncode == 2
    assert done.stderr == b"error: NOT_FOUND: model 'nobody' not configured\n"
    assert not (tmp_path / "out.mp4").exists()
    done = client(live, speech, "-o", tmp_path / "missing" / "out.mp4")
    assert done.returncode == 2
    assert done.stderr.decode() == f"error: {tmp_path / 'missing'} is not a folder\n"


def test_the_python_of_the_page(live, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "clients.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    assert len(blocks) == 3  # what the last one defines is used in tests/serve/test_server.py
    assert len(blocks[0].splitlines()) <= 11  # ten lines and a blank one or two
    monkeypatch.chdir(tmp_path)
    write_speech(tmp_path / "speech.wav", 0.5)

    def run_blocks(address: str) -> None:
        microphone = [np.ones(320, "<i2").tobytes()] * 25
        names = {"address": address, "microphone": microphone}
        for block in blocks:
            exec(compile(block, "docs/clients.md", "exec"), names)

    async def main():
        async with serving({"demo": live}) as server:
            await asyncio.to_thread(run_blocks, server.address)

    run(main())
    assert durations(tmp_path / "out.mp4")[0] >= 0.4
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("True") for line in lines) == 13
    assert all(int(line.split()[1]) > 500 for line in lines if "True" in line)
