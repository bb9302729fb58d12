"""face_input and composite: Triton against the reference, and against OpenCV."""

import pytest
import torch

import kernels
from benchmarks import frame_loop
from kernels import reference
from kernels.checks import byte_shape
from kernels.fused import face_input
from kernels.spec import YUV_FORMATS
from tests.tolerances import F32, TOLERANCES, U8, assert_close

from .conftest import INTERPRETED

INPUT_TO_REFERENCE = TOLERANCES["face_input", U8, "reference"]
real_tile_rows = face_input.tile_rows  # the fixture `coarse_tiles` replaces it


def check_input(frames, boxes, index, poisoned, dtype=torch.float32, shift=0):
    """Compare face_input with the reference, into poisoned outputs. Returns the crops."""
    n = len(index)
    inputs = poisoned(n, 6, 320, 320, dtype=dtype, shift=shift)
    crops = poisoned(n, 328, 328, 3, dtype=torch.uint8, shift=shift)
    got = kernels.face_input(frames, boxes, index, out=(inputs, crops))
    assert got[0] is inputs and got[1] is crops
    want = torch.empty(inputs.shape, dtype=dtype), torch.empty(crops.shape, dtype=torch.uint8)
    reference.face_input(frames.cpu(), boxes.cpu(), index.cpu(), *want)
    assert_close(crops, want[1], INPUT_TO_REFERENCE)
    assert inputs.isfinite().all()  # the poison is NaN
    assert (inputs[:, 3:, 5:310, 5:315] == 0).all()
    levels, wanted = (inputs.cpu().float() * 255).round(), (want[0].float() * 255).round()
    assert_close(levels, wanted, INPUT_TO_REFERENCE)
    same = levels == wanted  # these differ by the division at most
    division = TOLERANCES["face_input", F32, "reference"]
    assert_close(inputs.cpu()[same], want[0][same], division)
    if dtype == torch.float16:
        assert torch.equal(inputs.cpu()[same], want[0][same])
    return crops


