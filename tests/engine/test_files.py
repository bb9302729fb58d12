"""Files and folders that appear whole or not at all, whatever happens."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from engine.files import whole, write_whole
from tests.conftest import ROOT


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("before")

    def fail(partial):
        partial.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_whole(path, fail)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, lambda partial: partial.write_text(f"as {partial.suffix}"))
    assert path.read_text() == "as .json"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "frames"
    with pytest.raises(KeyboardInterrupt), whole(path) as partial:
        partial.mkdir()
        (partial / "000000.png").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole(path) as partial:
        partial.mkdir()
        (partial / "000000.png").write_text("whole")
    with pytest.raises(OSError, match="not empty"), whole(path) as partial:
        partial.mkdir()
    assert [path.name for path in path.iterdir()] == ["000000.png"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "a.txt", lambda partial: partial.write_text("a"))


def test_a_full_disk(tmp_path):
    path = tmp_path / "a.bin"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_whole(path, lambda partial: partial.write_bytes(bytes(10_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_process(tmp_path):
    """Two renders of a server, or of two containers, in which both processes have one number."""
    path = tmp_path / "a.txt"
    with whole(path) as first:
        first.write_text("first")
        with whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second" and first.read_text() == "first"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from pathlib import Path
from engine.files import write_whole
path, letter = Path(sys.argv[1]), sys.argv[2]
for _ in range(200):
    write_whole(path, lambda partial: partial.write_text(letter * 300_000))
"""


def test_two_processes_write_one_file(tmp_path):
    path = tmp_path / "a.txt"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, letter], cwd=ROOT) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert {(len(text), *set(text)) for text in [*seen, path.read_text()]} <= {
        (300_000, "a"),
        (300_000, "b"),
    }
    assert list(tmp_path.iterdir()) == [path]


INTERRUPTED = """
import sys, time
from pathlib import Path
from engine.command import program, run
from engine.files import write_whole
def write(partial):
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
program(lambda: run(lambda: write_whole(Path(sys.argv[1]), write), interrupted="nothing changed"))
"""


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path, kind, code):
    path = tmp_path / "a.txt"
    path.write_text("before")
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(process.pid, kind)
        assert process.wait(60) == code
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
