"""The stages of faces: frames -> generator input, generator output -> finished frames."""

import torch
from torch import Tensor

from .checks import (
    byte_shape,
    check_choice,
    check_faces,
    check_masks,
    check_no_overlap,
    check_tensor,
    make_output,
)
from .dispatch import implementation
from .spec import COMPOSITE_FORMATS, COMPOSITE_MODES, CROP_SIZE, ROI_SIZE, ByteFormat, CompositeMode


def face_input(
    frames: Tensor,
    boxes: Tensor,
    index: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Cut the faces out of frames and make the generator's picture input of them.

    The face box is resized to 328 x 328 (bicubic, a = -0.75, half-pixel centres, edges repeated,
    not antialiased, rounded half to even: `cv2.INTER_CUBIC`). The inner 320 x 320 over 255, as
    planes B, G, R, is channels 0-2; the same with the mouth region set to 0 is channels 3-5.

    Args:
        frames: (F, H, W, 3) uint8 RGB. Frames and their rows may be strided, as in a part of a
            larger picture; the pixels of a row must be adjacent.
        boxes: (F, 4) int32 or int64, x0, y0, x1, y1 in pixels, end-exclusive, at least 1 x 1
            and at most 2**20 from the frame. Outside the frame, its edge pixels are repeated.
        index: (n,) int64, the frame (and box) of each of the n inputs, in any order; repeats are
            allowed.
        dtype: of the inputs, float32 or float16.
        out: the pair below to write into; `dtype` is then that of its first tensor.

    Returns:
        ((n, 6, 320, 320) dtype in [0, 1], (n, 328, 328, 3) uint8 RGB face crops).
    """
    check_faces(frames, boxes, index)
    n = index.shape[0]
    inputs, crops = (None, None) if out is None else out
    dtype = dtype if inputs is None else inputs.dtype
    if dtype not in (torch.float32, torch.float16):
        raise ValueError(f"dtype is {dtype}; expected torch.float32 or torch.float16")
    inputs = make_output(inputs, (n, 6, ROI_SIZE, ROI_SIZE), dtype, frames.device)
    crops = make_output(crops, (n, CROP_SIZE, CROP_SIZE, 3), torch.uint8, frames.device)
    if n:
        with implementation(frames) as stages:
            stages.face_input(frames, boxes, index, inputs, crops)
    return inputs, crops


def composite(
    frames: Tensor,
    boxes: Tensor,
    index: Tensor,
    crops: Tensor,
    generated: Tensor,
    *,
    mode: CompositeMode = "crop",
    format: ByteFormat = "rgb",
    masks: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Paste generated ROIs back into their frames.

    The generator's output G becomes U = floor(clip(255 G, 0, 255)), with 0 for NaN. Mode "crop"
    puts U into the middle of the face crop and resizes the crop (bicubic as in `face_input`) to
    the face box. Mode "direct" pastes U alone over the whole box, sampled bilinearly at
    dst * 320 / size and truncated. Pixels outside the box are copied unchanged; parts of the box
    outside the frame are dropped. So are pixels that a mask keeps: those of what is in front of the
    face. NV12 and I420 are made of the finished RGB; a U and V of 2 x 2 pixels may have of both.

    Args:
        frames: as in `face_input`.
        boxes: as in `face_input`.
        index: as in `face_input`.
        crops: (n, 328, 328, 3) uint8 RGB, the second result of `face_input`.
        generated: (n, 3, 320, 320) float32 or float16, planes B, G, R in [0, 1].
        mode: "crop" or "direct".
        format: of the finished frames, as in `convert_color`: "rgb", "bgr", "rgba", "nv12"
            or "i420".
        masks: the pixels of each frame to keep, also inside the box: contiguous (F, H, W) bool, or
            (F, H, ceil(W / 8)) uint8 of bits, the first pixel in the lowest one
            (`numpy.packbits(mask, axis=-1, bitorder="little")`). Only those in boxes are read.
        out: tensor to write the result into. It may be `frames` itself, to paste in place, if the
            format is "rgb" and `index` is 0, 1, ..., F - 1. Otherwise it must not overlap frames.

    Returns:
        The finished frames: (n, H, W, 3) uint8 for "rgb" and "bgr", (n, H, W, 4) for "rgba",
        (n, H * 3 / 2, W) for "nv12" and "i420", which need an even H and W.
    """
    check_faces(frames, boxes, index)
    check_masks(masks, frames)
    n = index.shape[0]
    check_tensor("crops", crops, (n, CROP_SIZE, CROP_SIZE, 3), (torch.uint8,), frames.device)
    floats = (torch.float32, torch.float16)
    check_tensor("generated", generated, (n, 3, ROI_SIZE, ROI_SIZE), floats, frames.device)
    check_choice("mode", mode, COMPOSITE_MODES)
    check_choice("format", format, COMPOSITE_FORMATS)
    out = make_output(out, byte_shape(format, n, *frames.shape[1:3]), torch.uint8, frames.device)
    if n == 0:
        return out
    if masks is not None:
        check_no_overlap(out, "masks", masks)
    if not (format == "rgb" and out.data_ptr() == frames.data_ptr() and n == frames.shape[0]):
        check_no_overlap(out, "frames", frames)
    elif not frames.is_contiguous():
        raise ValueError(
            f"frames has strides {frames.stride()}; frames must be contiguous when out is frames"
        )
    with implementation(frames) as stages:
        return stages.composite(frames, boxes, index, crops, generated, mode, format, out, masks)
