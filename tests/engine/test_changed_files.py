"""An avatar's frames and the speech change, or are removed, while they are rendered."""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from engine import render
from tests.engine import tiny
from tests.engine.files import write_video

FRAMES = 80
LATE = 70  # a frame that is read long after the first batch was written
SECONDS = 4
RENDERED = 99


@pytest.fixture
def rendered(tmp_path, monkeypatch, capsys):
    """Return a function that renders, changes something after the first batch, and returns the
    code and the last line of the errors."""

    def run(avatar: Path, audio: Path, change) -> tuple[int, str]:
        changes = [change]
        write = render.VideoWriter.write

        def write_and_change(writer, pixels):
            write(writer, pixels)
            if changes:
                changes.pop()()

        monkeypatch.setattr(render.VideoWriter, "write", write_and_change)
        folder = tmp_path / "out"
        folder.mkdir()
        options = ["--avatar", avatar, "--audio", audio, "-o", folder / "o.mp4"]
        options += ["--frames", folder / "frames", "--device", "cpu", "--no-progress"]
        code = render.main([str(option) for option in options])
        out, errors = capsys.readouterr()
        assert not changes
        assert not [t for t in threading.enumerate() if t.name.startswith("viseme")]
        if code == 0:
            assert sorted(path.name for path in folder.iterdir()) == ["frames", "o.mp4"]
            assert len(list((folder / "frames").iterdir())) == RENDERED
            with av.open(str(folder / "o.mp4")) as container:
                assert sum(1 for _ in container.decode(video=0)) >= RENDERED
        else:
            assert code == 2 and out == ""
            assert list(folder.iterdir()) == []
        *_, line = errors.splitlines()
        assert [each for each in errors.splitlines() if each.startswith("error: ")] == (
            [line] if code else []
        )
        return code, line

    return run


@pytest.fixture
def avatar(tmp_path) -> Path:
    root = tiny.write_avatar(tmp_path / "avatar", frames=FRAMES)
    (root / "boxes.json").write_text(json.dumps([[10, 20, 60, 70]] * FRAMES))
    return root


@pytest.fixture
def audio(tmp_path) -> Path:
    return tiny.write_speech(tmp_path / "speech.wav", SECONDS)


def replaced(path: Path, make) -> None:
    path.unlink()
    make(path)


IMAGE_CHANGES = {
    "removed": (Path.unlink, "cannot be opened: No such file or directory"),
    "emptied": (lambda path: os.truncate(path, 0), "cannot be read as an image"),
    "cut": (lambda path: os.truncate(path, 900), "cannot be read as an image"),
    "no image": (lambda path: path.write_text("{}"), "cannot be read as an image"),
    "too large": (lambda path: os.truncate(path, 1 << 40), "has 1099511627776 bytes"),
    "of another size": (
        lambda path: Image.new("RGB", (96, 80)).save(path),
        "changed its size while it was in use",
    ),
    "a pipe": (lambda path: replaced(path, os.mkfifo), "is a FIFO; expected a file"),
    "a device": (
        lambda path: replaced(path, lambda path: path.symlink_to("/dev/zero")),
        "leads out of the avatar folder through a link",
    ),
    "a folder": (lambda path: replaced(path, Path.mkdir), "is a folder; expected a file"),
    "without its folder": (
        lambda path: path.parent.rename(path.parent.with_name("old")),
        "cannot be opened: No such file or directory",
    ),
}


@pytest.mark.parametrize("name", IMAGE_CHANGES)
def test_an_image_changes(avatar, audio, rendered, name):
    change, reason = IMAGE_CHANGES[name]
    path = avatar / "frames" / f"{LATE}.png"
    code, line = rendered(avatar, audio, lambda: change(path))
    assert code == 2 and re.match(f"error: {path.parent}/[0-9]+.png {reason}", line)
    assert name == "without its folder" or str(path) in line


def test_other_parts_of_the_avatar_are_removed(avatar, audio, rendered):
    """They were read before: nothing happens."""

    def change() -> None:
        for path in avatar.iterdir():
            if path.is_file():
                path.unlink()

    code, _ = rendered(avatar, audio, change)
    assert code == 0


@pytest.fixture
def film(avatar) -> Path:
    """The same avatar with a film of 2 MB of noise, of which a decoder reads a little at a time."""
    shutil.rmtree(avatar / "frames")
    noise = np.random.default_rng(1).integers(0, 256, (FRAMES, 96, 80, 3), np.uint8)
    path = write_video(avatar / "film.mp4", noise, g="8")
    record = (avatar / "avatar.json").read_text().replace('"frames"', '"film.mp4"', 2)
    (avatar / "avatar.json").write_text(record.replace('"film.mp4":', '"frames":', 1))
    return path


def another_film(path: Path) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (FRAMES, 96, 80, 3), np.uint8)
    write_video(path.with_name("other.mp4"), noise, g="8")
    shutil.copy(path.with_name("other.mp4"), path)  # the same file with other bytes


FILM_CHANGES = {
    "removed": Path.unlink,
    "renamed over": lambda path: path.with_name("avatar.json").rename(path),
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another": another_film,
}


@pytest.mark.parametrize("name", FILM_CHANGES)
def test_a_film_changes(avatar, film, audio, rendered, name):
    """One that has no name any more is still there for a render that has opened it."""
    assert film.stat().st_size > 1_000_000
    code, line = rendered(avatar, audio, lambda: FILM_CHANGES[name](film))
    if name in ("removed", "renamed over"):
        assert code == 0
    else:
        assert code == 2 and "film.mp4" in line


@pytest.mark.parametrize("change", [Path.unlink, lambda path: os.truncate(path, 50_000)])
def test_the_speech_changes(avatar, audio, rendered, change):
    """It was read before the first frame. The sound of the mp4 is read meanwhile."""
    code, _ = rendered(avatar, audio, lambda: change(audio))
    assert code == 0
