"""The masks of an avatar: read as OpenCV reads them, and what is wrong with them in one line."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from engine import Avatar, InputError
from engine.avatar.frames import FrameCache
from engine.avatar.masks import MaskFolder, pack
from tests.engine.tiny import write_avatar

HEIGHT, WIDTH = 40, 83  # the last byte of a row has three pixels
COLORS = [(0, 0, 255), (255, 255, 255), (0, 0, 254), (254, 255, 255), (255, 0, 0), (0, 0, 0)]  # BGR


def blobs(seed: int, colors: list = COLORS) -> np.ndarray:
    """Draw a BGR image of these colours, in runs and in single pixels."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, len(colors), (HEIGHT // 8 + 1, WIDTH // 8 + 1), np.uint8)
    chosen = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST)
    single = random.random((HEIGHT, WIDTH)) < 0.2
    chosen[single] = random.integers(0, len(colors), int(single.sum()))
    return np.array(colors, np.uint8)[chosen]


def write_palette(path: Path) -> None:
    Image.fromarray(blobs(1)[..., ::-1]).quantize(8).save(path)


def write_one_bit(path: Path) -> None:
    Image.fromarray(blobs(2)[..., 1] > 100).save(path)


def write_alpha(path: Path) -> None:
    alpha = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 1), np.uint8)
    cv2.imwrite(str(path), np.concatenate([blobs(3), alpha], axis=2))


WRITERS: list[Callable[[Path], object]] = [
    lambda path: cv2.imwrite(str(path), blobs(0)),
    write_palette,
    write_one_bit,
    write_alpha,
    lambda path: cv2.imwrite(str(path), blobs(4)[..., 1]),  # 8 bits of gray
    lambda path: cv2.imwrite(str(path), blobs(5).astype(np.uint16) * 256 + 7),
    lambda path: cv2.imwrite(str(path), blobs(6, COLORS[2:])),  # keeps nothing
]


@pytest.fixture
def root(tmp_path) -> Path:
    """An avatar with a folder `parsing` of one mask of each kind."""
    root = write_avatar(tmp_path / "tiny", frames=len(WRITERS), height=HEIGHT, width=WIDTH)
    (root / "boxes.json").write_text(json.dumps([[20, 5, 50, 35]] * len(WRITERS)))
    (root / "parsing").mkdir()
    for number, write in enumerate(WRITERS):
        write(root / "parsing" / f"{number}.png")
    return root


def unpacked(masks: torch.Tensor | None) -> np.ndarray:
    assert masks is not None and masks.dtype == torch.uint8
    return np.unpackbits(masks.numpy(), axis=2, count=WIDTH, bitorder="little").astype(bool)


def named(root: Path, masks: str | None = "parsing") -> Path:
    """Name the masks in avatar.json."""
    record = json.loads((root / "avatar.json").read_text())
    (root / "avatar.json").write_text(json.dumps({**record, "masks": masks}))
    return root


def test_masks_are_what_opencv_reads(root):
    numbers = [6, 0, 3, 3, 1, 5, 2, 4]
    avatar = Avatar.load(root, parsing=True)
    frames, boxes, index, masks = avatar.masked_batch(numbers)
    images = [cv2.imread(str(root / "parsing" / f"{number}.png")) for number in numbers]
    kept = [
        (image == [0, 0, 255]).all(axis=2) | (image == [255, 255, 255]).all(axis=2)
        for image in images
    ]
    assert np.array_equal(unpacked(masks), kept)
    assert [mask.any() for mask in kept] == [number != 6 for number in numbers]
    plain = avatar.batch(numbers)
    assert all(map(torch.equal, (frames, boxes, index), plain))
    bits = FrameCache(avatar._mask_cache._source, 0)
    uploaded = avatar._upload(bits, tuple(masks.shape[1:]))  # as onto a GPU
    assert torch.equal(uploaded[numbers], masks)


def test_masks_are_used_if_asked_for_or_named(root):
    assert Avatar.load(root).masked_batch([0])[3] is None
    asked = Avatar.load(root, parsing=True).masked_batch([0])[3]
    shutil.move(root / "parsing", root / "kept")
    with pytest.raises(InputError, match="has no masks; expected one of parsing"):
        Avatar.load(root, parsing=True)
    for options in ({}, {"parsing": True}):
        masks = Avatar.load(named(root, "kept"), **options).masked_batch([0])[3]
        assert torch.equal(masks, asked)


def test_numbers_from_1(root):
    for folder in ("parsing", "frames"):
        for path in sorted((root / folder).iterdir(), reverse=True):
            path.rename(path.with_name(f"{int(path.stem) + 1:03}.png"))
        if folder == "parsing":
            with pytest.raises(InputError, match="a frame and its mask must have the same number"):
                Avatar.load(root, parsing=True)
    boxes = json.loads((root / "boxes.json").read_text())
    keyed = {str(number): {"rect": box} for number, box in enumerate(boxes, start=1)}
    (root / "boxes.json").write_text(json.dumps(keyed))
    masks = unpacked(Avatar.load(root, parsing=True).masked_batch([0])[3])
    assert np.array_equal(masks[0], (blobs(0)[..., 2] == 255) & (blobs(0)[..., :2].std(2) == 0))


