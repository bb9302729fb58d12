"""Films of every kind become avatars, or are refused in one line.

Their heads are found by color (`tests.engine.preparing.films`); `test_prepare_faces` uses the real
networks.
"""

import hashlib
import re
import signal
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine.avatar import Avatar
from engine.media.mp4 import Mp4Writer
from engine.media.speech import read_samples
from engine.media.video import Video
from engine.prepare import main
from tests.engine.preparing.films import (
    HEAD,
    HEIGHT,
    WIDTH,
    beeps,
    beeps_in,
    boxes_of,
    flash,
    flashes_in,
    frames_of,
    head,
    record_of,
    sees,
    voice,
    write_film,
)
from tests.engine.videos import change_packet, hide_first, set_matrix

TIMES = (1, 2, 3)  # on frames of all whole rates
BLINKING = {"scene": flash(TIMES), "sound": beeps(TIMES)}
FILES = {"avatar.json", "boxes.json", "frames.mp4", "aud.wav", "prepare.json", "prepare.png"}


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    sees(monkeypatch)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Four seconds of a head that speaks."""
    return write_film(tmp_path_factory.mktemp("plain") / "film.mp4")


@pytest.fixture(scope="module")
def blinking(tmp_path_factory) -> Callable[..., Path]:
    """Return a function that returns the film with flashes and beeps at these times."""

    @cache
    def make(*times: float) -> Path:
        folder = tmp_path_factory.mktemp("blinking")
        return write_film(folder / "film.mp4", scene=flash(times), sound=beeps(times))

    return make


@pytest.fixture
def prepared(tmp_path, capsys):
    """Return a function that prepares a film, and returns the folder and what was said."""

    def run(film: Path, *options: str, expected: int = 0) -> tuple[Path, str]:
        folder = tmp_path / "avatar"
        code = main([str(film), "-o", str(folder), "--no-progress", *options])
        said = capsys.readouterr()
        assert code == expected, said.err
        if expected:
            assert not folder.exists() and said.err.count("error: ") == 1
            assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        else:
            check(folder)
        return folder, said.err + said.out

    return run


def check(folder: Path) -> None:
    """What is true of every prepared avatar."""
    record = record_of(folder)
    count, fps = record["frames"]["count"], Fraction(record["frames"]["fps"])
    avatar = Avatar.load(folder, networks=False)
    assert len(avatar) == len(frames_of(folder)) == len(boxes_of(folder)) == count
    assert avatar.fps == fps and avatar.pixel_aspect == 1
    boxes = boxes_of(folder)
    assert (boxes[:, 2] - boxes[:, 0] == boxes[:, 3] - boxes[:, 1]).all()
    if record["sound"] is not None:
        assert len(read_samples(folder / "aud.wav")) == round(count * 16000 / fps)
    assert {path.name for path in folder.iterdir()} <= FILES | {"frames.mkv"}


def check_together(folder: Path, times=TIMES) -> None:
    """Flashes and beeps are together within half a frame, and as many as there were."""
    flashes, sounds = flashes_in(folder), beeps_in(folder)
    fps = float(Fraction(record_of(folder)["frames"]["fps"]))
    assert len(flashes) == len(sounds) == len(times)
    assert np.abs(flashes - sounds).max() <= 0.5 / fps + 0.002


# --- rates ----------------------------------------------------------------------------------------

VARIABLE = [i / 30 for i in range(120) if i % 7 != 3 and not 40 < i < 46]


@pytest.mark.parametrize(
    ("rate", "doubled", "left_out"),
    [
        (24, 4, 0),
        (25, 0, 0),
        (Fraction(30000, 1001), 0, 20),
        (30, 0, 20),
        (50, 0, 100),
        (60, 0, 140),
    ],
)
def test_constant_rates(prepared, tmp_path, rate, doubled, left_out):
    film = write_film(tmp_path / "film.mp4", rate=rate, **BLINKING)
    folder, said = prepared(film)
    assert f"{doubled} frames repeated and {left_out} left out to get this rate" in said
    record = record_of(folder)["frames"]
    assert (record["count"], record["fps"]) == (100, "25")
    assert (record["doubled"], record["left_out"]) == (doubled, left_out)
    assert record["copied"] is (rate == 25)
    assert ("4 of them to get 25 a second (--fps source keeps the rate)" in said) is (rate == 24)
    check_together(folder)


def test_variable_rates(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", rate=30, times=VARIABLE, **BLINKING)
    assert Video(film).fps is None
    folder, said = prepared(film)
    assert record_of(folder)["frames"]["count"] == 100
    check_together(folder)
    assert "show what the one before shows, " in said and "--fps source" not in said


@pytest.mark.parametrize("rate", [24, Fraction(30000, 1001), 50])
def test_own_rate(prepared, tmp_path, rate):
    film = write_film(tmp_path / "film.mp4", rate=rate, **BLINKING)
    folder, _ = prepared(film, "--fps", "source")
    record = record_of(folder)["frames"]
    assert record["fps"] == str(rate) and record["count"] == len(Video(film))
    assert record["copied"] and (folder / "frames.mp4").read_bytes() == film.read_bytes()
    check_together(folder)


def test_own_rate_that_is_variable(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", rate=30, times=VARIABLE)
    _, said = prepared(film, "--fps", "source", expected=2)
    assert "the frame rate is variable; --fps source takes constant rates" in said


def test_pictures_far_from_their_time_are_a_gap(prepared, tmp_path):
    """The picture stands still for 1.6 s: no face may be trained there."""
    times = [i / 25 for i in range(125) if not 40 < i < 80]
    film = write_film(tmp_path / "film.mp4", seconds=5, times=times)
    _, said = prepared(film, expected=2)
    assert "29 frames at 0:01.84 (29 of them have no picture near their time)" in said
    folder, said = prepared(film, "--gaps", "cut")
    assert record_of(folder)["frames"]["count"] == 125 - 29


# --- geometry and colors --------------------------------------------------------------------------

# stored picture -> shown picture, and the display matrix (a, b, c, d) that says so
TURNS = {
    "90": (lambda rgb: np.rot90(rgb, 1), (0, 1, -1, 0)),
    "180": (lambda rgb: np.rot90(rgb, 2), (-1, 0, 0, -1)),
    "270": (lambda rgb: np.rot90(rgb, 3), (0, -1, 1, 0)),
    "mirrored": (lambda rgb: rgb[:, ::-1], (-1, 0, 0, 1)),
    "flipped": (lambda rgb: rgb[::-1], (1, 0, 0, -1)),
}


def aside(t: float) -> np.ndarray:
    """A head that is not in the middle, in a frame that is not symmetric."""
    frame = head(t, center=(100, 96))
    frame[: HEIGHT // 2, -20:] = 200
    return frame


def assert_shows(folder: Path, scene=aside, number: int = 10) -> None:
    """A frame is what the scene was, and its box is around the head."""
    frame = frames_of(folder)[number]
    expected = scene(number / 25)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 6
    x = 100 + 4 * np.sin(2 * np.pi * number / 25 / 3)
    box = np.array([x - HEAD / 2, 96 - HEAD / 2, x + HEAD / 2, 96 + HEAD / 2])
    assert np.abs(boxes_of(folder)[number] - box).max() <= 3


@pytest.mark.parametrize("turn", TURNS)
def test_turned_films(prepared, tmp_path, turn):
    stored, matrix = TURNS[turn]
    film = write_film(
        tmp_path / "film.mp4",
        scene=lambda t: np.ascontiguousarray(stored(flash(TIMES, aside)(t))),
        sound=beeps(TIMES),
    )
    set_matrix(film, *matrix)
    folder, _ = prepared(film)
    assert_shows(folder)
    assert not record_of(folder)["frames"]["copied"]
    check_together(folder)


@pytest.mark.parametrize(("aspect", "turn"), [((4, 3), None), ((3, 4), None), ((4, 3), "90")])
def test_pixels_that_are_not_square(prepared, tmp_path, aspect, turn):
    """The longer side stays, the shorter one grows."""
    wide, high = aspect

    def squeezed(t):
        frame = flash(TIMES, aside)(t)
        columns, rows = min(high / wide, 1), min(wide / high, 1)
        x = ((np.arange(round(WIDTH * columns)) + 0.5) / columns).astype(int)
        y = ((np.arange(round(HEIGHT * rows)) + 0.5) / rows).astype(int)
        return frame[y][:, x]

    stored, matrix = TURNS.get(turn, (lambda rgb: rgb, None))
    # a turned film has the ratio of its stored pixels
    ratio = Fraction(*aspect) if turn is None else Fraction(*aspect[::-1])
    film = write_film(
        tmp_path / "film.mp4",
        scene=lambda t: np.ascontiguousarray(stored(squeezed(t))),
        sound=beeps(TIMES),
        aspect=ratio,
    )
    if matrix:
        set_matrix(film, *matrix)
    folder, _ = prepared(film)
    assert_shows(folder)
    check_together(folder)


def test_ten_bits(prepared, tmp_path):
    film = write_film(
        tmp_path / "film.mp4",
        scene=flash(TIMES, aside),
        sound=beeps(TIMES),
        pix_fmt="yuv420p10le",
    )
    assert Video(film).stream.bits == 10
    folder, _ = prepared(film)
    assert_shows(folder)
    assert Video(folder / "frames.mp4").stream.bits == 8
    check_together(folder)


def test_interlaced_films_are_taken_with_a_warning(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", options={"x264-params": "tff=1"})
    _, said = prepared(film)
    assert "is interlaced" in said


# --- sound ----------------------------------------------------------------------------------------


def test_late_sound(prepared, tmp_path):
    """Sound that starts 2.43 s after the picture stays there."""
    times = (2.6, 3.2, 4.4)
    film = write_film(
        tmp_path / "film.mp4", seconds=5, scene=flash(times), sound=beeps(times), sound_at=2.43
    )
    folder, _ = prepared(film)
    check_together(folder, times)
    assert np.abs(read_samples(folder / "aud.wav")[: int(2.3 * 16000)]).max() == 0


def test_late_picture(prepared, tmp_path):
    """Sound before the first frame is dropped."""
    times = [0.64 + i / 25 for i in range(84)]
    film = write_film(tmp_path / "film.mp4", times=times, **BLINKING)
    folder, _ = prepared(film)
    check_together(folder)
    assert np.abs(flashes_in(folder) - (np.array(TIMES) - 0.64)).max() < 0.021


def test_no_sound(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", sound=None)
    _, said = prepared(film, expected=2)
    assert "has no sound; if that is meant, add --no-audio" in said
    folder, _ = prepared(film, "--no-audio")
    assert not (folder / "aud.wav").exists() and record_of(folder)["sound"] is None
    assert record_of(folder)["options"] == {
        "fps": "25", "gaps": "interpolate", "person": "largest", "audio": False,
    }  # fmt: skip


def test_silence(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", sound=lambda t: 0 * t)
    _, said = prepared(film, expected=2)
    assert "has silence for its sound; if that is meant, add --no-audio" in said
    prepared(film, "--no-audio")


@pytest.mark.parametrize(("gain", "clipped"), [(1, False), (3, False), (12, True)])
def test_clipped_sound(prepared, tmp_path, gain, clipped):
    folder, said = prepared(write_film(tmp_path / "film.mp4", gain=gain))
    assert ("of the sound is clipped" in said) is clipped
    assert (record_of(folder)["sound"]["clipped"] > 0.01) is clipped


def test_channels_that_cancel_each_other(prepared, tmp_path):
    """It is said, and the avatar's speech is one of them."""
    film = write_film(tmp_path / "film.mp4", seconds=2, gains=(1, -1))
    folder, said = prepared(film)
    assert "is used alone" in said
    assert any("is used alone" in line for line in record_of(folder)["warnings"])
    assert np.abs(read_samples(folder / "aud.wav")).max() > 0.2


