"""Renders with avatars that are videos: properties that the mp4 keeps, and videos that are
refused."""

import json
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.io import wavfile

from engine import Avatar, InputError
from engine.media.video import Video
from engine.render import main
from tests.engine.files import Folders
from tests.engine.videos import CASES, encode, hide_first, set_matrix


@pytest.fixture(scope="module")
def audio(tmp_path_factory, speech) -> Path:
    """0.4 s of speech in a file."""
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    wavfile.write(path, 16000, (speech[16000:22400].numpy() * 32767).astype(np.int16))
    return path


def film_avatar(own: Folders, fps: object = None, **how) -> Path:
    """Encode the frames of the avatar `own` as a video; without `fps`, in a layout that takes the
    video's rate."""
    if fps is None:
        root = own.package(video=True)
        film = root / "full_body_video.mp4"
    else:
        root = own.native(video=True, fps=fps)
        film = root / "frames.mp4"
    encode(film, own.frames, options={"qp": "0"}, **how)
    return root


def render(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("turn", [False, True])
def test_wide_pixels_stay_wide(own, audio, tmp_path, capsys, turn):
    """The mp4 has the pixel aspect ratio; images cannot have it."""
    root = film_avatar(own, tags={"sample_aspect_ratio": Fraction(4, 3)})
    aspect = Fraction(3, 4) if turn else Fraction(4, 3)
    if turn:
        set_matrix(root / "full_body_video.mp4", 0, 1, -1, 0)
    assert Avatar.load(root).pixel_aspect == aspect
    out = tmp_path / "o.mp4"
    arguments = ["--avatar", root, "--audio", audio, "-o", out]
    assert render(*arguments) == 0
    assert "warning" not in capsys.readouterr().err
    with av.open(str(out)) as container:
        video = container.streams.video[0]
        assert video.sample_aspect_ratio == aspect
        assert video.codec_context.sample_aspect_ratio == aspect
    assert Video(out).stream.pixel_aspect == aspect
    assert render(*arguments, "--frames", tmp_path / "frames") == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert f"has a pixel aspect ratio of {float(aspect):.3g}" in said and "cannot" in said


def test_no_warning_for_square_pixels(own, audio, tmp_path, capsys):
    root = film_avatar(own)
    assert Avatar.load(root).pixel_aspect == Avatar.load(own.native("images")).pixel_aspect == 1
    options = ["--frames", tmp_path / "frames"]
    assert render("--avatar", root, "--audio", audio, "-o", tmp_path / "o.mp4", *options) == 0
    assert "warning" not in capsys.readouterr().err
    assert Video(tmp_path / "o.mp4").stream.pixel_aspect == 1


def test_a_turned_film_is_rendered_upright(own, audio, tmp_path):
    """Boxes are in pixels after rotation."""
    root = film_avatar(own)
    upright = Avatar.load(root)
    before = upright.batch([0, 1, 2, 3])[0].numpy()
    set_matrix(root / "full_body_video.mp4", 1, 0, 0, -1)
    avatar = Avatar.load(root)
    assert np.array_equal(avatar.batch([0, 1, 2, 3])[0].numpy(), before[:, ::-1])
    assert render("--avatar", root, "--audio", audio, "-o", tmp_path / "o.mp4") == 0
    out = Video(tmp_path / "o.mp4")
    shown = out.pixels(next(out.frames())[1]).astype(int)
    # frame 1 comes first; its edge is not the mouth's
    assert np.abs(shown[:8] - before[1, ::-1][:8]).mean() < 6
    assert np.abs(shown[:8] - before[1][:8]).mean() > 12


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("variable_rate.mp4", "has a variable frame rate (40 to 80 ms from frame to frame)"),
        ("hlg.mp4", "is HDR (HLG, ARIB STD-B67)"),
    ],
)
def test_films_that_are_refused(own, audio, tmp_path, capsys, name, message):
    root = film_avatar(own, fps=25)
    (root / "frames.mp4").write_bytes((CASES / name).read_bytes())
    assert render("--avatar", root, "--audio", audio, "-o", tmp_path / "o.mp4") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: {root / 'frames.mp4'} {message}")
    with pytest.raises(InputError):  # for a training too
        Avatar.load(root, networks=False)
    assert not (tmp_path / "o.mp4").exists()


def test_an_edit_list_and_boxes(own):
    """Frames and boxes are paired from the first displayed frame on."""
    root = film_avatar(own, fps=25)
    whole = Avatar.load(root).batch([0, 1, 2, 3])[0].numpy()
    hide_first(root / "frames.mp4", 1)
    (root / "boxes.json").write_text(json.dumps(own.boxes[1:]))
    avatar = Avatar.load(root)
    assert len(avatar) == 3
    assert np.array_equal(avatar.batch([0, 1, 2])[0].numpy(), whole[1:])


@pytest.mark.parametrize(
    ("given", "own_rate", "used", "said"),
    [
        (None, Fraction(30000, 1001), Fraction(30000, 1001), None),
        (25, Fraction(25), Fraction(25), None),
        (29.97, Fraction(30000, 1001), Fraction(30000, 1001), None),
        (30, Fraction(30000, 1001), Fraction(30), None),  # 0.004 of a frame in four
        (25, Fraction(50), Fraction(25), "has 50; 25 are used"),
        (30, Fraction(24), Fraction(30), "has 24; 30 are used"),
    ],
)
def test_the_rate_of_the_folder_and_of_the_video(own, given, own_rate, used, said):
    root = film_avatar(own, fps=given, rate=own_rate)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Avatar.load(root).fps == used
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (said is not None) and all(said in message for message in messages)


@pytest.mark.parametrize("rate", [Fraction(1, 5), Fraction(1000)])
def test_the_same_rates_are_allowed_everywhere(own, rate):
    """A rate that avatar.json may not have, a video may not have either."""
    root = film_avatar(own, rate=rate)
    with pytest.raises(InputError, match="frames a second; expected 1 to 240"):
        Avatar.load(root)
    root = own.native("with_rate", fps=float(rate))
    with pytest.raises(InputError, match="expected a number from 1 to 240"):
        Avatar.load(root)


def test_the_default_rate(own):
    """A single frame without a known rate has 25, as images have."""
    root = film_avatar(own)
    encode(root / "full_body_video.mp4", own.frames[:1], rate=Fraction(1, 5))
    (root / "crop_rects.json").write_text(json.dumps(own.boxes[:1]))
    assert Avatar.load(root).fps == 25
