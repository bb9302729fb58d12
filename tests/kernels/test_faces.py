"""face_input and composite against OpenCV, on faces, over boxes of all sizes and places."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernels
from benchmarks import frame_loop
from tests.tolerances import TOLERANCES, U8, assert_close

EXACT = TOLERANCES["resize", U8, "PyTorch in float64"]
OPENCV = TOLERANCES["OpenCV's bicubic resize", U8, "PyTorch in float64"]


def bicubic(image: np.ndarray, size: int) -> np.ndarray:
    """Resize (H, W, 3) to a square without rounding to levels, in float64."""
    planes = torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, (size, size), mode="bicubic")
    return resized[0].permute(1, 2, 0).clamp(0, 255).numpy()


def check(frame: torch.Tensor, box: list[int], seed: int = 0) -> None:
    """Compare both stages in all modes with OpenCV, on one frame (H, W, 3).

    Bicubic results are compared with the values before they are rounded to levels. Of these, any
    share may lie between two levels: where the frame's edge is repeated, one is a whole row.
    """
    bgr = frame.numpy()[..., ::-1]
    arguments = frame[None], torch.tensor([box], dtype=torch.int32), torch.tensor([0])

    planes, crop = frame_loop.face_input(bgr, tuple(box))
    inputs, crops = kernels.face_input(*arguments)
    own_crop = crops[0].numpy()[..., ::-1]
    exact = bicubic(frame_loop.cut(bgr, tuple(box)), 328)
    assert_close(own_crop, exact, EXACT)
    assert_close(crop, exact, OPENCV)
    assert np.array_equal(inputs[0].numpy(), frame_loop.generator_input(own_crop))
    half, _ = kernels.face_input(*arguments, dtype=torch.float16)
    assert torch.equal(half, inputs.half())

    # The same face, brighter and with some noise, so that the paste makes a difference.
    noise = np.random.default_rng(seed).normal(0, 0.05, planes[:3].shape)
    generated = (planes[:3] * 1.1 + noise).astype(np.float32)
    x0, y0, x1, y1 = box
    rows, columns = slice(max(y0, 0), max(y1, 0)), slice(max(x0, 0), max(x1, 0))
    for mode in kernels.COMPOSITE_MODES:
        crops = torch.from_numpy(crop[..., ::-1].copy())[None]
        finished = kernels.composite(
            *arguments, crops, torch.from_numpy(generated)[None], mode=mode
        )[0].numpy()[..., ::-1]
        expected = frame_loop.composite(bgr, tuple(box), crop, generated, mode)
        if mode == "crop":
            exact = bgr.astype(np.float64)
            patch = bicubic(frame_loop.paste(crop, generated), x1 - x0)
            height, width = exact[rows, columns].shape[:2]
            top, left = max(-y0, 0), max(-x0, 0)
            exact[rows, columns] = patch[top : top + height, left : left + width]
            assert_close(finished, exact, EXACT)
            assert_close(expected, exact, OPENCV)
            finished, expected = finished.copy(), expected.copy()
            finished[rows, columns] = expected[rows, columns] = 0
        assert np.array_equal(finished, expected)


# 40 to 700 pixels; 164 is half the crop (ties), 328 its size (a copy), 320 the ROI's ("direct"
# becomes a copy); real avatars have 182 and 186.
@pytest.mark.parametrize("size", [40, 41, 97, 164, 182, 186, 320, 328, 329, 511, 656, 700])
def test_sizes(person, size):
    check(person[0], [10, 300, 10 + size, 300 + size])


@pytest.mark.parametrize(
    "box",
    [
        [-60, 500, 122, 682],  # across the left edge
        [620, 500, 802, 682],  # across the right edge
        [250, -100, 432, 82],  # across the top edge
        [250, 1200, 432, 1382],  # across the bottom edge
        [-50, -50, 132, 132],  # across a corner
        [650, 1210, 832, 1392],  # across the opposite corner
        [-181, 500, 1, 682],  # with one column inside
        [719, 1279, 901, 1461],  # with one pixel inside
        [-100, 200, 900, 1200],  # across both sides at once
        [-300, -10, 1020, 1310],  # larger than the frame
    ],
)
def test_boxes_that_leave_the_frame(person, box):
    check(person[5], box)


@pytest.mark.parametrize("shape", [(721, 1281), (333, 257), (101, 99), (7, 5), (1, 1), (1, 640)])
def test_frames_of_odd_sizes(person, shape):
    height, width = shape
    frame = person[3].repeat(1, 2, 1)[300 : 300 + height, 100 : 100 + width].contiguous()
    side = max(2, min(height, width) * 2 // 3)
    check(frame, [width // 5, height // 5, width // 5 + side, height // 5 + side])


@given(
    size=st.integers(1, 720),
    x=st.floats(-1, 1),
    y=st.floats(-1, 1),
    shape=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    seed=st.integers(0, 2**32 - 1),
)
@example(size=304, x=0.0, y=0.5, shape=(40, 232), seed=1)  # a tie in a row that is repeated
@settings(max_examples=60, deadline=None)
def test_any_box_that_overlaps_the_frame(size, x, y, shape, seed):
    height, width = shape
    rng = np.random.default_rng(seed)
    # Enlarged noise, as smooth as pictures.
    small = torch.from_numpy(rng.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8))
    frame = kernels.resize(small, shape, mode="bilinear")[0]
    x0 = int((width + size - 2) * (x + 1) / 2) - size + 1
    y0 = int((height + size - 2) * (y + 1) / 2) - size + 1
    check(frame, [x0, y0, x0 + size, y0 + size], seed)


def moving(count: int) -> torch.Tensor:
    """Make boxes that move, grow and leave the frame."""
    step = torch.arange(count)
    x0, y0, size = -40 + 30 * step, 500 + 9 * step, 170 + 7 * step
    return torch.stack([x0, y0, x0 + size, y0 + size], dim=1).int()


def test_a_batch_equals_its_frames_one_by_one(person):
    boxes = moving(24)
    index = torch.tensor([3, 3, 0, 23, 11, 11, 4, 22])  # unordered, repeated
    generated = torch.rand(8, 3, 320, 320)
    inputs, crops = kernels.face_input(person, boxes, index)
    for mode in kernels.COMPOSITE_MODES:
        finished = kernels.composite(person, boxes, index, crops, generated, mode=mode)
        for i in range(8):
            one = index[i : i + 1]
            alone, crop = kernels.face_input(person, boxes, one)
            assert torch.equal(alone[0], inputs[i]) and torch.equal(crop[0], crops[i])
            alone = kernels.composite(person, boxes, one, crop, generated[i : i + 1], mode=mode)
            assert torch.equal(alone[0], finished[i])


def test_frames_are_not_changed(person):
    before = person.clone()
    index = torch.arange(4)
    _, crops = kernels.face_input(person, moving(24), index)
    kernels.composite(person, moving(24), index, crops, torch.rand(4, 3, 320, 320))
    assert torch.equal(person, before)


def test_mask(person):
    inputs, _ = kernels.face_input(person[:1], moving(24)[10:11], torch.tensor([0]))
    roi, masked = inputs[0].split(3)
    visible = torch.ones(320, 320, dtype=torch.bool)
    visible[5:310, 5:315] = False
    assert torch.equal(masked[:, visible], roi[:, visible])
    assert (masked[:, ~visible] == 0).all() and (roi[:, ~visible] > 0).any()


def test_every_element_is_written(person):
    index, boxes = torch.tensor([0, 7]), moving(24)
    inputs = torch.full((2, 6, 320, 320), float("nan"))
    crops = torch.full((2, 328, 328, 3), 77, dtype=torch.uint8)
    kernels.face_input(person, boxes, index, out=(inputs, crops))
    expected = kernels.face_input(person, boxes, index)
    assert torch.equal(inputs, expected[0]) and torch.equal(crops, expected[1])
    finished = torch.full((2, 1280, 720, 3), 77, dtype=torch.uint8)
    generated = torch.rand(2, 3, 320, 320)
    assert kernels.composite(person, boxes, index, crops, generated, out=finished) is finished
    assert torch.equal(finished, kernels.composite(person, boxes, index, crops, generated))


def test_strided_frames(person):
    wide = torch.cat([person[:2], person[2:4]], dim=2)
    left, boxes, index = wide[:, :, :720], moving(24)[8:10], torch.arange(2)
    assert not left.is_contiguous()
    inputs, crops = kernels.face_input(left, boxes, index)
    assert torch.equal(inputs, kernels.face_input(person[:2], boxes, index)[0])
    generated = torch.rand(2, 3, 320, 320)
    finished = kernels.composite(left, boxes, index, crops, generated)
    assert torch.equal(finished, kernels.composite(person[:2], boxes, index, crops, generated))


@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("value", "level"),
    [
        (float("nan"), 0), (float("inf"), 255), (float("-inf"), 0), (-0.5, 0), (-0.0, 0),
        (1e-10, 0), (1e4, 255), (1.0, 255), (0.0, 0), (0.5, 127), (1.7, 255),
    ],
)  # fmt: skip
def test_extreme_outputs(mode, dtype, value, level):
    frames = torch.full((1, 400, 400, 3), 9, dtype=torch.uint8)
    crops = torch.full((1, 328, 328, 3), 9, dtype=torch.uint8)
    boxes, index = torch.tensor([[20, 30, 348, 358]]), torch.tensor([0])
    generated = torch.full((1, 3, 320, 320), value, dtype=dtype)
    finished = kernels.composite(frames, boxes, index, crops, generated, mode=mode)
    assert (finished[0, 34:354, 24:344] == level).all()


def test_a_flat_face_stays_flat():
    # Truncation turns any rounding error into a whole level, so there must be none.
    frames, index = torch.full((1, 900, 900, 3), 200, dtype=torch.uint8), torch.tensor([0])
    generated = torch.full((1, 3, 320, 320), 200.5 / 255)
    crops = torch.full((1, 328, 328, 3), 200, dtype=torch.uint8)
    for size in range(1, 800, 37):
        boxes = torch.tensor([[30, 40, 30 + size, 40 + size]])
        for mode in kernels.COMPOSITE_MODES:
            finished = kernels.composite(frames, boxes, index, crops, generated, mode=mode)
            assert (finished == 200).all()


@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
@pytest.mark.parametrize("format", kernels.COMPOSITE_FORMATS)
def test_formats_equal_the_finished_frame_converted(person, mode, format):
    index = torch.tensor([2, 0])
    _, crops = kernels.face_input(person, moving(24), index)
    arguments = person, moving(24), index, crops, torch.rand(2, 3, 320, 320)
    rgb = kernels.composite(*arguments, mode=mode)
    finished = kernels.composite(*arguments, mode=mode, format=format)
    assert torch.equal(finished, kernels.convert_color(rgb, "rgb", format))


def test_an_empty_batch(person):
    none = torch.tensor([], dtype=torch.int64)
    inputs, crops = kernels.face_input(person, moving(24), none)
    assert inputs.shape == (0, 6, 320, 320) and crops.shape == (0, 328, 328, 3)
    finished = kernels.composite(person, moving(24), none, crops, torch.rand(0, 3, 320, 320))
    assert finished.shape == (0, 1280, 720, 3)


FRAMES, BOXES, INDEX = torch.zeros(2, 9, 9, 3).byte(), torch.zeros(2, 4).int(), torch.arange(2)
CROPS, GENERATED = torch.zeros(2, 328, 328, 3).byte(), torch.zeros(2, 3, 320, 320)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kernels.face_input(FRAMES.float(), BOXES, INDEX),
            "frames has dtype torch.float32; expected torch.uint8",
        ),
        (
            lambda: kernels.face_input(FRAMES[..., :2], BOXES, INDEX),
            r"\(2, 9, 9, 2\).*\(F, H, W, 3",
        ),
        (lambda: kernels.face_input(FRAMES, BOXES[:1], INDEX), r"boxes.*\(1, 4\).*\(2, 4\)"),
        (lambda: kernels.face_input(FRAMES, BOXES, INDEX.int()), "index has dtype torch.int32"),
        (
            lambda: kernels.face_input(FRAMES, BOXES, INDEX, dtype=torch.float64),
            "dtype is torch.float64; expected torch.float32 or",
        ),
        (lambda: kernels.composite(FRAMES, BOXES, INDEX, CROPS[:1], GENERATED), r"crops.*\(1, 328"),
        (lambda: kernels.composite(FRAMES, BOXES, INDEX, CROPS, GENERATED[:, :2]), "generated"),
        (
            lambda: kernels.composite(FRAMES, BOXES, INDEX, CROPS, GENERATED, mode="paste"),
            "mode is 'paste'; expected one of: crop, direct",
        ),
        (
            lambda: kernels.composite(FRAMES, BOXES, INDEX, CROPS, GENERATED, format="yuv"),
            "format is 'yuv'; expected one of: rgb, bgr, rgba, nv12, i420",
        ),
        (
            lambda: kernels.composite(FRAMES, BOXES, INDEX, CROPS, GENERATED, format="nv12"),
            "images are 9 x 9; nv12 needs an even",
        ),
        (
            lambda: kernels.composite(FRAMES, BOXES, INDEX, CROPS, GENERATED, format="i420"),
            "images are 9 x 9; i420 needs an even",
        ),
        (
            lambda: kernels.composite(
                FRAMES, BOXES, INDEX, CROPS, GENERATED, format="bgr", out=FRAMES
            ),
            "out overlaps frames in memory; pass a separate",
        ),
        (lambda: kernels.face_input(FRAMES[:0], BOXES[:0], INDEX), "0 frames; index selects 2"),
        (
            lambda: kernels.face_input(FRAMES.flip(3)[:, :, ::2], BOXES, INDEX),
            "expected 3 and 1 as the last",
        ),
        (
            lambda: kernels.face_input(torch.zeros(1, 0, 9, 3).byte(), BOXES[:1], INDEX),
            "height 0; expected 1",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