def test_little_speech(prepared, plain, tmp_path):
    """One second of four."""
    film = write_film(tmp_path / "film.mp4", sound=lambda t: voice(t) * (t < 1))
    _, said = prepared(film)
    assert "there is speech in" in said
    _, said = prepared(plain, "--force")
    assert "there is speech in" not in said


def test_sound_that_ends_early(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", seconds=3, times=[i / 25 for i in range(100)])
    _, said = prepared(film)
    assert "the sound ends 1.0 s before the picture" in said


def test_sound_that_ends_late(prepared, tmp_path):
    """What has no picture is left out, and a warning says so."""
    film = write_film(tmp_path / "film.mp4", seconds=4, times=[i / 25 for i in range(75)])
    _, said = prepared(film)
    assert "the last 1.0 s of the sound have no picture; left out" in said


@pytest.mark.parametrize("frames", [-8, -4, 0, 1, 4, 8])
def test_lips_and_sound(prepared, tmp_path, frames):
    film = write_film(tmp_path / "film.mp4", seconds=8, sound=lambda t: voice(t - frames / 25))
    folder, said = prepared(film)
    lag, correlation = record_of(folder)["sound"]["lips"]
    assert abs(lag - frames) <= 1 and correlation > 0.5
    way = "later" if frames > 0 else "earlier"
    assert (f"the sound is {abs(lag)} frames" in said and f"{way} than the lips" in said) is (
        abs(frames) > 1
    )
    assert "does not seem to speak" not in said


def test_a_person_who_does_not_speak(prepared, tmp_path):
    """The sound is somebody else's."""
    film = write_film(
        tmp_path / "film.mp4", seconds=20, sound=lambda t: voice(1.31 * (23 - t)), scene=head
    )
    _, said = prepared(film)
    assert "the person does not seem to speak" in said


# --- faces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "count", "gaps", "kept"),
    [
        (30, 1, "interpolate", 100),
        (30, 1, "refuse", None),
        (30, 5, "interpolate", 100),
        (30, 5, "cut", 100),
        (30, 6, "interpolate", None),
        (30, 6, "cut", 94),
        (30, 50, "interpolate", None),
        (30, 50, "refuse", None),
        (30, 50, "cut", 50),
        (0, 5, "interpolate", 95),
        (95, 5, "interpolate", 95),
        (0, 6, "interpolate", None),
        (90, 10, "cut", 90),
    ],
)
def test_gaps(prepared, blinking, monkeypatch, first, count, gaps, kept):
    sees(monkeypatch, hidden=range(first, first + count))
    times = (0.4, 3.2) if first == 30 else (0.8, 2.0)
    folder, said = prepared(blinking(*times), "--gaps", gaps, expected=0 if kept else 2)
    frames = "1 frame" if count == 1 else f"{count} frames"
    assert f"no face was found in {frames} at 0:{first / 25:05.2f}" in said
    if not kept:
        return
    assert "have no picture" not in said  # the sound is compared with the whole film
    record = record_of(folder)
    assert record["frames"]["count"] == kept and record["frames"]["cut_out"] == 100 - kept
    assert record["face"]["gaps"] == [[first, first + count, kept == 100]]
    assert record["frames"]["copied"] is (kept == 100)
    check_together(folder, times)
    if first == 30 and kept < 100:  # what came after the gap comes earlier by its length
        assert abs(flashes_in(folder)[1] - (3.2 - count / 25)) < 0.001


