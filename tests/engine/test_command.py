"""Exit codes, printing and atomic files of the commands."""

import io
import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.command import Parser, program, run
from engine.errors import DeviceError, InputError, printable
from tests.conftest import ROOT

ESCAPED = {
    "plain, é, 日本語 and 😀": "plain, é, 日本語 and 😀",
    "a\nerror: b": r"a\nerror: b",
    "a\r\tb": r"a\r\tb",
    "\x1b[31mred\x07": r"\x1b[31mred\x07",
    "\x7f\x85\u2028\u202e": r"\x7f\x85\u2028\u202e",  # the last one reverses the text direction
    os.fsdecode(b"\xff.wav"): r"\udcff.wav",
}


# --- printing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ESCAPED, ids=ascii)
def test_names_are_printable(text):
    assert printable(text) == printable(ESCAPED[text]) == ESCAPED[text]
    for kind in (InputError, DeviceError):
        assert str(kind(f"{text} is missing")) == f"{ESCAPED[text]} is missing"


@pytest.mark.parametrize(
    "allocate",
    [lambda: bytearray(1 << 60), lambda: torch.empty(1 << 60, dtype=torch.uint8)],
    ids=["Python", "PyTorch"],
)
def test_too_little_memory_is_one_line(allocate, capsys):
    assert run(allocate, interrupted="") == 2
    assert capsys.readouterr() == ("", "error: there is too little memory\n")


def test_other_faults_are_not_hidden():
    def work():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(work, interrupted="")


@pytest.mark.parametrize("name", ["a\nerror: b", "\x1b[31m"])
def test_an_error_is_one_line(name, capsys):
    def read():
        Path(name, "missing").read_bytes()

    def refuse():
        raise InputError(f"{name} is missing")

    for work in (read, refuse):
        assert run(work, interrupted="nothing was written") == 2
        printed = capsys.readouterr()
        assert re.fullmatch(r"error: [^\x00-\x1f]+\n", printed.err) and printed.out == ""
    with pytest.raises(SystemExit, match="2"):
        Parser(prog="p").parse_args([name])
    assert re.fullmatch(r"error: [^\x00-\x1f]+\n", capsys.readouterr().err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_unprintable_output_does_not_fail(monkeypatch, encoding):
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, name, streams[name])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    names = "ü 日本 " + os.fsdecode(b"\xff")

    def main():
        print(names)
        print(names, file=sys.stderr)
        return 7

    with pytest.raises(SystemExit, match="7"):
        program(main)
    for stream in streams.values():
        stream.flush()
        written = stream.buffer.getvalue().decode(encoding).strip()
        assert written == names.encode(encoding, "backslashreplace").decode(encoding)


def test_streams_that_are_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit, match="0"):
        program(lambda: 0)


INTERRUPTED_IN_EXEC = """
from engine.command import program, run
def work():
    exec("raise KeyboardInterrupt")
program(lambda: run(work, interrupted="nothing was written"))
"""


def test_ctrl_c_while_a_library_executes_a_text(tmp_path):
    """CPython would end `python -m` by SIGINT, without the exit code of the command."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED_IN_EXEC)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (130, "interrupted: nothing was written\n")


@pytest.fixture(scope="module")
def ascii_only() -> dict[str, str]:
    """The environment of a process with an ASCII stdout and arbitrary bytes in file names."""
    return {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}


def test_a_render_whose_names_cannot_be_printed(native, tmp_path, ascii_only, speech):
    """The render succeeds, and its last line is printed with escapes."""
    name = "ü\n" + os.fsdecode(b"\xff")
    audio, output = tmp_path / f"{name}.wav", tmp_path / f"{name}.mp4"
    with wave.open(str(audio), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((speech[16000:22000].numpy() * 32767).astype(np.int16).tobytes())
    folder = tmp_path / name
    folder.symlink_to(native)
    cases = ROOT / "tests" / "cases"
    networks = ["--generator", cases / "identity.onnx", "--audio-encoder"]
    networks += [cases / "loudness_encoder.onnx", "--device", "cpu", "--no-progress"]
    command = [sys.executable, "-m", "engine.render", "--avatar", folder, "--audio", audio]
    done = subprocess.run(
        [*command, "-o", output, *networks], env=ascii_only, cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.decode("ascii").splitlines()
    assert r"/\xfc\n\udcff.mp4: 8 frames, " in line
    assert output.stat().st_size > 1000
    done = subprocess.run(
        [*command[:-1], f"{audio}.no", "-o", output.with_suffix(".2.mp4"), *networks],
        env=ascii_only, cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == b""
    (line,) = done.stderr.decode("ascii").splitlines()
    assert line.startswith("error: ") and r"\xfc\n\udcff.wav.no does not exist" in line


COMMANDS = [
    ["engine.build", "generator", "NAME.onnx", "--edition", "tensorrt_rtx", "--arch", "89"],
    ["train", "--avatar", "NAME", "-o", "out.pth"],
    ["export", "generator", "NAME.pth", "-o", "out.onnx"],
    ["export", "NAME", "x.pth", "-o", "out.onnx"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[:2]))
def test_errors_whose_names_cannot_be_printed(command, tmp_path, ascii_only):
    name = "ü\nerror: x\x1b" + os.fsdecode(b"\xff")
    command = [part.replace("NAME", name) for part in command]
    done = subprocess.run(
        [sys.executable, "-m", *command], env=ascii_only, cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 2 and done.stdout == b""
    lines = done.stderr.decode("ascii").splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert r"\xfc\nerror: x\x1b\udcff" in lines[-1] and "\x1b" not in "".join(lines)
    assert list(tmp_path.iterdir()) == []


def test_every_command_is_run_as_a_program():
    """Except the client, which runs where PyTorch is not, and those that print no file names of
    users: `kernels.compile`, which may not import `engine`, the one that makes the messages, and
    scripts that are run as limited processes."""
    own = {
        ROOT / "kernels" / "compile.py",
        ROOT / "engine" / "runtime" / "limited_process.py",
        ROOT / "examples" / "client.py",
        ROOT / "serve" / "decoding_process.py",
        ROOT / "serve" / "rpc" / "protos" / "build.py",
        ROOT / "serve" / "web" / "espeak_process.py",
    }
    rooms = ("kernels", "export", "engine", "serve", "train", "benchmarks", "examples")
    files = {path for room in rooms for path in (ROOT / room).rglob("*.py")}
    starts = {path: path.read_text().partition('if __name__ == "__main__":')[2] for path in files}
    commands = {path for path, start in starts.items() if start}
    assert len(commands) > 8 and own < commands
    for path in commands - own:
        assert "program(main)" in starts[path], path
