"""Avatar folders: all layouts, and the faults that real ones have."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from engine import Avatar, InputError
from engine.runtime.reserve import RESERVED
from tests.engine.files import landmarks, write_video


def everything(avatar: Avatar) -> np.ndarray:
    frames, _, index = avatar.batch(list(range(len(avatar))))
    return frames[index].numpy()


@pytest.mark.parametrize(
    "make",
    [
        lambda f: f.native("n-images"),
        lambda f: f.native("n-video", video=True),
        lambda f: f.package("p-video"),
        lambda f: f.package("p-images", video=False, boxes="cache"),
        lambda f: f.cpu_server("c"),
    ],
)
def test_layouts_hold_the_same(folders, make):
    avatar = Avatar.load(make(folders))
    assert np.array_equal(everything(avatar), folders.frames)
    assert avatar.boxes.tolist() == folders.boxes and avatar.boxes.dtype == torch.int32
    assert (avatar.height, avatar.width, avatar.fps, len(avatar)) == (391, 500, 25, 12)
    assert avatar.generator.is_file() and avatar.audio_encoder.is_file()


def test_synctalk(folders, checkpoints):
    root = folders.synctalk(checkpoints["generator"], "s")
    avatar = Avatar.load(root, audio_encoder=checkpoints["audio_encoder"])
    assert np.array_equal(everything(avatar), folders.frames)
    assert avatar.boxes.tolist() == folders.boxes
    assert avatar.generator.name == "195.pth"  # 195 is more than 95
    assert avatar.audio_encoder == checkpoints["audio_encoder"]


def test_numbering_is_not_sorted_as_text(tmp_path, networks):
    folder = tmp_path / "a"
    (folder / "frames").mkdir(parents=True)
    for number in range(12):  # 10 and 11 come before 2 as text
        Image.new("RGB", (64, 48), (number, 0, 0)).save(folder / "frames" / f"frame_{number}.png")
    (folder / "crop_rects.json").write_text(json.dumps([[10, 10, 30, 30]] * 12))
    assert everything(Avatar.load(folder, **networks))[:, 0, 0, 0].tolist() == list(range(12))


def test_landmarks_are_cut_off_toward_zero(own, checkpoints, networks):
    root = own.synctalk(checkpoints["generator"])
    for path, box in zip(
        sorted((root / "landmarks").iterdir()),
        [[-20, 5, 80, 105], [0, 0, 50, 50], [20, -30, 120, 70], [5, 5, 6, 6]],
        strict=True,
    ):
        path.write_text(landmarks(box))
    avatar = Avatar.load(root, audio_encoder=networks["audio_encoder"])
    assert avatar.boxes.tolist() == [
        [-20, 5, 80, 105],
        [0, 0, 50, 50],
        [20, -30, 120, 70],
        [5, 5, 6, 6],
    ]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(25, 25), (24, 24), (240, 240), (23.976, Fraction(24000, 1001)), (59.94, Fraction(60000, 1001)), (29.97, Fraction(30000, 1001)), ("30000/1001", Fraction(30000, 1001)), (12.5, 12.5)],
)  # fmt: skip
def test_fps(own, fps, expected):
    assert Avatar.load(own.native(fps=fps)).fps == expected


def test_package_takes_the_videos_rate(own):
    assert Avatar.load(own.package()).fps == 25


def test_batch_repeats_and_orders(native, folders):
    frames, boxes, index = Avatar.load(native).batch([3, 3, 0, 11])
    assert np.array_equal(frames[index].numpy(), folders.frames[[3, 3, 0, 11]])
    assert boxes[index].tolist() == [folders.boxes[i] for i in (3, 3, 0, 11)]


@pytest.mark.parametrize(("kept", "frames"), [(3, 4), (6, 4)])
def test_surplus_frames_or_boxes_are_dropped_with_a_warning(own, kept, frames):
    root = own.native()
    (root / "boxes.json").write_text(json.dumps([[20, 30, 120, 130]] * kept))
    with pytest.warns(UserWarning, match=f"{frames} frames and {kept} boxes; the first"):
        avatar = Avatar.load(root)
    assert len(avatar) == min(kept, frames) == len(avatar.boxes)


# --- faults --------------------------------------------------------------------------------------


def edit_boxes(root, frame, box):
    boxes = json.loads((root / "boxes.json").read_text())
    boxes[frame] = box
    (root / "boxes.json").write_text(json.dumps(boxes))


def edit(root, **changes):
    record = json.loads((root / "avatar.json").read_text())
    record = {key: value for key, value in {**record, **changes}.items() if value is not None}
    (root / "avatar.json").write_text(json.dumps(record))


def frame(root, number):
    return root / "frames" / f"{number:05}.jpg"


OUTSIDE = "expected a path inside the avatar folder"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), "does not exist"),
        (lambda root: (shutil.rmtree(root), root.write_text("")), "is not a folder"),
        (lambda root: (root / "avatar.json").unlink() or shutil.rmtree(root / "frames"), "not an avatar folder.*avatar.json"),
        (lambda root: (root / "avatar.json").write_text("{"), "avatar.json cannot be read as JSON"),
        (lambda root: (root / "avatar.json").write_text("[]"), "contains a list; expected an object"),
        (lambda root: edit(root, boxes=None), "has no 'boxes'"),
        (lambda root: edit(root, boxes="nowhere.json"), "nowhere.json does not exist"),
        (lambda root: edit(root, frames="../frames"), OUTSIDE),
        (lambda root: edit(root, generator="/etc/passwd"), OUTSIDE),
        (lambda root: edit(root, boxes="a\0b"), "expected a path"),
        (lambda root: edit(root, boxes=7), "boxes is 7; expected a path"),
        (lambda root: edit(root, fps="fast"), "fps is 'fast'; expected a number from 1 to 240"),
        (lambda root: edit(root, fps=0), "fps is 0; expected a number from 1 to 240"),
        (lambda root: edit(root, fps=float("nan")), "fps is nan"),
        (lambda root: edit(root, generator="no.onnx"), r"no.onnx \(generator\) does not exist"),
        (lambda root: edit(root, generator="boxes.json"), "ends in '.json'; expected one of .onnx"),
        (lambda root: frame(root, 2).unlink(), r"number 2 is missing"),
        (lambda root: frame(root, 0).rename(frame(root, 9)), r"number 0 is missing|number 4 is missing"),
        (lambda root: shutil.copy(frame(root, 1), root / "frames" / "1.png"), "number 1 is"),
        (lambda root: shutil.rmtree(root / "frames") or (root / "frames").mkdir(), "no numbered files"),
        (lambda root: Image.new("RGB", (90, 80)).save(frame(root, 3)), r"frame 3 .* is 90 x 80; expected 200 x 200, the size of frame 0"),
        (lambda root: frame(root, 1).write_text("no"), "00001.jpg cannot be read as an image"),
        (lambda root: edit_boxes(root, 1, [50, 50, 50, 60]), r"frame 1, \[50, 50, 50, 60\], is empty"),
        (lambda root: edit_boxes(root, 0, [90, 50, 60, 80]), "is empty"),
        (lambda root: edit_boxes(root, 2, [50, 50, 60, 61]), r"frame 2.*not square \(10 x 11\)"),
        (lambda root: edit_boxes(root, 3, [200, 5, 210, 15]), "frame 3.*entirely outside the frame of 200 x 200"),
        (lambda root: edit_boxes(root, 3, [-10, 5, 0, 15]), "entirely outside"),
        (lambda root: edit_boxes(root, 3, [0, 0, 9000, 9000]), "9000 pixels wide"),
        (lambda root: edit_boxes(root, 3, [0, 0, 9]), r"box of frame 3 is \[0, 0, 9\]; expected 4 numbers"),
        (lambda root: edit_boxes(root, 3, [0, 0, "9", 9]), "expected 4 numbers"),
        (lambda root: edit_boxes(root, 3, [0, 0, 1e300, 9]), "expected 4 numbers"),
        (lambda root: (root / "boxes.json").write_text('{"0": {"rect": [0, 0, 9, 9]}, "2": {"rect": [0, 0, 9, 9]}}'), "number 1 is missing"),
        (lambda root: (root / "boxes.json").write_text("[]"), "contains no list of face boxes"),
    ],
)  # fmt: skip
def test_faulty_folders_are_refused(own, damage, message):
    root = own.native()
    damage(root)
    with pytest.raises(InputError, match=message) as caught:
        Avatar.load(root)
    assert "\n" not in str(caught.value)


def test_missing_networks(own, checkpoints, networks):
    root = own.synctalk(checkpoints["generator"])
    with pytest.raises(InputError, match=r"has no audio encoder; give its file \(--audio-encoder"):
        Avatar.load(root)
    shutil.rmtree(root / "checkpoint")
    with pytest.raises(InputError, match=r"has no generator; give its file \(--generator FILE\)"):
        Avatar.load(root, audio_encoder=networks["audio_encoder"])


def test_missing_boxes(own):
    root = own.package()
    (root / "crop_rects.json").unlink()
    with pytest.raises(
        InputError, match="has no face boxes; expected one of crop_rects.json, cache"
    ):
        Avatar.load(root)


def test_bad_landmarks(own, checkpoints, networks):
    root = own.synctalk(checkpoints["generator"])
    for text in ("1 2\n" * 109, "1 2\n" * 109 + "1 x\n", "1 2\n" * 109 + "nan 1\n", ""):
        (root / "landmarks" / "2.lms").write_text(text)
        with pytest.raises(InputError, match='2.lms does not have 110 lines "x y"'):
            Avatar.load(root, audio_encoder=networks["audio_encoder"])


def test_a_video_that_cannot_be_read(own):
    root = own.native(video=True)
    (root / "frames.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"frames.mp4 cannot be read as audio or video"):
        Avatar.load(root)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda"])
def test_unavailable_devices(native, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("has a GPU")
    with pytest.raises(InputError, match=f"device is '?{device}"):
        Avatar.load(native, device=device)


def test_a_byte_order_mark(own):
    root = own.native()
    for name in ("avatar.json", "boxes.json"):
        (root / name).write_bytes(b"\xef\xbb\xbf" + (root / name).read_bytes())
    assert len(Avatar.load(root)) == 4


@pytest.mark.gpu
def test_frames_live_on_the_gpu(native, folders):
    avatar = Avatar.load(native, device="cuda")
    frames, boxes, index = avatar.batch([3, 3, 0, 11])
    assert frames.is_cuda and boxes.is_cuda and index.is_cuda and len(frames) == 12
    assert np.array_equal(frames[index].cpu().numpy(), folders.frames[[3, 3, 0, 11]])


def test_a_gpu_that_is_too_small(native, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (RESERVED + 2**20, 2**33))
    # the boxes are copied to the device first: leave them where they are
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    with pytest.raises(InputError, match=r"needs 0.01 GiB on cuda for its 12 frames of 500 x 391; 3.24 GiB are free, and 3.24 GiB of them"):  # fmt: skip
        Avatar.load(native, device="cuda")


def test_the_lossless_video_is_lossless(tmp_path, small):
    """The comparison between layouts depends on it."""
    from engine.media.video import Video

    video = Video(write_video(tmp_path / "v.mp4", small[0]))
    assert all(np.array_equal(video.pixels(f), small[0][n]) for n, f in video.frames())