def test_no_face(prepared, plain, monkeypatch):
    sees(monkeypatch, hidden=range(100))
    for gaps in ("interpolate", "cut", "refuse"):
        _, said = prepared(plain, "--gaps", gaps, expected=2)
        assert "no face was found in its 100 frames" in said


def test_a_person_on_the_side(prepared, plain, monkeypatch):
    sees(monkeypatch, hidden=range(100), turns=1)
    _, said = prepared(plain, expected=2)
    assert "lies on the side" in said and "transpose=cclock" in said


def test_a_cut(prepared, tmp_path):
    film = write_film(
        tmp_path / "film.mp4",
        scene=lambda t: head(t, center=(120, 100) if t < 1.99 else (86, 110)),
    )
    folder, said = prepared(film)
    assert "the picture jumps at 0:02.00; film without cuts" in said
    assert record_of(folder)["face"]["cuts"] == [50]
    boxes = boxes_of(folder)
    assert boxes[50, 0] < boxes[49, 0] - 25  # not smoothed


def test_two_people(prepared, plain, monkeypatch):
    sees(monkeypatch, others=1)
    folder, said = prepared(plain)
    assert "other faces are in 100 frames; the one nearest to the last is followed" in said
    assert record_of(folder)["face"]["other_faces"] == 100


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (30, r"the face box has (\d+) pixels a side; expected at least 64"),
        (60, r"the face box has (\d+) pixels a side; expected at least 64"),
        (120, r"the face box has (\d+) pixels at its smallest .*; expected 160 or more"),
        (168, None),
    ],
)
def test_sizes(prepared, tmp_path, size, message):
    film = write_film(tmp_path / "film.mp4", scene=lambda t: head(t, size=size))
    _, said = prepared(film, expected=2 if size < 64 else 0)
    if message is None:
        assert "the face box has" not in said
    else:
        assert abs(int(re.search(message, said)[1]) - size) <= 2


