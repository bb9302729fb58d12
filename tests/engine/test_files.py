"""Files and folders that appear whole or not at all, whatever happens."""

import os
import re
import resource
import signal
import subprocess
import sys

import pytest

from engine import files
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
    with pytest.raises(KeyboardInterrupt), whole(path, folder=True) as partial:
        (partial / "000000.png").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole(path, folder=True) as partial:
        (partial / "000000.png").write_text("whole")
    with pytest.raises(OSError, match="not empty"), whole(path, folder=True):
        pass
    assert [path.name for path in path.iterdir()] == ["000000.png"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "no" / "a.txt", lambda partial: partial.write_text("a"))


def test_names_of_any_length(tmp_path):
    """The temporary name is not too long where the name is not, and the other way round."""
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    for name in ("x" * (longest - 4), "\u5b57" * ((longest - 4) // 3)):
        write_whole(tmp_path / f"{name}.txt", lambda partial: partial.write_text("a"))
        with (
            pytest.raises(OSError, match="File name too long"),
            whole(tmp_path / f"{name}1234.txt"),
        ):
            pytest.fail("this is too late")
    assert len(list(tmp_path.iterdir())) == 2


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


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("target", ["a file", "a folder", "nothing"])
def test_links_at_temporary_names_are_not_followed(tmp_path, monkeypatch, folder, target):
    """Someone has guessed the next names, and has put links to a file of ours there."""
    precious, written = tmp_path / "precious", tmp_path / "out" / "a.bin"
    written.parent.mkdir()
    if target == "a file":
        precious.write_text("precious")
    elif target == "a folder":
        precious.mkdir()
    guesses = [written.with_name(f".a.{number:08x}.partial.bin") for number in range(3)]
    for guess in guesses:
        guess.symlink_to(precious)
    numbers = iter(range(4))
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: f"{next(numbers):08x}")
    with whole(written, folder=folder) as partial:
        assert partial.name == ".a.00000003.partial.bin"
        (partial / "0.png" if folder else partial).write_text("ours")
    assert (written / "0.png" if folder else written).read_text() == "ours"
    assert not written.is_symlink() and all(guess.is_symlink() for guess in guesses)
    if target == "a file":
        assert precious.read_text() == "precious"
    else:
        assert precious.exists() == (target == "a folder")
        assert target == "nothing" or list(precious.iterdir()) == []


@pytest.mark.parametrize("folder", [False, True])
def test_a_link_made_just_before_the_file_is_not_followed(tmp_path, monkeypatch, folder):
    """After its name was found to be unused."""
    (tmp_path / "precious").write_text("precious")
    unused = files._unused_name

    def planted(path):
        name = unused(path)
        name.symlink_to(tmp_path / "precious")
        return name

    monkeypatch.setattr(files, "_unused_name", planted)
    with pytest.raises(FileExistsError), whole(tmp_path / "a.bin", folder=folder):
        pytest.fail("the link was taken for ours")
    assert (tmp_path / "precious").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [tmp_path / "precious"]


def test_temporary_names_cannot_be_guessed(tmp_path):
    names = set()
    for _ in range(100):
        with whole(tmp_path / "a.txt") as partial:
            names.add(partial.name)
    assert len(names) == 100  # of 4 billion
    assert all(re.fullmatch(r"\.a\.[0-9a-f]{8}\.partial\.txt", name) for name in names)


WRITER = """
import sys
from pathlib import Path
from engine import files
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
from engine import files
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


def test_what_is_said_of_outputs(tmp_path):
    """A file that was there counts only if it was replaced, and not if somebody removed it."""
    film, frames = tmp_path / "a.mp4", tmp_path / "frames"
    film.write_text("before")
    outputs = files.Outputs(film, None, frames)
    assert str(outputs) == "nothing was written"
    film.unlink()
    assert str(outputs) == "nothing was written"
    film.write_text("before")
    outputs = files.Outputs(film, None, frames)
    files.write_whole(film, lambda path: path.write_text("after"))
    assert str(outputs) == f"{film} was written, {frames} not"
    frames.mkdir()
    assert str(outputs) == f"{film} and {frames} were written"