def check_composite(
    frames, boxes, index, crops, generated, poisoned, modes=kernels.COMPOSITE_MODES,
    formats=("rgb",), shift=0,
):  # fmt: skip
    height, width = frames.shape[1:3]
    for mode in modes:
        for format in formats:
            shape = byte_shape(format, len(index), height, width)
            out = poisoned(*shape, dtype=torch.uint8, shift=shift)
            arguments = frames, boxes, index, crops, generated
            assert kernels.composite(*arguments, mode=mode, format=format, out=out) is out
            want = torch.empty(shape, dtype=torch.uint8)
            reference.composite(*(part.cpu() for part in arguments), mode, format, want)
            assert_close(out, want, TOLERANCES["composite", U8, "reference"])
            if format == "rgb":
                outside = torch.ones(out.shape, dtype=torch.bool)
                for mask, (x0, y0, x1, y1) in zip(outside, boxes[index].tolist(), strict=True):
                    mask[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = False
                assert torch.equal(out.cpu()[outside], frames[index].cpu()[outside])


def cut(device, person, boxes, index, top=300, left=200, height=120, width=160):
    """Cut parts around the face out of frames. Returns frames, boxes and index."""
    frames = person[: len(boxes), top : top + height, left : left + width].contiguous()
    boxes = torch.tensor(boxes, dtype=torch.int32)
    return frames.to(device), boxes.to(device), torch.tensor(index).to(device)


def generated_for(index, device, dtype=torch.float32):
    """Make pictures as smooth as faces, with some values above 1 and below 0."""
    coarse = torch.rand(len(index), 3, 20, 20, generator=torch.Generator().manual_seed(3))
    fine = torch.nn.functional.interpolate(coarse * 1.2 - 0.1, (320, 320), mode="bicubic")
    return fine.to(device, dtype)


def check(device, poisoned, person, boxes, index, dtype=torch.float32, part=None, **options):
    frames, boxes, index = cut(device, person, boxes, index, **(part or {}))
    crops = check_input(frames, boxes, index, poisoned, dtype)
    generated = generated_for(index, device, dtype)
    check_composite(frames, boxes, index, crops, generated, poisoned, **options)


# 1 and 2: all taps are one or two pixels; 41: odd; 82: weights meet ties, a quarter of the crop;
# 97: a real, small face.
@pytest.mark.parametrize("size", [1, 2, 41, 82, 97])
def test_sizes(device, poisoned, person, size):
    check(device, poisoned, person, [[30, 15, 30 + size, 15 + size]], [0])


def test_low_boxes_of_odd_rows(device, poisoned, person):
    """In YUV, the row above such a box is made too: a crop's worth of rows before its first one."""
    boxes = [[30, 15, 57, 15 + height] for height in (1, 2, 3)]
    part = {"height": 24, "width": 64}
    check(device, poisoned, person, boxes, [0, 1, 2], part=part, formats=("nv12",))


# 328 is the crop's size (a copy), 320 the ROI's; 656 is twice the crop (ties); 700 has more than two
# rows for each row of the crop, as the box far larger than its frame below, which stands for it in
# the interpreter. The frame shows only a part of these boxes.
@pytest.mark.parametrize("size", [328, 656] if INTERPRETED else [182, 320, 328, 656, 700])
def test_large_sizes(device, poisoned, person, size):
    part = {"height": 96, "width": 112}
    top = -(size // 3)
    check(device, poisoned, person, [[-9, top, size - 9, top + size]], [0], part=part)


def test_a_box_far_larger_than_its_frame(device, poisoned, person):
    part = {"height": 40, "width": 48}
    check(device, poisoned, person, [[-3000, -2000, 5000, 6000]], [0], part=part)


def test_boxes_of_all_sizes_and_places_in_one_batch(device, poisoned, person):
    """Boxes across every edge and corner, with one pixel inside, and outside; in any order."""
    boxes = [
        [-20, 30, 40, 90], [140, -25, 190, 25], [50, 90, 110, 150], [159, 119, 190, 150],
        [-50, 20, 1, 71], [10, -90, 60, -40],
    ]  # fmt: skip
    check(device, poisoned, person, boxes, [5, 0, 1, 4, 2, 3, 0])


@pytest.mark.parametrize("n", [4, 16])
def test_tiles_of_every_batch_size(device, poisoned, person, monkeypatch, n):
    """The rows of a tile depend on the batch size; one frame with the tiles of each."""
    rows = real_tile_rows(n)
    monkeypatch.setattr(face_input, "tile_rows", lambda n: rows)
    frames, boxes, index = cut(device, person, [[30, 15, 103, 88]], [0])
    check_input(frames, boxes, index, poisoned, torch.float16)


def test_as_launched(device, poisoned, person, monkeypatch):
    """A face of a usual size with the programs that a GPU gets: many tiles, many pasters."""
    if INTERPRETED:  # rows are tried above
        monkeypatch.setattr(face_input, "tile_rows", lambda n: 82)
    part = {"height": 110, "width": 124}
    check(device, poisoned, person, [[30, 15, 127, 112]], [0], torch.float16, part)


@pytest.mark.parametrize("format", ["rgb", "nv12"])
def test_tile_edges_as_launched(device, poisoned, person, format):
    """Boxes one pixel smaller and larger than a tile and as large, one of them at the far corner.

    A tile is 32 pixels wide and 64 rows high: these need one tile, and two in both directions.
    """
    boxes = [[9, 12, 41, 76], [10, 3, 41, 66], [47, 7, 80, 72]]
    check_tiles(device, poisoned, person, boxes, format)


def test_margins_as_launched(device, poisoned, person):
    """Large faces with a corner in the frame: the crop's margin lies in some of the tiles."""
    boxes = [[9, 5, 409, 405], [-334, -342, 66, 58], [-5, -5, 395, 395]]
    check_tiles(device, poisoned, person, boxes, "rgb")


def check_tiles(device, poisoned, person, boxes, format):
    index = list(range(len(boxes)))[::-1]
    frames, boxes, index = cut(device, person, boxes, index, height=72, width=80)
    crops = torch.randint(0, 256, (len(index), 328, 328, 3), dtype=torch.uint8).to(device)
    generated = generated_for(index, device, torch.float16)
    check_composite(frames, boxes, index, crops, generated, poisoned, ["crop"], [format])


# In every format, rows whose number of bytes 16, 8, 4, 2 and 1 divide: all widths of accesses.
@pytest.mark.parametrize("format", kernels.COMPOSITE_FORMATS)
@pytest.mark.parametrize("width", [80, 72, 68, 70, 71])
def test_formats_and_widths(device, poisoned, person, width, format):
    if format in YUV_FORMATS and width % 2:
        pytest.skip("NV12 and I420 have even widths")
    part = {"height": 62, "width": width}
    frames, boxes, index = cut(device, person, [[21, -7, 62, 34], [35, 33, 84, 82]], [1, 0], **part)
    crops = torch.randint(0, 256, (2, 328, 328, 3), dtype=torch.uint8, device=device)
    generated = generated_for(index, device)
    # Both modes share the code that depends on the width: one is enough for the interpreter.
    modes = kernels.COMPOSITE_MODES if width == 72 or device.type == "cuda" else ["direct"]
    check_composite(frames, boxes, index, crops, generated, poisoned, modes, [format])


@pytest.mark.parametrize("width", [72, 70])
def test_i420_is_nv12_rearranged(device, poisoned, person, width):
    part = {"height": 62, "width": width}
    frames, boxes, index = cut(device, person, [[21, -7, 62, 34], [35, 33, 84, 82]], [1, 0], **part)
    crops = torch.randint(0, 256, (2, 328, 328, 3), dtype=torch.uint8, device=device)
    arguments = frames, boxes, index, crops, generated_for(index, device)
    for mode in kernels.COMPOSITE_MODES if device.type == "cuda" else ["direct"]:
        nv12, i420 = (
            kernels.composite(
                *arguments, mode=mode, format=format, out=poisoned(2, 93, width, dtype=torch.uint8)
            )
            for format in YUV_FORMATS
        )
        planes = [nv12[:, :62], nv12[:, 62:, ::2], nv12[:, 62:, 1::2]]
        assert torch.equal(i420.flatten(1), torch.cat([plane.flatten(1) for plane in planes], 1))


@pytest.mark.parametrize("format", kernels.COMPOSITE_FORMATS)
def test_unaligned_formats_of_odd_strides(device, poisoned, person, format):
    """An even-sided part of odd-sided frames, into an unaligned output."""
    part = {"height": 63, "width": 71}
    frames, boxes, index = cut(device, person, [[21, -7, 62, 34], [35, 33, 84, 82]], [1, 0], **part)
    crops = torch.randint(0, 256, (2, 328, 328, 3), dtype=torch.uint8, device=device)
    arguments = frames[:, 1:, 1:], boxes, index, crops, generated_for(index, device)
    check_composite(*arguments, poisoned, ["direct"], [format], shift=3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (7, 5), (2, 3)])
def test_tiny_frames(device, poisoned, person, shape):
    part = dict(zip(("height", "width"), shape, strict=True))
    check(device, poisoned, person, [[0, 0, 2, 2]], [0], part=part)


@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
def test_float16(device, poisoned, person, mode):
    boxes, part = [[10, 12, 70, 72]], {"height": 80, "width": 80}
    check(device, poisoned, person, boxes, [0], torch.float16, part=part, modes=[mode])


def test_int64_boxes_and_strided_inputs(device, poisoned, person):
    frames, boxes, index = cut(device, person, [[5, 6, 50, 51], [0, 10, 60, 70]], [1, 0, 1])
    wide = frames[:, ::2, 16:96]
    assert not wide.is_contiguous()
    crops = check_input(wide, boxes.long(), index, poisoned)
    channels_last = generated_for(index, device).to(memory_format=torch.channels_last)
    columns_first = crops.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    boxes = boxes.t().contiguous().t()
    check_composite(
        wide, boxes, index.repeat_interleave(2)[::2], columns_first, channels_last, poisoned
    )


@pytest.mark.parametrize("shift", [1, 8])
def test_unaligned(device, poisoned, person, shift):
    frames, boxes, index = cut(device, person, [[5, 6, 50, 51]], [0], height=64, width=64)
    frames = torch.cat([frames.flatten()[:shift], frames.flatten()])[shift:].view(frames.shape)
    crops = check_input(frames, boxes, index, poisoned, torch.float16, shift)
    generated = torch.cat(
        [torch.zeros(shift, device=device), generated_for(index, device).flatten()]
    )
    generated = generated[shift:].view(1, 3, 320, 320)
    check_composite(frames, boxes, index, crops, generated, poisoned, shift=shift)


def test_strided_pixels_are_refused(device, person):
    frames, boxes, index = cut(device, person, [[5, 6, 50, 51]], [0])
    with pytest.raises(ValueError, match=r"strides.*expected 3 and 1 as the last two"):
        kernels.face_input(frames[:, :, ::2], boxes, index)


@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
def test_in_place(device, poisoned, person, mode):
    frames, boxes, index = cut(device, person, [[-5, 6, 40, 51], [30, 60, 61, 91]], [0, 1])
    frames = poisoned(*frames.shape, dtype=torch.uint8).copy_(frames)
    crops = torch.randint(0, 256, (2, 328, 328, 3), dtype=torch.uint8, device=device)
    generated = generated_for(index, device)
    arguments = boxes, index, crops, generated
    want = kernels.composite(frames, *arguments, mode=mode)
    assert kernels.composite(frames, *arguments, mode=mode, out=frames) is frames
    assert torch.equal(frames, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_outputs(device, dtype):
    values = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-10, 1e4, -0.5, 0.5, 1.0]
    levels = torch.tensor([0, 255, 0, 0, 0, 255, 0, 127, 255], dtype=torch.uint8)
    frames = torch.full((len(values), 20, 20, 3), 9, dtype=torch.uint8, device=device)
    crops = torch.full((len(values), 328, 328, 3), 9, dtype=torch.uint8, device=device)
    boxes = torch.tensor([[2, 3, 18, 19]]).repeat(len(values), 1).to(device)
    generated = torch.tensor(values, device=device, dtype=dtype)[:, None, None, None]
    generated = generated.expand(-1, 3, 320, 320)
    index = torch.arange(len(values), device=device)
    for mode in kernels.COMPOSITE_MODES:
        got = kernels.composite(frames, boxes, index, crops, generated, mode=mode)
        # Away from the border, where the crop's margin has an influence.
        assert (got[:, 6:16, 5:15].cpu() == levels[:, None, None, None]).all()


def test_a_batch_equals_its_frames_one_by_one(device, person):
    frames, boxes, index = cut(device, person, [[9, 9, 50, 50], [-3, 2, 60, 65]], [1, 0])
    inputs, crops = kernels.face_input(frames, boxes, index)
    generated = generated_for(index, device)
    for mode in kernels.COMPOSITE_MODES:
        finished = kernels.composite(frames, boxes, index, crops, generated, mode=mode)
        for i in range(2):
            one = index[i : i + 1]
            alone, crop = kernels.face_input(frames, boxes, one)
            assert torch.equal(alone[0], inputs[i]) and torch.equal(crop[0], crops[i])
            alone = kernels.composite(frames, boxes, one, crop, generated[i : i + 1], mode=mode)
            assert torch.equal(alone[0], finished[i])


@pytest.mark.parametrize("box", [[30, 15, 103, 88], [-30, 60, 52, 142]])
def test_against_opencv(device, person, box):
    pytest.importorskip("cv2")
    frames, boxes, index = cut(device, person, [box], [0])
    bgr = frames[0].cpu().numpy()[..., ::-1]
    planes, crop = frame_loop.face_input(bgr, tuple(box))
    inputs, crops = kernels.face_input(frames, boxes, index)

    to_opencv = TOLERANCES["face_input", U8, "OpenCV"]
    assert_close(crops[0].cpu().numpy()[..., ::-1], crop, to_opencv)
    assert_close((inputs[0].cpu() * 255).round(), (planes * 255).round(), to_opencv)
    generated = generated_for(index, device)
    for mode in kernels.COMPOSITE_MODES:
        got = kernels.composite(frames, boxes, index, crops, generated, mode=mode)[0].cpu()
        rgb = crops[0].cpu().numpy()[..., ::-1]
        want = frame_loop.composite(bgr, tuple(box), rgb, generated[0].cpu().numpy(), mode)
        assert_close(got.numpy()[..., ::-1], want, TOLERANCES["composite", U8, "OpenCV"])