@pytest.mark.parametrize(("nose", "turned"), [(0.28, True), (0.5, False), (0.72, True)])
def test_a_turned_head(prepared, plain, monkeypatch, nose, turned):
    sees(monkeypatch, nose=nose)
    _, said = prepared(plain)
    assert ("the head is turned away in 100 frames" in said) is turned


def test_a_face_that_is_partly_out(prepared, tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", scene=lambda t: head(t, center=(-10, 100)))

    class Beyond:
        """Sees the whole head, also what is out of the picture."""

        def __init__(self):
            from tests.engine.preparing.films import HeadTracker

            self._inner = HeadTracker()

        def follow(self, rgb):
            tracked = self._inner.follow(rgb)
            tracked.landmarks.points[[93, 234], 0] = tracked.landmarks.points[323, 0] - HEAD
            return tracked

    import engine.prepare

    monkeypatch.setattr(engine.prepare, "open_tracker", lambda *_: (Beyond, {}))
    folder, said = prepared(film)
    assert "the face is partly out of the picture in 100 frames" in said
    assert boxes_of(folder)[:, 0].max() < -80


def test_a_chin_that_is_out(prepared, plain, monkeypatch):
    sees(monkeypatch, chin=30)
    _, said = prepared(plain)
    assert "the chin is out of the picture in 100 frames" in said


@pytest.mark.parametrize(("light", "dark"), [(1, False), (0.35, True)])
def test_dark_films(prepared, tmp_path, light, dark):
    film = write_film(tmp_path / "film.mp4", scene=lambda t: (head(t) * light).astype(np.uint8))
    _, said = prepared(film)
    assert ("the face is dark" in said) is dark


@pytest.mark.parametrize(("change", "drifts"), [(0.05, False), (0.5, True)])
def test_drifting_light(prepared, tmp_path, change, drifts):
    film = write_film(
        tmp_path / "film.mp4",
        seconds=8,
        scene=lambda t: (head(t) * (1 - change * t / 8)).astype(np.uint8),
    )
    _, said = prepared(film)
    assert ("the light on the face changes by" in said) is drifts


def test_a_flicker_does_not_drift(prepared, tmp_path):
    """Its period is 2 s of the film's own frames."""
    film = write_film(
        tmp_path / "film.mp4",
        seconds=8,
        rate=50,
        scene=lambda t: (head(t) * (1 if t % 2 < 1 else 0.6)).astype(np.uint8),
    )
    folder, _ = prepared(film, "--fps", "source")
    assert record_of(folder)["face"]["luma_drift"] < 0.05


@pytest.mark.parametrize("rate", [25, 12.5, 25 / 3])
def test_doubled_frames(prepared, tmp_path, rate):
    """A film of 25 frames a second whose pictures come at another rate."""
    film = write_film(
        tmp_path / "film.mp4",
        scene=lambda t: head(int(t * rate + 0.01) / rate),
        options={"crf": "23", "preset": "veryfast"},
    )
    folder, said = prepared(film)
    share = record_of(folder)["face"]["repeated"] / 100
    assert ("show what the one before shows" in said) is (rate < 25)
    assert share <= 0.01 if rate == 25 else share >= 0.6 * (1 - rate / 25)


# --- containers and damage ------------------------------------------------------------------------


def test_a_right_film_is_copied(prepared, tmp_path, monkeypatch):
    """If it is long enough, nothing is to be said."""
    monkeypatch.setattr("engine.preparing.figures.SHORT", 8)
    film = write_film(tmp_path / "film.mp4", seconds=8)
    folder, said = prepared(film)
    assert "warning: " not in said and "no warnings" in said
    assert (folder / "frames.mp4").read_bytes() == film.read_bytes()
    record = record_of(folder)
    assert record["frames"]["copied"] and record["warnings"] == []
    assert record["source"]["sha256"] == hashlib.sha256(film.read_bytes()).hexdigest()
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_film_with_few_keyframes_is_encoded(prepared, tmp_path):
    """Else each render would warn that playing it backwards is slow."""
    film = write_film(
        tmp_path / "film.mp4", seconds=13, options={"g": "1000", "x264-params": "keyint=1000"}
    )
    assert Video(film).keyframes == [0]
    folder, _ = prepared(film)
    assert not record_of(folder)["frames"]["copied"]
    assert len(Video(folder / "frames.mp4").keyframes) == 13


AVI = {"codec": "mpeg4", "voice_codec": "pcm_s16le"}  # it has no timestamps for others


@pytest.mark.parametrize(
    ("suffix", "kind", "copied"),
    [("mkv", {}, True), ("mov", {}, True), ("ts", {}, False), ("avi", AVI, False)],
)
def test_containers(prepared, tmp_path, suffix, kind, copied):
    film = write_film(tmp_path / f"film.{suffix}", **BLINKING, **kind)
    folder, _ = prepared(film)
    assert record_of(folder)["frames"]["copied"] is copied
    check_together(folder)


def test_other_codecs(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", codec="mpeg4", **BLINKING)
    folder, _ = prepared(film)
    assert not record_of(folder)["frames"]["copied"]
    check_together(folder)


def test_edit_lists(prepared, tmp_path):
    """Frames that it hides are not the avatar's, and the sound fits the others."""
    film = write_film(tmp_path / "film.mp4", options={"bf": "0"}, **BLINKING)
    hide_first(film, 8)
    folder, _ = prepared(film)
    assert record_of(folder)["frames"]["count"] == 92
    assert np.abs(flashes_in(folder) - (np.array(TIMES) - 0.32)).max() < 0.001


def test_first_frames_that_are_lost(prepared, tmp_path):
    """They are in the container, so the sound begins with them."""
    film = write_film(
        tmp_path / "film.webm", codec="libvpx-vp9", voice_codec="libopus", **BLINKING,
        options={"g": "4", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"},
    )  # fmt: skip
    change_packet(film, 0, lambda packet: bytes(len(packet)))
    folder, said = prepared(film)
    assert "damaged" in said and record_of(folder)["frames"]["count"] == 100
    check_together(folder)


def broken(packet: bytearray) -> bytearray:
    for i in range(40, len(packet) - 4, 3):
        packet[i] ^= 0x55
    return packet


def test_damaged_frames(prepared, tmp_path):
    """They are named, and the nearest whole frame is in their place."""
    times = (0.4, 1.4, 2.4)
    film = write_film(
        tmp_path / "film.mp4", options={"bf": "0"}, scene=flash(times), sound=beeps(times)
    )
    change_packet(film, 45, broken)
    folder, said = prepared(film)
    assert (
        "is damaged; frames that are broken, or predicted from broken ones: 45-49 (5 of 100)"
        in said
    )
    record = record_of(folder)
    assert record["frames"]["damaged"] == 5 and record["frames"]["count"] == 100
    frames = frames_of(folder)
    for number, source in ((45, 44), (46, 44), (48, 50), (49, 50)):
        assert np.abs(frames[number].astype(int) - head(source / 25)).mean() < 6
    check_together(folder, times)


def test_a_long_damage_is_a_gap(prepared, tmp_path):
    film = write_film(tmp_path / "film.mp4", options={"bf": "0"})
    change_packet(film, 26, broken)
    _, said = prepared(film, expected=2)
    assert "26-49 (24 of 100)" in said and "no face was found in 14 frames at 0:01.24" in said
    folder, _ = prepared(film, "--gaps", "cut")
    assert record_of(folder)["frames"]["count"] == 86


def test_not_a_film(prepared, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"no film" * 100)
    prepared(tmp_path / "film.mp4", expected=2)
    _, said = prepared(tmp_path / "missing.mp4", expected=2)
    assert "missing.mp4 does not exist" in said


# --- the folder -----------------------------------------------------------------------------------


def test_leftovers_of_another_film(tmp_path, capsys):
    folder = tmp_path / "avatar"
    first = write_film(tmp_path / "first.mp4", rate=30)
    second = write_film(tmp_path / "second.mp4", seconds=3, sound=None)
    assert main([str(first), "-o", str(folder)]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    command = [str(second), "-o", str(folder), "--no-audio"]
    assert main(command) == 2
    assert "is not empty" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "person.pth").write_text("hours of training")
    assert main([*command, "--force"]) == 2
    assert "'person.pth'" in capsys.readouterr().err
    (folder / "person.pth").unlink()
    assert main([*command, "--force"]) == 0
    assert {path.name for path in folder.iterdir()} == FILES - {"aud.wav"}
    assert record_of(folder)["source"]["name"] == "second.mp4"
    check(folder)


def test_the_film_is_not_overwritten(tmp_path, capsys):
    film = write_film(tmp_path / "first.mp4", seconds=2)
    folder = tmp_path / "avatar"
    folder.mkdir()
    (folder / "frames.mp4").write_bytes(film.read_bytes())
    assert main([str(folder / "frames.mp4"), "-o", str(folder), "--force"]) == 2
    assert "is a file of" in capsys.readouterr().err
    assert (folder / "frames.mp4").read_bytes() == film.read_bytes()


def test_folders_that_cannot_be(tmp_path, capsys):
    film = write_film(tmp_path / "film.mp4", seconds=2)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name, said in (("file", "is a file"), ("link", "is a link"), ("a/b", "create it first")):
        assert main([str(film), "-o", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("force", [False, True])
def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capsys, force):
    """Nor does it touch an earlier preparation."""
    film = write_film(tmp_path / "film.mp4", rate=30)
    folder = tmp_path / "avatar"
    if force:
        assert main([str(film), "-o", str(folder)]) == 0
    before = sorted(path.name for path in tmp_path.rglob("*"))
    sees(monkeypatch, interrupted_at=50)
    assert main([str(film), "-o", str(folder), *["--force"] * force]) == 130
    assert "interrupted: nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_ctrl_c_while_a_frame_is_encoded(tmp_path, monkeypatch):
    """The encoder is closed after it has finished: to close it earlier may kill the process."""
    order, encode, close = [], Mp4Writer.write_frame, Mp4Writer._close

    def write_frame(self, rgb):
        if rgb is not None and self._written == 20:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.3)  # the main thread sees the signal meanwhile
        encode(self, rgb)
        order.append("encoded")

    def closed(self, *raised):
        order.append("closed")
        close(self, *raised)

    monkeypatch.setattr(Mp4Writer, "write_frame", write_frame)
    monkeypatch.setattr(Mp4Writer, "_close", closed)
    film = write_film(tmp_path / "film.mp4", seconds=2, rate=30)
    assert main([str(film), "-o", str(tmp_path / "avatar")]) == 130
    assert order == ["encoded"] * 21 + ["closed"]
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_options(plain, tmp_path, capsys):
    for options, said in (
        (["--person", "0"], "expected largest, or a number from 1"),
        (["--fps", "30"], "invalid choice: '30'"),
        (["--gaps", "keep"], "invalid choice: 'keep'"),
    ):
        with pytest.raises(SystemExit) as end:
            main([str(plain), "-o", str(tmp_path / "avatar"), *options])
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_progress(tmp_path, capsys, monkeypatch):
    """The bar shows how many frames there are, and what is left."""
    film = write_film(tmp_path / "film.mp4", seconds=2)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main([str(film), "-o", str(tmp_path / "avatar")]) == 0
    assert "50/50" in capsys.readouterr().err


def test_the_contact_sheet(prepared, plain, monkeypatch):
    from PIL import Image

    sees(monkeypatch, hidden=(30, 31, 60))
    folder, _ = prepared(plain)
    with Image.open(folder / "prepare.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (3 * 266, 960, 3)  # 8 + the most turned + the smallest + 2 gaps
    yellow = (pixels == (255, 255, 0)).all(axis=2)
    for place in range(12):
        y, x = place // 4 * 266, place % 4 * 240
        drawn = yellow[y : y + 240, x : x + 240]
        assert drawn.any() is np.bool_(place < 10)
        if place < 10:  # the box is around the head
            tile = pixels[y : y + 240, x : x + 240].astype(int)
            skin = (tile[..., 0] > 120) & (tile[..., 1] < 100) & (tile[..., 2] > 120)
            for axis in (0, 1):
                ends = [np.flatnonzero(part.any(axis=axis))[[0, -1]] for part in (drawn, skin)]
                assert np.abs(ends[0] - ends[1]).max() <= 4
