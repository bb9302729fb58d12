"""Masks of `composite`: Triton against the reference, and kept pixels against the frames."""

import numpy as np
import pytest
import torch

import kernels
from kernels import reference
from kernels.checks import byte_shape
from kernels.spec import YUV_FORMATS
from tests.kernels.fused.test_faces import cut, generated_for
from tests.tolerances import TOLERANCES, U8, assert_close

# Over an edge, over the opposite corner, and off the frame.
BOXES = [[21, -7, 62, 34], [35, 33, 84, 82], [90, 10, 131, 51]]


def make_masks(frames: torch.Tensor, boxes: list[list[int]]) -> torch.Tensor:
    """Blobs, and the outermost rows and columns of the boxes: (F, H, W) bool."""
    count, height, width = frames.shape[:3]
    noise = torch.rand(count, 1, 7, 9, generator=torch.Generator().manual_seed(5))
    masks = torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[:, 0] > 0.55
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        rows, columns = slice(max(y0, 0), y1), slice(max(x0, 0), x1)
        for line in (y0, y1 - 1):
            if 0 <= line < height:
                mask[line, columns] = line % 2 == 0
        for line in (x0, x1 - 1):
            if 0 <= line < width:
                mask[rows, line] = line % 2 == 0
    return masks.to(frames.device)


def packed(masks: torch.Tensor) -> torch.Tensor:
    bits = np.packbits(masks.cpu().numpy(), axis=2, bitorder="little")
    return torch.from_numpy(bits).to(masks.device)


def check(arguments, masks, mode, format, poisoned, given, shift=0):
    frames, _, index = arguments[:3]
    shape = byte_shape(format, len(index), *frames.shape[1:3])
    out = poisoned(*shape, dtype=torch.uint8, shift=shift)
    kernels.composite(*arguments, mode=mode, format=format, masks=given, out=out)
    want = torch.empty(shape, dtype=torch.uint8)
    host = (part.cpu() for part in arguments)
    reference.composite(*host, mode, format, want, given.cpu())
    assert_close(out, want, TOLERANCES["composite", U8, "reference"])
    if format not in YUV_FORMATS:
        order = [2, 1, 0] if format == "bgr" else [0, 1, 2]
        kept = masks[index].cpu()
        assert torch.equal(out.cpu()[..., order][kept], frames[index].cpu()[kept])


# Rows of units of 16 bytes and of four pixels, and of single pixels; 9 and 10 bytes of bits.
@pytest.mark.parametrize(
    ("mode", "format", "width"),
    [
        ("crop", "rgb", 80), ("direct", "rgb", 71), ("crop", "nv12", 72), ("direct", "i420", 70),
        ("direct", "bgr", 72), ("crop", "rgba", 71),
    ],
)  # fmt: skip
def test_masks(device, poisoned, person, mode, format, width):
    part = {"height": 62, "width": width}
    frames, boxes, index = cut(device, person, BOXES, [1, 2, 0], **part)
    crops = torch.randint(0, 256, (3, 328, 328, 3), dtype=torch.uint8, device=device)
    masks = make_masks(frames, BOXES)
    arguments = frames, boxes, index, crops, generated_for(index, device)
    check(arguments, masks, mode, format, poisoned, packed(masks))


def test_tiles_as_launched(device, poisoned, person):
    """A byte for a pixel, frames of odd strides, an unaligned result; tiles that reach over the end
    of the region lie over others."""
    box = [[9, 12, 43, 79]]
    frames, boxes, index = cut(device, person, box, [0], height=83, width=71)
    frames = frames[:, 1:, 1:]
    crops = torch.randint(0, 256, (1, 328, 328, 3), dtype=torch.uint8, device=device)
    masks = make_masks(frames, box)
    arguments = frames, boxes, index, crops, generated_for(index, device, torch.float16)
    check(arguments, masks, "crop", "rgb", poisoned, masks, shift=3)


def test_in_place(device, poisoned, person):
    frames, boxes, index = cut(device, person, [[-5, 6, 40, 51], [30, 60, 61, 91]], [0, 1])
    frames = poisoned(*frames.shape, dtype=torch.uint8).copy_(frames)
    crops = torch.randint(0, 256, (2, 328, 328, 3), dtype=torch.uint8, device=device)
    masks = packed(make_masks(frames, boxes.tolist()))
    arguments = boxes, index, crops, generated_for(index, device)
    want = kernels.composite(frames, *arguments, masks=masks)
    assert kernels.composite(frames, *arguments, masks=masks, out=frames) is frames
    assert torch.equal(frames, want)
