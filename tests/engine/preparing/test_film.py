"""The pictures of a film: their size, which stand for damaged ones, and when the file is copied."""

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engine.errors import InputError
from engine.preparing import film as module
from engine.preparing.film import Damaged, Film
from tests.engine.preparing.films import write_film
from tests.engine.videos import change_packet, encode, moving

FPS = Fraction(25)
COUNT = 40
# A group of 20 frames, each predicted from the one before.
GROUPS = {"g": "20", "bf": "0", "crf": "12", "x264-params": "scenecut=0"}


def emptied(data: bytearray) -> bytes:
    return bytes(len(data))


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return moving(COUNT)


@pytest.fixture
def plain(tmp_path, frames) -> Path:
    return encode(tmp_path / "film.mp4", frames, options=GROUPS)


@pytest.mark.parametrize(
    ("aspect", "size", "copied"),
    [
        (Fraction(201, 200), (72, 90), ".mp4"),
        (Fraction(16, 15), (72, 96), None),  # PAL
        (Fraction(8, 9), (81, 90), None),  # NTSC
    ],
)
def test_pixels_of_television(tmp_path, aspect, size, copied):
    picture = np.full((72, 90, 3), 128, np.uint8)
    path = write_film(
        tmp_path / "film.mp4", seconds=0.2, scene=lambda t: picture, sound=None, aspect=aspect
    )
    film = Film(path, FPS)
    assert (film.height, film.width) == size and film.suffix_to_copy == copied
    assert {picture.rgb.shape[:2] for picture in film.pictures()} == {size}


@pytest.mark.parametrize(("limit", "value"), [("MAX_SIDE", 63), ("MAX_PIXELS", 64 * 48 - 1)])
def test_frames_that_are_too_large(plain, monkeypatch, limit, value):
    monkeypatch.setattr(module, limit, value)
    with pytest.raises(InputError, match=r"film.mp4 has frames of 64 x 48; expected at most"):
        Film(plain, FPS)
    monkeypatch.setattr(module, limit, value + 1)
    assert len(Film(plain, FPS)) == COUNT


def test_a_rate_that_no_avatar_has(tmp_path, frames):
    path = encode(tmp_path / "film.mkv", frames, rate=300, time_base=Fraction(1, 1000),
                  times=[round(1000 * n / 300) for n in range(COUNT)])  # fmt: skip
    with pytest.raises(
        InputError, match="the frame rate is 300; --fps source takes constant rates"
    ):
        Film(path, None)
    assert len(Film(path, FPS)) == 3


@pytest.mark.filterwarnings("ignore:.*is interlaced")
def test_an_interlaced_film_is_not_copied(tmp_path, frames):
    """Each render of the copy would warn."""
    options = GROUPS | {"x264-params": "tff=1:scenecut=0"}
    assert Film(encode(tmp_path / "film.mp4", frames, options=options), FPS).suffix_to_copy is None


@pytest.mark.filterwarnings("ignore:.*begins with 20 frames")
def test_a_film_whose_first_frames_cannot_be_decoded_is_not_copied(plain, frames):
    """Each render of the copy would warn."""
    change_packet(plain, 0, emptied)
    film = Film(plain, FPS)
    assert film.suffix_to_copy is None
    assert np.abs(next(film.pictures()).rgb.astype(int) - frames[20]).mean() < 4


@pytest.mark.parametrize("packet", [25, COUNT - 1])
def test_a_frame_that_the_decoder_leaves_out(plain, frames, packet):
    """In the middle and at the end. What was predicted from it is not used either."""
    assert Film(plain, FPS).suffix_to_copy == ".mp4"
    change_packet(plain, packet, emptied)
    film = Film(plain, FPS)
    with pytest.raises(Damaged):
        list(film.pictures())
    with pytest.warns(UserWarning, match=rf"damaged; .*: {packet}.* \({COUNT - packet} of 40\)"):
        film.leave_out_damage()
    pictures = list(film.pictures())
    assert film.suffix_to_copy is None and len(pictures) == COUNT
    assert [picture.source for picture in pictures] == [min(n, packet - 1) for n in range(COUNT)]
    for picture in pictures:
        assert np.abs(picture.rgb.astype(int) - frames[picture.source]).mean() < 4


@pytest.mark.parametrize("found", [[], range(COUNT)])
def test_damage_that_leaves_nothing_or_is_not_found_again(plain, monkeypatch, found):
    """It would be looked for for ever."""
    film = Film(plain, FPS)
    monkeypatch.setattr(film.video, "damaged_frames", lambda: list(found))
    with pytest.raises(InputError, match="film.mp4 is damaged; too few of its frames can be decod"):
        film.leave_out_damage()


def test_a_film_that_is_written_to(plain):
    """Also if its size stays."""
    film = Film(plain, FPS)
    film.check_unchanged()
    os.utime(plain, ns=(1, 1))
    with pytest.raises(InputError, match=r"film.mp4 changed while it was in use"):
        film.check_unchanged()
    film = Film(plain, FPS)
    plain.unlink()
    with pytest.raises(InputError, match=r"film.mp4 changed while it was in use"):
        film.check_unchanged()
