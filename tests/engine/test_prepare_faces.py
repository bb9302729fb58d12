"""Films of the drawn person become avatars, with the networks that find faces."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import engine.render
import train.__main__
import train.batches
import train.progress
from engine.avatar import Avatar
from engine.errors import InputError
from engine.pipeline import Pipeline
from engine.prepare import main
from tests.engine.media.sound_files import write_sound
from tests.engine.preparing.films import boxes_of, record_of, write_film
from tests.engine.preparing.people import SCALE, TALK, drawn, speech, true_boxes, write_talk
from tests.engine.videos import set_matrix

# What boxes of the mesh differ by from those of the drawn demo, in its pixels: x0, y0, x1.
OFFSET = np.array([-2.1, 5.3, 1.1])


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    """100 frames of the drawn person speaking, (640, 360, 3) uint8."""
    return drawn()


@pytest.fixture
def prepare(tmp_path, face_models, face_nets, capsys):
    """Return a function that prepares a film, and returns the folder and what was said."""

    def run(film: Path, *options: str, expected: int = 0) -> tuple[Path, str]:
        folder = tmp_path / "avatar"
        command = [str(film), "-o", str(folder), "--no-progress", "--models", str(face_models)]
        code = main([*command, *options])
        said = capsys.readouterr().err
        assert code == expected, said
        return folder, said

    return run


@pytest.fixture(scope="module")
def talk(tmp_path_factory, face_models, face_nets) -> Path:
    """The avatar of the whole film."""
    folder = tmp_path_factory.mktemp("talk") / "avatar"
    assert main([str(TALK), "-o", str(folder), "--models", str(face_models)]) == 0
    return folder


def film_of(path: Path, frames: list[np.ndarray], **options) -> Path:
    """Write a film of pictures, 25 a second, with speech."""
    return write_film(
        path,
        seconds=len(frames) / 25,
        scene=lambda t: frames[round(25 * t)],
        sound=speech,
        **options,
    )


def shrunk(frame: np.ndarray, width: int) -> np.ndarray:
    """Reduce a frame until its face box, 121 pixels, has another width, on a gray wall."""
    size = [round(side * width / 121) for side in (360, 640)]
    wall = Image.new("RGB", (360, 640), (120, 130, 140))
    wall.paste(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS), (100, 100))
    return np.asarray(wall)


def test_boxes_fit_the_drawing(talk):
    boxes = boxes_of(talk)
    apart = SCALE * (boxes - true_boxes(len(boxes)))[:, :3]
    assert np.abs(apart.mean(axis=0) - OFFSET).max() <= 2
    assert apart.std(axis=0).max() <= 2.5  # of whole pixels, which are two of the demo's
    record = record_of(talk)
    assert record["frames"]["copied"] and record["face"]["gaps"] == []
    assert 0.4 < record["face"]["turned_min"] <= record["face"]["turned_max"] < 0.6
    assert set(record["versions"]["networks"]) == {"detector", "mesh"}


@pytest.mark.parametrize("frames", [0, 8])
def test_sound_that_is_late_is_found(talk, prepare, people, tmp_path, frames):
    record = record_of(talk)
    if frames:
        folder, said = prepare(write_talk(tmp_path / "film.mp4", people, frames / 25))
        record = record_of(folder)
        assert re.search(r"the sound is [789] frames \(\d+ ms\) later than the lips", said)
    lag, correlation = record["sound"]["lips"]
    assert abs(lag - frames) <= 1 and correlation > 0.3
    assert not any("does not seem to speak" in line for line in record["warnings"])


@pytest.mark.parametrize("person", ["largest", "1", "2"])
def test_two_people(prepare, people, tmp_path, person):
    """The larger one is on the left."""
    frames = [np.hstack([frame, shrunk(frame[:, ::-1], 90)]) for frame in people[:26]]
    folder, said = prepare(film_of(tmp_path / "film.mp4", frames), "--person", person)
    boxes = boxes_of(folder)
    middle = (boxes[:, 0] + boxes[:, 2]) / 2
    assert (middle.max() < 360) if person != "2" else (middle.min() > 360)
    assert "other faces are in 26 frames" in said


@pytest.mark.parametrize(
    ("width", "expected", "message"),
    [
        (
            30,
            2,
            r"the face box has (29|3[012]) pixels a side; expected at least 64|no face was found",
        ),
        (55, 2, r"the face box has 5\d pixels a side; expected at least 64"),
        (121, 0, r"the face box has 12\d pixels at its smallest \(12\d in the middle\)"),
    ],
)
def test_small_people(prepare, people, tmp_path, width, expected, message):
    frames = [shrunk(frame, width) if width != 121 else frame for frame in people[:12]]
    _, said = prepare(film_of(tmp_path / "film.mp4", frames), expected=expected)
    assert re.search(message, said)


@pytest.mark.parametrize(("turns", "filter"), [(1, "clock"), (3, "cclock")])
def test_people_on_their_side(prepare, people, tmp_path, turns, filter):
    """A film that does not say how it is turned is refused; one that does is turned."""
    frames = [np.ascontiguousarray(np.rot90(frame, turns)) for frame in people[:12]]
    film = film_of(tmp_path / "film.mp4", frames)
    _, said = prepare(film, expected=2)
    assert "lies on the side" in said and f"transpose={filter} " in said
    set_matrix(film, *((0, -1, 1, 0) if turns == 3 else (0, 1, -1, 0)))
    folder, _ = prepare(film)
    assert Avatar.load(folder, networks=False).height == 640


def test_gaps_and_cuts(prepare, people, tmp_path):
    """Somebody holds a paper before the face for 4 frames, then for 10; then the scene changes."""
    frames = [frame.copy() for frame in people[:60]]
    for number in (*range(10, 14), *range(24, 34)):
        frames[number][150:420] = 235
    frames[45:] = [np.roll(frame, (60, 50), axis=(0, 1)) for frame in frames[45:]]
    film = film_of(tmp_path / "film.mp4", frames)
    _, said = prepare(film, expected=2)
    assert "no face was found in 10 frames at 0:00.96" in said
    folder, said = prepare(film, "--gaps", "cut")
    assert "no face was found in 4 frames at 0:00.40; the face boxes are interpolated" in said
    assert "the picture jumps at 0:01.80" in said
    assert len(boxes_of(folder)) == 50


def test_no_person(prepare, tmp_path):
    frames = [np.full((200, 200, 3), 100 + i, np.uint8) for i in range(10)]
    _, said = prepare(film_of(tmp_path / "film.mp4", frames), expected=2)
    assert "no face was found in its 10 frames" in said


def test_missing_networks(tmp_path, capsys, monkeypatch):
    """One line says which file is wanted and where to put it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    code = main([str(TALK), "-o", str(tmp_path / "a"), "--models", str(tmp_path / "models")])
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1
    assert str(tmp_path / "models") in said and not (tmp_path / "a").exists()