def remove(*numbers: int) -> Callable[[Path], object]:
    return lambda parsing: [(parsing / f"{number}.png").unlink() for number in numbers]


def replace(number: int, size: tuple[int, int]) -> Callable[[Path], object]:
    return lambda parsing: Image.new("RGB", size).save(parsing / f"{number}.png")


def all_of(size: tuple[int, int]) -> Callable[[Path], object]:
    return lambda parsing: [replace(number, size)(parsing) for number in range(len(WRITERS))]


def cut_off(parsing: Path) -> None:
    data = (parsing / "3.png").read_bytes()
    (parsing / "3.png").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove(2), r"parsing: number 2 is missing \(there are 6 files\)"),
        (remove(5, 6), "parsing has 5 masks for 7 frames; number 5 is missing"),
        (remove(*range(7)), r"parsing has no numbered files ending in \.png"),
        (
            replace(3, (9, 8)),
            r"mask 3 \(.*/3\.png\) is 9 x 8; expected 83 x 40, the size of mask 0",
        ),
        (all_of((9, 8)), r"0\.png is 9 x 8; expected 83 x 40, the size of the frames"),
        (lambda parsing: (parsing / "3.png").write_bytes(b"?"), "3.png cannot be read as an image"),
        (cut_off, r"3\.png cannot be read as an image"),
    ],
)
def test_faults(root, damage, message):
    damage(root / "parsing")
    with pytest.raises(InputError, match=message) as caught:
        Avatar.load(root, parsing=True).masked_batch(list(range(7)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ("no", "no does not exist"),
        ("../other", "masks is '../other'; expected a path inside the avatar folder"),
        (7, "masks is 7; expected a path"),
        ("boxes.json", "boxes.json cannot be opened: Not a directory"),
    ],
)
def test_what_avatar_json_may_name(root, masks, message):
    with pytest.raises(InputError, match=message):
        Avatar.load(named(root, masks))


def test_masks_left_over(root):
    (root / "frames" / "6.png").unlink()
    boxes = json.loads((root / "boxes.json").read_text())[:6]
    (root / "boxes.json").write_text(json.dumps(boxes))
    with pytest.warns(UserWarning, match="has 7 masks for 6 frames; the first 6 are used"):
        assert len(Avatar.load(root, parsing=True)) == 6
    with warnings.catch_warnings():  # they are those of frames that are not used either
        warnings.simplefilter("error")
        (root / "parsing" / "6.png").unlink()
        assert len(Avatar.load(root, parsing=True, count=4)) == 4


def test_masks_that_keep_nothing(root):
    """Said once, when all have been seen, and not if one of them keeps a pixel."""
    avatar = Avatar.load(root, parsing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        avatar.masked_batch(list(range(7)))
    for number in range(7):
        cv2.imwrite(str(root / "parsing" / f"{number}.png"), blobs(number, COLORS[2:]))
    with pytest.warns(UserWarning, match="no mask has a pixel"):  # of those that are used
        Avatar.load(root, parsing=True, count=2).masked_batch([1, 0])
    avatar = Avatar.load(root, parsing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        avatar.masked_batch([6, 0, 1, 2, 4, 5])
    with pytest.warns(UserWarning, match="parsing: no mask has a pixel that is pure red or pure"):
        avatar.masked_batch([3, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        avatar.masked_batch(list(range(7)))


def test_memory(root, monkeypatch):
    """Masks are counted, take an eighth of the memory for frames, and are decoded again if they do
    not fit it."""
    bits = HEIGHT * 11
    assert Avatar.load(root).bytes_per_frame == HEIGHT * WIDTH * 3
    avatar = Avatar.load(root, parsing=True)
    assert avatar.bytes_per_frame == HEIGHT * WIDTH * 3 + bits
    assert avatar.frame_bytes == 7 * (HEIGHT * WIDTH * 3 + bits)
    small = Avatar.load(root, parsing=True, cache_bytes=8 * 3 * bits)
    assert small.frame_bytes == 8 * 3 * bits
    decoded = []
    decode = MaskFolder.decode
    monkeypatch.setattr(
        MaskFolder,
        "decode",
        lambda self, number: [decoded.append(number), *decode(self, number)][1:],
    )
    for _ in range(2):
        small.masked_batch([0, 1, 2, 1])
    assert decoded == [0, 1, 2]
    small.masked_batch([3, 1, 0])
    assert decoded == [0, 1, 2, 3, 0]
    held = small._cache.capacity_bytes + small._mask_cache.capacity_bytes
    assert held == 8 * 3 * bits and small._mask_cache._bytes == 3 * bits


def test_pack():
    mask = np.zeros((2, 10), bool)
    mask[0, [0, 9]] = mask[1, 3] = True
    assert pack(mask).tolist() == [[1, 2], [8, 0]]
