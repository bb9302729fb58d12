"""Pairing of frames and boxes by number. Every frame shows its number as a shade of grey, and every
box has it as its column, so that a pair that is off by one is noticed."""

import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import Avatar, InputError
from engine.avatar.pairing import number_of
from tests.engine.files import landmarks, write_video

hypothesis = pytest.importorskip("hypothesis", reason="GPU hosts have none")
st = hypothesis.strategies
SIZE = 48
SHADES = 9  # of grey from one number to the next


def shade(number: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), SHADES * number, np.uint8)


def box(number: int) -> list[int]:
    return [number, 5, number + 10, 15]


def images(folder: Path, pattern: str, numbers) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        Image.fromarray(shade(number)).save(folder / pattern.format(number))


def synctalk(root: Path, frames, boxes) -> Path:
    images(root / "full_body_img", "{}.jpg", frames)
    (root / "landmarks").mkdir()
    for number in boxes:
        (root / "landmarks" / f"{number}.lms").write_text(landmarks(box(number)))
    return root


def cpu_server(root: Path, frames, rects) -> Path:
    images(root / "frames", "frame_{:04}.png", frames)
    (root / "crop_rects.json").write_text(json.dumps(rects))
    return root


def film(root: Path, count: int, rects) -> Path:
    root.mkdir()
    (root / "dataset_manifest.json").write_text("{}")
    write_video(root / "full_body_video.mp4", np.stack([shade(n) for n in range(count)]))
    (root / "crop_rects.json").write_text(json.dumps(rects))
    return root


def rects(numbers, key="{}") -> dict:
    return {key.format(number): {"rect": box(number)} for number in numbers}


def pairs(root: Path) -> list[tuple[int, int]]:
    """Return the number of each frame and that of its box."""
    avatar = Avatar.load(root, networks=False)
    frames, boxes, index = avatar.batch(list(range(len(avatar))))
    seen = (frames[index].float().mean((1, 2, 3)) / SHADES).round().int().tolist()
    return list(zip(seen, boxes[index, 0].tolist(), strict=True))


def warned(root: Path) -> tuple[list[tuple[int, int]], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return pairs(root), [str(warning.message) for warning in caught]


def run(numbers: set[int]) -> bool:
    """Return whether numbers begin at 0 or 1 and have no gap."""
    return min(numbers) <= 1 and max(numbers) - min(numbers) + 1 == len(numbers)


numbers = st.sets(st.integers(0, 7), min_size=1)
most = st.integers(0, 2).flatmap(  # a run of numbers, of which a few are missing
    lambda base: st.sets(st.integers(0, 8), max_size=2).map(
        lambda lost: set(range(base, 8)) - lost or {base}
    )
)


@pytest.mark.parametrize("layout", ["landmarks", "numbered boxes"])
@hypothesis.given(frames=numbers | most, boxes=numbers | most)
@hypothesis.example(frames=set(range(6)), boxes=set(range(1, 7)))
@hypothesis.example(frames=set(range(1, 7)), boxes=set(range(6)))
@hypothesis.example(frames=set(range(1, 7)), boxes=set(range(1, 7)))
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
def test_every_frame_has_the_box_of_its_number(layout, frames, boxes):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "avatar"
        if layout == "landmarks":
            synctalk(root, frames, boxes)
        else:
            cpu_server(root, frames, rects(boxes))
        if run(frames) and run(boxes) and min(frames) == min(boxes):
            both = sorted(frames & boxes)
            found, said = warned(root)
            assert found == [(number, number) for number in both]
            assert bool(said) == (frames != boxes)
        else:
            with pytest.raises(InputError, match=r"number \d is missing") as caught:
                pairs(root)
            assert "\n" not in str(caught.value)


ZERO = "number 0 is missing"


@pytest.mark.parametrize(
    ("frames", "boxes", "message"),
    [
        (range(1, 5), range(5), "full_body_img: number 0 is missing. It has 4 frames from number 1 on, .*landmarks has 5 boxes from number 0 on"),
        (range(5), range(1, 5), "landmarks: number 0 is missing. It has 4 boxes from number 1 on, .*full_body_img has 5 frames from number 0 on"),
        (range(4), range(1, 5), "landmarks: number 0 is missing"),
        (range(5), [0, 1, 3, 4], r"landmarks: number 2 is missing \(there are 4 files\)"),
        ([0, 1, 3, 4], [0, 1, 3, 4], r"full_body_img: number 2 is missing"),
        (range(2, 5), range(2, 5), "full_body_img: number 1 is missing"),
    ],
)  # fmt: skip
def test_landmarks_that_do_not_match_the_frames(tmp_path, frames, boxes, message):
    root = synctalk(tmp_path / "a", frames, boxes)
    with pytest.raises(InputError, match=message):
        Avatar.load(root, networks=False)


@pytest.mark.parametrize("key", ["{}", "{:05}", "frame_{:04}", "frame_{:04}.png", "{}.JPG"])
@pytest.mark.parametrize("first", [0, 1])
def test_keys_of_boxes(tmp_path, key, first):
    some = range(first, first + 12)  # as text, 10 comes before 2
    root = cpu_server(tmp_path / "a", some, rects(reversed(some), key))
    assert warned(root) == ([(number, number) for number in some], [])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (rects(range(4)), ZERO),
        (rects([1, 2, 4, 5]), r"number 3 is missing \(there are 4 boxes\)"),
        ({**rects([1, 2]), "fps": 25}, "'fps' has no number"),
        ({**rects([1, 2]), "01": box(1)}, "number 1 is '01' and '1'"),
        ({**rects([1, 2]), "3": [1, 2]}, r"the box of frame 3 is \[1, 2\]"),
        ({**rects([1, 2]), "3": {"box": [1, 2, 3, 4]}}, "the box of frame 3 is None"),
        ({"1" * 5000: box(1)}, "'1{20,60}[.]{3}1+' has no number"),
        ({}, "contains no list of face boxes"),
    ],
)  # fmt: skip
def test_numbered_boxes_that_do_not_match_the_frames(tmp_path, record, message):
    root = cpu_server(tmp_path / "a", range(1, 5), record)
    with pytest.raises(InputError, match=message) as caught:
        Avatar.load(root, networks=False)
    assert len(str(caught.value)) < 500


