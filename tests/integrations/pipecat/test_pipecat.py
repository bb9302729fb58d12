"""Pipelines with an avatar, in Pipecat's own environment, against the real server in a process of
its own."""

import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.engine.tiny import ENVIRONMENT, write_avatar
from tests.ports import free_port
from tests.test_docs import blocks

PACKAGE = ROOT / "integrations" / "pipecat"
PYTHON = Path(os.environ.get("VISEME_PIPECAT", ROOT / ".venv-pipecat")) / "bin" / "python"
AGENT = Path(__file__).parent / "agent.py"
TOKEN = "correct-horse-battery-staple"
SECONDS = 120
RATE = 16000

pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="Pipecat's environment is not there: make pipecat"
)


class Server:
    """`python -m serve` with a tiny avatar."""

    def __init__(self, folder: Path, port: int = 0):
        self.folder, self.port = folder, port or free_port()
        self.log = folder / f"log{time.monotonic_ns()}"
        options = ["--avatar", f"tiny={folder / 'tiny'}", "--device", "cpu"]
        options += ["--port", str(self.port), "--http-port", "0"]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve", *options],
                env={**ENVIRONMENT, "VISEME_TOKENS": TOKEN}, stdout=file, stderr=subprocess.STDOUT,
                cwd=ROOT,
            )  # fmt: skip
        end = time.monotonic() + SECONDS
        while "ready" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(SECONDS) == 0

    def sessions(self) -> int:
        """Return how many live sessions are open."""
        from serve.rpc.protos import viseme_pb2 as pb
        from serve.rpc.protos import viseme_pb2_grpc

        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            answer = viseme_pb2_grpc.VisemeStub(channel).ListAvatars(
                pb.ListAvatarsRequest(), metadata=[("authorization", f"Bearer {TOKEN}")]
            )
        return sum(avatar.sessions for avatar in answer.avatars)

    def until_free(self) -> None:
        end = time.monotonic() + SECONDS
        while self.sessions():
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipecat")
    write_avatar(folder / "tiny")
    server = Server(folder)
    yield server
    server.stop()


