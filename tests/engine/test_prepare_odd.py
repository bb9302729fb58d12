"""Odd films, folders that change meanwhile, full disks: one true line each, and nothing is lost."""

import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

import engine.prepare
from engine.avatar import Avatar
from engine.media import limits
from engine.media.mixdown import Meter
from engine.media.speech import mixed
from engine.media.track import Block
from engine.prepare import main
from engine.preparing.film import Damaged, Film
from tests.engine.preparing.films import HeadTracker, record_of, sees, write_film


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    sees(monkeypatch)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A second of a head that speaks."""
    return write_film(tmp_path_factory.mktemp("short") / "film.mp4", seconds=1)


@pytest.fixture
def film(short, tmp_path) -> Path:
    """The same film in a folder of its own."""
    return shutil.copy(short, tmp_path / "film.mp4")


@pytest.fixture
def meanwhile(monkeypatch):
    """Let something happen while the person is followed."""

    def set_up(happens) -> None:
        class Tracker(HeadTracker):
            def follow(self, rgb):
                if self.calls == 5:
                    happens()
                return super().follow(rgb)

        monkeypatch.setattr(engine.prepare, "open_tracker", lambda *_: (Tracker, {}))

    return set_up


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refused(command: list, capsys) -> str:
    """Return the only error of a command."""
    capsys.readouterr()
    assert main([*map(str, command), "--no-progress"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "warning: " not in line]
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert ".partial" not in errors[0]
    return errors[0]


# --- films ----------------------------------------------------------------------------------------


def test_frames_days_apart(tmp_path, capsys):
    """Each second between them would become 25 frames."""
    times = [0, 0.04, 0.08, 4e5]
    film = write_film(tmp_path / "film.mkv", times=times, sound=None)
    said = refused([film, "-o", tmp_path / "a", "--no-audio"], capsys)
    assert "is 400000 s long" in said and f"expected at most {limits.MAX_SECONDS}" in said


def test_sound_of_hours(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(limits, "MAX_SECONDS", 2)
    film = write_film(tmp_path / "film.mp4", seconds=3, times=[i / 25 for i in range(25)])
    said = refused([film, "-o", tmp_path / "a"], capsys)
    assert "has sound of more than 2 s" in said


def test_a_picture_that_is_repeated_is_looked_at_once(tmp_path, capsys, monkeypatch):
    """That takes most of the time."""
    tracker = HeadTracker()
    monkeypatch.setattr(engine.prepare, "open_tracker", lambda *_: (lambda: tracker, {}))
    film = write_film(tmp_path / "film.mp4", seconds=1, rate=10)
    assert main([str(film), "-o", str(tmp_path / "a")]) == 0
    assert record_of(tmp_path / "a")["frames"]["doubled"] == 15 and tracker.calls == 10


def test_a_film_too_short_to_compare_lips(film, tmp_path, capsys):
    """It is not said that the person does not speak."""
    assert main([str(film), "-o", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().err
    assert "cannot be compared in 25 frames with a face; expected 50" in said
    assert "does not seem to speak" not in said
    assert record_of(tmp_path / "a")["sound"]["compared"] == 25


def test_a_person_who_is_not_there(film, tmp_path, capsys, monkeypatch):
    sees(monkeypatch, hidden=range(25))
    inner = HeadTracker.follow
    monkeypatch.setattr(HeadTracker, "follow", lambda *args: inner(*args)._replace(others=2))
    said = refused([film, "-o", tmp_path / "a", "--person", "3"], capsys)
    assert "--person is 3, but no frame has more than 2 faces" in said
    assert "no face was found" in refused([film, "-o", tmp_path / "a"], capsys)
    sees(monkeypatch, hidden=range(25))
    monkeypatch.setattr(HeadTracker, "follow", inner)  # nobody at all
    said = refused([film, "-o", tmp_path / "a", "--person", "3"], capsys)
    assert "no face was found in its 25 frames" in said


def test_a_film_that_is_damaged_meanwhile(film, tmp_path, capsys, monkeypatch):
    """Its frames are read a second time, to leave some out."""
    sees(monkeypatch, hidden=range(10, 16))
    pictures, calls = Film.pictures, []

    def damaged(self):
        calls.append(self)
        for number, picture in enumerate(pictures(self)):
            if len(calls) == 2 and number == 20:
                raise Damaged
            yield picture

    monkeypatch.setattr(Film, "pictures", damaged)
    said = refused([film, "-o", tmp_path / "a", "--gaps", "cut"], capsys)
    assert "film.mp4 changed while it was in use" in said
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_a_channel_that_is_used_alone_and_ends():
    """Where a track has fewer channels from some time on, they are mixed."""
    two = np.array([[0.5, 0.5], [0.1, 0.2]], np.float32)
    blocks = [Block(two, ("FL", "FR"), 16000, 0), Block(two[:1], ("FC",), 16000, 2)]
    found = [mono for mono, _ in mixed("film", blocks, 1, Meter())]
    assert np.array_equal(found, [two[1], two[0]])


def test_a_film_that_is_replaced_meanwhile(film, tmp_path, capsys, meanwhile):
    """The frames would not fit the boxes."""

    def replace() -> None:
        other = shutil.copy(film, tmp_path / "other.mp4")
        Path(other).replace(film)

    meanwhile(replace)
    said = refused([film, "-o", tmp_path / "a"], capsys)
    assert "film.mp4 changed while it was in use" in said
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


# --- the folder -----------------------------------------------------------------------------------


def test_two_preparations_at_once(film, tmp_path, capsys, meanwhile):
    """The one that ends first stays."""
    folder = tmp_path / "a"

    def other() -> None:
        folder.mkdir()
        (folder / "avatar.json").write_text("of the other one")

    meanwhile(other)
    said = refused([film, "-o", folder], capsys)
    assert "is not empty" in said
    assert content(folder) == {"avatar.json": b"of the other one"}
    assert {path.name for path in tmp_path.iterdir()} == {"film.mp4", "a"}


def test_training_into_the_folder_meanwhile(film, tmp_path, capsys, meanwhile):
    """--force replaces what it was allowed to replace, not what came later."""
    folder = tmp_path / "a"
    assert main([str(film), "-o", str(folder)]) == 0
    before = content(folder)
    meanwhile(lambda: (folder / "person.pth").write_text("trained"))
    said = refused([film, "-o", folder, "--force"], capsys)
    assert "'person.pth'" in said
    assert content(folder) == before | {"person.pth": b"trained"}
    assert {path.name for path in tmp_path.iterdir()} == {"film.mp4", "a"}


@pytest.mark.parametrize("ends", [True, False])
def test_an_earlier_preparation_is_replaced_whole_or_not_at_all(
    film, tmp_path, capsys, monkeypatch, ends
):
    """Also if the last step, to give the new folder its name, fails."""
    folder = tmp_path / "a"
    assert main([str(film), "-o", str(folder)]) == 0
    before = content(folder)
    replace = Path.replace

    def fails(path: Path, target: Path) -> Path:
        if target == folder:
            raise OSError(5, "Input/output error", str(path), None, str(target))
        return replace(path, target)

    if not ends:
        monkeypatch.setattr(Path, "replace", fails)
        assert "a cannot be created" in refused([film, "-o", folder, "--force"], capsys)
        assert content(folder) == before
    else:
        assert main([str(film), "-o", str(folder), "--force", "--no-audio"]) == 0
        assert "aud.wav" not in content(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"film.mp4", "a"}


def test_the_current_folder(film, tmp_path, capsys, monkeypatch):
    """To replace it would leave the user in a folder that is gone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "", tmp_path / "here"):
        assert "is the current folder" in refused([film, "-o", name], capsys)


