"""Masks of `composite` against a loop of OpenCV and NumPy, as SyncTalk 2D's inference has it."""

import cv2
import numpy as np
import pytest
import torch

import kernels
from benchmarks import frame_loop
from tests.tolerances import TOLERANCES, U8, assert_close

# In the frame, over its edges and corners, over all of them, with one pixel in it, and off it.
BOXES = [
    [30, 20, 90, 80], [-20, 31, 41, 92], [101, -13, 152, 38], [-9, -9, 60, 60], [90, 70, 151, 131],
    [-40, -50, 180, 170], [129, 99, 180, 150], [131, 20, 170, 59],
]  # fmt: skip
HEIGHT, WIDTH = 100, 130
RED, WHITE = (0, 0, 255), (255, 255, 255)
OTHERS = [(0, 0, 0), (255, 0, 0), (0, 0, 254), (1, 0, 255), (0, 1, 255), (255, 254, 255)]  # BGR


@pytest.fixture(scope="module")
def faces(person):
    """Frames around the face with their boxes, crops and what was generated."""
    frames = person[: len(BOXES), 400 : 400 + HEIGHT, 250 : 250 + WIDTH].contiguous()
    boxes, index = torch.tensor(BOXES), torch.tensor([3, 0, 7, 1, 2, 4, 6, 5, 0])
    _, crops = kernels.face_input(frames, boxes, index)
    coarse = torch.rand(len(index), 3, 20, 20, generator=torch.Generator().manual_seed(3))
    generated = torch.nn.functional.interpolate(coarse * 1.2 - 0.1, (320, 320), mode="bicubic")
    return frames, boxes, index, crops, generated


def parsing(number: int) -> np.ndarray:
    """Draw what to keep in a BGR image: at the edges of the box, and in the middle of it."""
    x0, y0, x1, y1 = BOXES[number]
    random = np.random.default_rng(number)
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    image[...] = np.array(OTHERS, np.uint8)[random.integers(0, len(OTHERS), (HEIGHT, WIDTH))]
    cv2.ellipse(image, ((x0 + x1) // 2, (y0 + y1) // 2), (19, 11), 30, 0, 360, RED, -1)
    cv2.circle(image, (x0, y1), 14, WHITE, -1)
    cv2.rectangle(image, (x0, y0 - 5), (x1 - 9, y0), WHITE, -1)  # one row of the box
    cv2.rectangle(image, (x1 - 1, y0 + 7), (x1 + 6, y1), RED, -1)  # one column of it
    return image


def kept_by_the_family(image: np.ndarray) -> torch.Tensor:
    red, white = (np.all(image == color, axis=2) for color in (RED, WHITE))
    return torch.from_numpy(red | white)


def bits(masks: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.packbits(masks.numpy(), axis=2, bitorder="little"))


@pytest.fixture(scope="module")
def masks():
    return torch.stack([kept_by_the_family(parsing(number)) for number in range(len(BOXES))])


@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
def test_against_opencv(faces, masks, mode):
    frames, _, index, crops, generated = faces
    finished = kernels.composite(*faces, mode=mode, masks=bits(masks))
    pasted = kernels.composite(*faces, mode=mode)
    for item, number in enumerate(index.tolist()):
        bgr = frames[number].numpy()[..., ::-1]
        arguments = tuple(BOXES[number]), crops[item].numpy()[..., ::-1], generated[item].numpy()
        if BOXES[number][0] < WIDTH:
            expected = frame_loop.composite(bgr, *arguments, mode, parsing(number))
        else:
            expected = bgr
        got = finished[item].numpy()[..., ::-1]
        assert_close(got, expected, TOLERANCES["composite", U8, "OpenCV"])
        kept = masks[number]
        assert np.array_equal(got[kept], expected[kept])
        # OpenCV rounds some of what is resized the other way: elsewhere, nothing has changed.
        assert torch.equal(
            finished[item], torch.where(kept[..., None], frames[number], pasted[item])
        )
    assert (finished != pasted).any() and (finished != frames[index]).any()


@pytest.mark.parametrize("format", kernels.COMPOSITE_FORMATS)
def test_formats_and_kinds_of_masks(faces, masks, format):
    """Every format is made of the finished RGB; a byte for a pixel is as good as a bit."""
    rgb = kernels.composite(*faces, masks=masks)
    finished = kernels.composite(*faces, format=format, masks=bits(masks))
    assert torch.equal(finished, kernels.convert_color(rgb, "rgb", format))


def test_in_place(faces, masks):
    frames, boxes, _, crops, generated = faces
    arguments = boxes, torch.arange(8), crops[:8], generated[:8]
    expected = kernels.composite(frames, *arguments, masks=bits(masks))
    copy = frames.clone()
    assert kernels.composite(copy, *arguments, masks=bits(masks), out=copy) is copy
    assert torch.equal(copy, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda masks: masks[:7], r"masks has shape \(7, 100, 130\); expected \(8, 100, 130\)"),
        (lambda masks: masks.byte(), r"masks has shape \(8, 100, 130\); expected \(8, 100, 17\)"),
        (lambda masks: masks.float(), "masks has dtype torch.float32; expected torch.bool or"),
        (lambda masks: masks.mT.contiguous().mT, "expected a contiguous tensor"),
        (lambda masks: masks.tolist(), "masks is a list; expected a torch.Tensor"),
    ],
)
def test_bad_masks(faces, masks, change, message):
    with pytest.raises(ValueError, match=message):
        kernels.composite(*faces, masks=change(masks))


def test_masks_that_the_output_overlaps(faces):
    frames, _, index, _, _ = faces
    memory = torch.zeros(len(index) * frames[0].numel(), dtype=torch.uint8)
    masks = memory[: len(frames) * HEIGHT * 17].view(len(frames), HEIGHT, 17)
    with pytest.raises(ValueError, match="out overlaps masks in memory"):
        kernels.composite(*faces, masks=masks, out=memory.view(-1, HEIGHT, WIDTH, 3))