def start(scenario: str, port: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    return subprocess.Popen(
        [str(PYTHON), str(AGENT), scenario, f"127.0.0.1:{port}"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def run(scenario: str, server: Server, text: str | None = None) -> list[dict]:
    """Run a pipeline, and return what came out of the avatar. Nothing may be left of it."""
    process = start(scenario, server.port)
    out, errors = process.communicate(text, timeout=SECONDS)
    assert process.returncode == 0, errors
    return finished(out, server)


def finished(out: str, server: Server) -> list[dict]:
    seen = [json.loads(line) for line in out.splitlines()]
    assert seen[0]["kind"] == "StartFrame"
    assert seen.pop() == {"kind": "left", "tasks": []}
    assert not any(note["kind"] == "TTSAudioRawFrame" for note in seen)
    server.until_free()
    return seen


def kinds(seen: list[dict]) -> list[str]:
    return [note["kind"] for note in seen]


def sound(seen: list[dict]) -> np.ndarray:
    """Return the sound of all frames."""
    parts = [base64.b64decode(note["sound"]) for note in seen if "sound" in note]
    return np.frombuffer(b"".join(parts), "<i2")


def tone(seconds: float, step: int) -> np.ndarray:
    """Return what the agent's TTS service says."""
    return (1 + step * np.arange(int(seconds * RATE)) % 20000).astype("<i2")


def test_what_is_said_is_shown(server):
    seen = run("speak", server)
    names = kinds(seen)
    assert names[-2:] == ["TTSStoppedFrame", "EndFrame"]
    said, first = sound(seen), names.index("SpeechOutputAudioRawFrame")
    assert names[1:first].count("OutputImageRawFrame") >= 3  # it is there before it speaks
    wanted = np.concatenate([tone(0.6, 1), tone(0.5, 3)])
    begin = np.flatnonzero(said)[0]
    np.testing.assert_array_equal(np.trim_zeros(said), wanted)  # not a sample more or less
    assert len(said) - begin - len(wanted) < RATE / 25
    followed = 0
    for note, after in itertools.pairwise(seen[1:]):
        if note["kind"] == "SpeechOutputAudioRawFrame":
            assert note["rate"] == RATE and len(base64.b64decode(note["sound"])) == 2 * RATE // 25
            # Its picture follows, and waits for it. A busy server may leave it out.
            if after["kind"] == "OutputImageRawFrame":
                followed += 1
                assert after == {
                    "kind": "OutputImageRawFrame", "size": [80, 96], "bytes": 80 * 96 * 3,
                    "format": "RGB", "sync": True,
                }  # fmt: skip
    assert followed
    # The first sentence's end comes after its last sample.
    stopped = names.index("TTSStoppedFrame")
    assert names.count("TTSStoppedFrame") == names.count("TTSStartedFrame") == 2
    assert len(np.trim_zeros(sound(seen[:stopped]))) >= 0.6 * RATE


def test_other_sound_is_converted(server):
    seen = run("stereo", server)
    first = kinds(seen).index("TTSStoppedFrame") + 1
    said = np.trim_zeros(sound(seen[:first])).astype(float)
    assert abs(len(said) - RATE / 2) < RATE * 0.002  # nothing is left in the resampler
    assert abs(np.median(said) - 2000) <= 1  # the mean of both channels
    np.testing.assert_array_equal(np.trim_zeros(sound(seen[first:])), tone(0.5, 3))


def test_an_interruption(server):
    seen = run("interrupt", server)
    names = kinds(seen)
    begin = names.index("InterruptionFrame")
    before, after = sound(seen[:begin]), np.trim_zeros(sound(seen[begin:]))
    np.testing.assert_array_equal(np.trim_zeros(before), tone(20, 1)[: len(np.trim_zeros(before))])
    assert len(before) < 5 * RATE  # of 20 s
    new, fade = tone(0.5, 3), RATE // 100  # the old speech fades out in 10 ms, over the new one
    np.testing.assert_array_equal(after[-len(new) :][fade:], new[fade:])
    assert len(after) - len(new) <= 2 * RATE // 25
    assert names.count("TTSStoppedFrame") == 1 and names[-1] == "EndFrame"


def test_a_hundred_interruptions_leave_nothing(server):
    seen = run("hundred", server)
    names = kinds(seen)
    assert names.count("InterruptionFrame") == 100
    last = len(names) - 1 - names[::-1].index("InterruptionFrame")
    new, fade = tone(0.5, 3), RATE // 100
    np.testing.assert_array_equal(np.trim_zeros(sound(seen[last:]))[-len(new) :][fade:], new[fade:])
    assert names[last:].count("TTSStoppedFrame") == 1
    assert names[-1] == "EndFrame" and "ErrorFrame" not in names


def test_who_leaves_in_the_middle(server):
    names = kinds(run("cancelled", server))
    assert names[-1] == "CancelFrame" and "ErrorFrame" not in names


def test_an_interruption_of_the_last_speech(server):
    seen = run("goodbye", server)
    assert kinds(seen)[-1] == "EndFrame" and "ErrorFrame" not in kinds(seen)
    assert len(sound(seen)) < 30 * RATE  # of 150 s


def test_a_server_from_which_nothing_comes(server):
    """As if the network were gone: the connection stays. Another session is opened, and does not
    take speech without end before it is open."""
    process = start("silent", server.port)
    assert process.stdout is not None
    lines = []
    for stop in (signal.SIGSTOP, signal.SIGCONT):
        while not lines or json.loads(lines[-1])["kind"] != "now":
            lines.append(process.stdout.readline())
        os.kill(server.process.pid, stop)
        lines[-1] = json.dumps({"kind": "then"})
    out, _ = process.communicate(timeout=SECONDS)
    seen = finished("".join(f"{line.rstrip()}\n" for line in lines) + out, server)
    errors = [note["line"] for note in seen if note["kind"] == "ErrorFrame"]
    assert errors == [
        f"Viseme at 127.0.0.1:{server.port}: {line}"
        for line in (
            "Silent: nothing came for 10 s",
            "300 s of speech wait to be sent; more is lost",
        )
    ]
    assert kinds(seen)[-1] == "EndFrame"
    # What was said after that, while the server was stopped, came all the same.
    begin, new, fade = kinds(seen).index("InterruptionFrame"), tone(0.5, 3), RATE // 100
    np.testing.assert_array_equal(
        np.trim_zeros(sound(seen[begin:]))[-len(new) :][fade:], new[fade:]
    )


def test_an_avatar_that_is_not_there(server):
    seen = run("unknown", server)
    errors = [note["line"] for note in seen if note["kind"] == "ErrorFrame"]
    assert errors == [
        f"Viseme at 127.0.0.1:{server.port}: NOT_FOUND: model 'nobody' not configured"
    ]
    assert kinds(seen)[-1] == "EndFrame" and not len(sound(seen))


def test_a_server_that_is_replaced(tmp_path):
    write_avatar(tmp_path / "tiny")
    first = Server(tmp_path)
    process = start("restarted", first.port)
    assert process.stdout is not None and process.stdin is not None
    lines = []
    while not lines or json.loads(lines[-1])["kind"] != "now":
        lines.append(process.stdout.readline())
    first.stop()
    second = Server(tmp_path, first.port)
    process.stdin.write("\n")
    out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    seen = finished("".join(lines) + out, second)
    np.testing.assert_array_equal(np.trim_zeros(sound(seen)), tone(0.5, 3))
    assert kinds(seen)[-2:] == ["TTSStoppedFrame", "EndFrame"]
    second.stop()


def test_the_documentation(server):
    """And Pipecat's protobuf is older, so that the package has a module of its own, with the server's
    messages."""
    from google.protobuf import descriptor_pb2

    from serve.rpc.protos import viseme_pb2

    page = ROOT / "docs" / "integrations.md"
    (code,) = (code for code in blocks(page, "python") if "pipecat_viseme" in code)
    assert len(code.splitlines()) <= 25
    seen = run("docs", server, code)
    np.testing.assert_array_equal(np.trim_zeros(sound(seen)), tone(0.5, 3))
    found, server_s = (
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in (base64.b64decode(seen[-1]["messages"]), viseme_pb2.DESCRIPTOR.serialized_pb)
    )
    assert found == server_s