# --- what is made of it ---------------------------------------------------------------------------


def test_an_avatar_without_networks(talk, tmp_path, capsys):
    """A render says what is missing, and how to get it."""
    avatar = Avatar.load(talk, networks=False)
    assert (avatar.generator, avatar.audio_encoder) == (None, None) and len(avatar) == 100
    line = r"has no networks; train them \(python -m train .*, or name them in its avatar.json$"
    with pytest.raises(InputError, match=line):
        Avatar.load(talk)
    with pytest.raises(InputError, match="loaded without its networks"):
        Pipeline(avatar)
    sound = write_sound(tmp_path / "a.wav", np.zeros(24000), codec="pcm_s16le")
    command = ["--avatar", str(talk), "--audio", str(sound), "-o", str(tmp_path / "a.mp4")]
    assert engine.render.main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "python -m train --avatar DIR" in said and "--generator person.pth" in said


class FewCrops(train.batches._Batches):
    """Two mouths a step."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._crops = 2


def test_film_to_render(talk, tmp_path, capsys, monkeypatch):
    """A film, an avatar, 30 steps of training, a render: each takes what the one before made.

    The steps are on few and small crops, which takes a fifth of the time.
    """
    monkeypatch.setattr(train.batches, "_Batches", FewCrops)
    monkeypatch.setattr(train.batches, "mouth_cells", lambda mouth: (6, 3, 3, 4))
    monkeypatch.setattr(train.progress, "IMAGE_SAMPLES", 2)
    person, rendered = tmp_path / "person.pth", tmp_path / "out.mp4"
    command = ["--avatar", str(talk), "-o", str(person), "--steps", "30", "--batch", "2"]
    command += ["--crops", "1"]
    assert train.__main__.main([*command, "--no-progress", "--device", "cpu"]) == 0
    losses = json.loads(person.with_suffix(".json").read_text())["losses"]
    assert len(losses) == 30 and np.mean(losses[-5:]) < np.mean(losses[:5])
    sound = write_sound(tmp_path / "a.wav", speech(np.arange(16000) / 48000), codec="pcm_s16le")
    command = ["--avatar", str(talk), "--audio", str(sound), "-o", str(rendered)]
    networks = ["--generator", str(person), "--audio-encoder", str(person)]
    assert engine.render.main([*command, *networks, "--runtime", "torch", "--device", "cpu"]) == 0
    assert rendered.exists()
