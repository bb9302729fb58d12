"""The fuzzer finds planted faults, and a few damaged files of each kind break nothing."""

import random
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz import fuzzer, mutate, planted, targets

pytest.importorskip("av")


def fuzzed(names, folder: Path, cases: int, **options) -> fuzzer.Fuzzer:
    """Fuzz until there is a finding, for at most so many cases."""
    numbers = count()
    with fuzzer.Fuzzer(names, folder=folder, **options) as found:
        found.run(until=lambda: bool(found.findings) or next(numbers) >= cases)
    return found


def planted_faults(name: str, folder: Path, cases: int = 200) -> list[fuzzer.Finding]:
    timeout = 1 if name == "hang" else 60
    options = {"seed": 1, "timeout": timeout, "module": "tests.fuzz.planted"}
    return list(fuzzed([name], folder, cases, **options).findings.values())


# --- what it finds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("traceback", r"KeyError at tests/fuzz/planted.py:\d+"),
        ("long_message", "long message"),
        ("crash", "signal SIGABRT"),
        ("leave", "exit code 3"),
        ("hang", "no end after 1 s"),
        ("memory", "more than 1024 MiB"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, name, message):
    """Once, with its file, which shows it again."""
    (found,) = planted_faults(name, tmp_path / "findings")
    assert re.fullmatch(message, found.name)
    target = planted.TARGETS[name]
    if name == "traceback":
        with pytest.raises(KeyError):
            target.read(found.file)
        assert "KeyError: 'parts'" in found.text
    assert sorted((tmp_path / "findings").iterdir()) == [found.file, Path(f"{found.file}.txt")]
    if name == "traceback":
        command = [sys.executable, "-m", "tests.fuzz.child", "tests.fuzz.planted", name, found.file]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert found.name in done.stdout


def test_what_is_right_is_not_found(tmp_path):
    assert planted_faults("right", tmp_path / "findings") == []
    assert not (tmp_path / "findings").exists()  # it is made when there is a finding


def test_new_lines_guide_it(tmp_path):
    """Three parts of a file, which are found one after another because each runs another line."""
    (found,) = planted_faults("deep", tmp_path, 1500)
    assert re.fullmatch(r"KeyError at tests/fuzz/planted.py:\d+", found.name)


# --- mutators ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", targets.TARGETS)
def test_the_same_seed_gives_the_same_files(name, tmp_path):
    seeds = targets.TARGETS[name].seeds(tmp_path)
    assert len(set(seeds)) == len(seeds) and all(len(data) < 300_000 for data in seeds)
    change = targets.TARGETS[name].mutate
    made = [[change(seeds[0], seeds, random.Random(n)) for n in range(40)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 20


def test_chunks_keep_their_sizes_and_checksums(tmp_path):
    pictures, films = targets.pictures(tmp_path), targets.films(tmp_path)
    for number in range(200):
        data = mutate.mutate_chunks(pictures[0], pictures, random.Random(number))
        assert mutate.write_png(mutate.read_png(data)) == data
        place = len(mutate.PNG)
        for name, content in mutate.read_png(data):
            end = place + 8 + len(content)
            assert int.from_bytes(data[end : end + 4], "big") == zlib.crc32(name + content)
            place = end + 4
        data = mutate.mutate_chunks(films[0], films, random.Random(number))
        assert mutate.write_boxes(mutate.read_boxes(data)) == data
    (sound,) = (data for data in targets.sounds(tmp_path)[:1])
    assert mutate.write_riff(mutate.read_riff(sound)) == sound


def test_a_changed_checkpoint_is_still_a_zip(tmp_path):
    pickles = targets.pickles(tmp_path)
    for number in range(50):
        path = tmp_path / "a.pth"
        path.write_bytes(mutate.mutate_zip(pickles[0], pickles, random.Random(number)))
        assert zipfile.ZipFile(path).testzip() is None


# --- our own readers -----------------------------------------------------------------------------


def test_damaged_files_break_nothing(tmp_path):
    """All seeds, and some cases of each target: the same ones each time.

    Except networks: they are programs, and a damaged one may run for ever.
    """
    names = [name for name in targets.TARGETS if name != "onnx"]
    found = fuzzed(names, tmp_path / "findings", 180, seed=1)
    assert not found.findings, "\n".join(found.report())
    for name, corpus in found.corpora.items():
        assert corpus.cases >= 20 + corpus.seeds - 1 and len(corpus.edges) > 10, name


def test_the_seeds_are_read(tmp_path, monkeypatch):
    """They get as far as they can; an error in each would make the cases worthless."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("audio", "video", "image", "boxes", "landmarks", "plan", "avatar", "onnx"):
        target, read = targets.TARGETS[name], 0
        for data in target.seeds(tmp_path):
            if name == "image" and not data.startswith((b"\x89PNG", b"\xff\xd8")):
                continue  # under a name that is not its own
            path = tmp_path / f"seed{target.suffix_of(data)}"
            path.write_bytes(data)
            target.prepare()
            target.read(path)
            read += 1
        assert read > 0, name


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "0", "--findings", tmp_path]
    done = subprocess.run([*command, "boxes"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("boxes: 4 seeds, 4 cases, ")
    done = subprocess.run([*command, "no"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "target is 'no'; expected one of: audio, " in done.stderr
