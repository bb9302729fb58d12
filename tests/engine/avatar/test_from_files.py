"""Avatars made of files that lie anywhere, and of the first frames of more."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from engine import Avatar, InputError
from tests.engine.avatar.test_avatar import everything
from tests.engine.files import landmarks, write_video


@pytest.fixture
def parts(tmp_path, folders, networks):
    """Frames, boxes and networks in four places, one of them behind a link."""
    native = folders.native("parts") if not (folders.root / "parts").exists() else None
    native = native or folders.root / "parts"
    (tmp_path / "there").mkdir()
    shutil.copytree(native / "frames", tmp_path / "elsewhere")
    (tmp_path / "here").symlink_to(tmp_path / "elsewhere")
    shutil.copy(native / "boxes.json", tmp_path / "there" / "crop_rectangles.json")
    return {
        "frames": tmp_path / "here",
        "boxes": tmp_path / "there" / "crop_rectangles.json",
        **networks,
    }


def test_images(parts, folders):
    avatar = Avatar.from_files("sanders", **parts)
    assert np.array_equal(everything(avatar), folders.frames)
    assert avatar.boxes.tolist() == folders.boxes
    assert (avatar.name, avatar.fps) == ("sanders", 25)
    assert (avatar.generator, avatar.audio_encoder) == (parts["generator"], parts["audio_encoder"])


def test_links_in_the_folder_are_followed(parts, folders, tmp_path):
    frame = parts["frames"] / "00003.jpg"
    frame.rename(tmp_path / "moved.jpg")
    frame.symlink_to(tmp_path / "moved.jpg")
    assert np.array_equal(everything(Avatar.from_files("x", **parts)), folders.frames)


def test_a_video_and_landmarks(parts, folders, tmp_path):
    parts["frames"] = write_video(tmp_path / "film.mp4", folders.frames)
    parts["boxes"] = tmp_path / "there" / "landmarks"
    parts["boxes"].mkdir()
    for number, box in enumerate(folders.boxes):
        (parts["boxes"] / f"{number}.lms").write_text(landmarks(box))
    avatar = Avatar.from_files("x", **parts)
    assert np.array_equal(everything(avatar), folders.frames)
    assert avatar.boxes.tolist() == folders.boxes


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: {"frames": p["frames"] / "no"}, "no does not exist"),
        (lambda p: {"boxes": p["boxes"].with_name("no.json")}, "no.json does not exist"),
        (lambda p: {"generator": p["boxes"].parent}, r"\(generator\) is not a file"),
        (lambda p: {"audio_encoder": p["boxes"]}, "ends in '.json'; expected one of .onnx"),
        (lambda p: (p["frames"] / "00005.jpg").unlink(), "number 5 is missing"),
        (lambda p: p["boxes"].write_text("[[1, 1, 1, 1]]"), "frame 0"),
        (lambda p: p["boxes"].write_text("[1"), "cannot be read as JSON"),
        (lambda p: Image.new("RGB", (8, 8)).save(p["frames"] / "00003.jpg"), "is 8 x 8; expected"),
    ],
)
def test_faults(parts, damage, message):
    changed = damage(parts)
    if isinstance(changed, dict):
        parts |= changed
    with pytest.raises(InputError, match=message) as caught:
        Avatar.from_files("x", **parts)
    assert "\n" not in str(caught.value)


def test_untrusted_networks_are_refused(parts):
    with pytest.raises(InputError, match="expected a checkpoint|not trusted|checkpoint"):
        Avatar.from_files("x", **parts, trusted=False)


def test_the_first_frames(parts, folders):
    boxes = json.loads(parts["boxes"].read_text())
    parts["boxes"].write_text(json.dumps([*boxes, [9, 9, 9, 9]]))  # one more, which is not used
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        avatar = Avatar.from_files("x", **parts, count=5)
        assert len(Avatar.from_files("x", **parts, count=12)) == 12
    assert np.array_equal(everything(avatar), folders.frames[:5])
    assert avatar.boxes.tolist() == folders.boxes[:5]
    fewer = "has 12 frames and 13 boxes, fewer than the 13 that were given; the first 12 are used"
    with pytest.warns(UserWarning, match=fewer):
        assert len(Avatar.from_files("x", **parts, count=13)) == 12
    with pytest.raises(InputError, match="number of frames of avatar 'x' is 0; expected at least"):
        Avatar.from_files("x", **parts, count=0)


def test_the_first_frames_of_a_folder(native, folders):
    avatar = Avatar.load(native, count=3)
    assert np.array_equal(everything(avatar), folders.frames[:3])


def test_frame_bytes(native):
    avatar = Avatar.load(native)
    assert avatar.frame_bytes == 12 * 391 * 500 * 3
    assert Avatar.load(native, cache_bytes=1000).frame_bytes == 1000
    assert Avatar.load(native, count=2).frame_bytes == 2 * 391 * 500 * 3