def test_a_list_has_no_numbers(tmp_path):
    boxes = [box(number) for number in range(8)]
    root = cpu_server(tmp_path / "from_0", range(5), boxes[:5])
    assert warned(root) == ([(n, n) for n in range(5)], [])
    root = cpu_server(tmp_path / "from_1", range(1, 6), boxes[1:6])  # of equal length
    assert warned(root) == ([(n, n) for n in range(1, 6)], [])
    root = cpu_server(tmp_path / "longer", range(5), boxes)
    found, said = warned(root)
    assert found == [(n, n) for n in range(5)] and "5 frames and 8 boxes; the first 5" in said[0]
    # Either the first of six frames is missing, or there is one box too many at the end.
    for name, count in (("more", 6), ("fewer", 4)):
        root = cpu_server(tmp_path / name, range(1, 6), boxes[:count])
        with pytest.raises(InputError, match=f"frames: {ZERO}. It has 5 frames from number 1 on, .*crop_rects.json has {count} boxes, counted from 0"):  # fmt: skip
            Avatar.load(root, networks=False)


def test_a_video_has_no_numbers(tmp_path):
    pytest.importorskip("av", reason="GPU hosts have none")
    found, said = warned(film(tmp_path / "from_0", 4, rects(range(4))))
    assert found == [(n, n) for n in range(4)] and not said
    found, said = warned(film(tmp_path / "from_1", 4, rects(range(1, 5))))
    assert found == [(n, n + 1) for n in range(4)] and not said
    found, said = warned(film(tmp_path / "fewer", 4, rects(range(3))))
    assert found == [(n, n) for n in range(3)] and "4 frames and 3 boxes; the first 3" in said[0]
    found, said = warned(film(tmp_path / "list", 4, [box(n) for n in range(4)]))
    assert found == [(n, n) for n in range(4)] and not said
    root = film(tmp_path / "lost", 4, rects(range(1, 4)))  # 0 was lost
    with pytest.raises(InputError, match=f"crop_rects.json: {ZERO}. It has 3 boxes from number 1 on, .*full_body_video.mp4 has 4 frames, counted from 0"):  # fmt: skip
        Avatar.load(root, networks=False)


def test_errors_name_a_box_by_its_number(tmp_path):
    boxes = [box(number) for number in range(1, 6)]
    boxes[2] = [9, 9, 5, 5]
    root = cpu_server(tmp_path / "a", range(1, 6), boxes)
    with pytest.raises(InputError, match=r"the box of frame 3, \[9, 9, 5, 5\], is empty"):
        Avatar.load(root, networks=False)


@pytest.mark.parametrize(
    ("name", "number"),
    [("7", 7), ("007", 7), ("7.lms", 7), ("frame_0007.png", 7), ("frame.0007.jpeg", 7), ("a1b2", 2), ("IMG-12.JPG", 12), ("7 (1).jpg", None), ("7 copy.jpg", None), ("x", None), ("", None), ("7.", None), ("7\n", None), ("9" * 18, 10**18 - 1), ("9" * 19, None)],
)  # fmt: skip
def test_numbers_of_names(name, number):
    assert number_of(name) == number