def test_folders_that_would_be_replaced_in_vain(film, capsys):
    """A mount point cannot be renamed."""
    assert "/proc is a mount point; expected a new name" in refused([film, "-o", "/proc"], capsys)


def test_a_long_name(film, tmp_path):
    """That of the avatar is cut."""
    folder = tmp_path / ("x" * 230)
    assert main([str(film), "-o", str(folder), "--no-progress"]) == 0
    assert Avatar.load(folder, networks=False).name == "x" * 200


def test_a_name_that_is_too_long(film, tmp_path, capsys):
    said = refused([film, "-o", tmp_path / ("x" * 256)], capsys)
    assert said.endswith("x: File name too long")


@pytest.mark.parametrize("options", [[], ["--no-audio"]])
def test_a_full_disk(film, tmp_path, capsys, options):
    """The copy of the film, or the speech, does not fit."""
    size = film.stat().st_size - 1 if options else 20_000
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))  # Python ignores SIGXFSZ
    try:
        said = refused([film, "-o", tmp_path / "a", *options], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "a cannot be written: File too large" in said
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_ctrl_c_after_the_folder_was_written(film, tmp_path, capsys, monkeypatch):
    """It is not said that nothing was written."""

    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.prepare.Summary, "__str__", interrupted)
    assert main([str(film), "-o", str(tmp_path / "a")]) == 130
    assert f"interrupted: {tmp_path / 'a'} was written" in capsys.readouterr().err
