"""The stages of whole images: resize and colour conversion."""

import torch
from torch import Tensor

from .checks import byte_shape, check_choice, check_no_overlap, check_tensor, make_output
from .dispatch import implementation
from .spec import COLOR_FORMATS, MAX_SIDE, RESIZE_MODES, YUV_FORMATS, ColorFormat, ResizeMode


def resize(
    images: Tensor,
    size: tuple[int, int],
    *,
    mode: ResizeMode = "bilinear",
    out: Tensor | None = None,
) -> Tensor:
    """Resize a batch of images of one size, without antialiasing.

    Args:
        images: (n, h, w, c) uint8, 1 <= h, w <= 8192, 1 <= c <= 16.
        size: (height, width) of the result, each 1 to 8192.
        mode: "bilinear" or "bicubic" (a = -0.75), with half-pixel centres, edges repeated, rounded
            half to even (OpenCV's INTER_LINEAR and INTER_CUBIC); or "direct", bilinear at
            dst * source / size, truncated.
        out: (n, height, width, c) uint8 to write into.

    Returns:
        (n, height, width, c) uint8.
    """
    check_tensor("images", images, ("n", "h", "w", "c"), (torch.uint8,))
    for what, side in zip(
        ("height", "width", "target height", "target width"),
        (*images.shape[1:3], *size),
        strict=True,
    ):
        if not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{what} is {side}; expected 1 to {MAX_SIDE}")
    if not 1 <= images.shape[3] <= 16:
        raise ValueError(f"images has {images.shape[3]} channels; expected 1 to 16")
    check_choice("mode", mode, RESIZE_MODES)
    shape = (images.shape[0], *size, images.shape[3])
    out = make_output(out, shape, torch.uint8, images.device)
    check_no_overlap(out, "images", images)
    if out.numel():
        with implementation(images) as stages:
            stages.resize(images, mode, out)
    return out


def convert_color(
    images: Tensor, source: ColorFormat, target: ColorFormat, *, out: Tensor | None = None
) -> Tensor:
    """Convert images between colour orders and memory layouts.

    The formats are "rgb" and "bgr": (n, H, W, 3) uint8; "rgba": (n, H, W, 4) uint8; "nv12" and
    "i420": (n, H * 3 / 2, W) uint8 with H and W even, BT.709 in limited range; "planar_bgr":
    (n, 3, H, W) float32 or float16 in [0, 1].

    "nv12" is H rows of Y, then H / 2 rows of U and V interleaved. "i420" (FFmpeg's yuv420p) has the
    same bytes as three planes one after another: H rows of Y, then H / 2 rows of W / 2 bytes of U,
    then as many of V.

    Floats become bytes as floor(clip(255 v, 0, 255)), with 0 for NaN; bytes become floats over
    255. U and V are those of the mean of 2 x 2 pixels, and on the way back are used for all four.
    An alpha channel that the source lacks is 255.

    Args:
        images: in the layout of `source`.
        source: format of `images`.
        target: format of the result.
        out: tensor to write the result into.

    Returns:
        The images in the layout of `target`; "planar_bgr" is float32 unless `out` is float16.
    """
    check_choice("source", source, COLOR_FORMATS)
    check_choice("target", target, COLOR_FORMATS)
    if source == "planar_bgr":
        check_tensor("images", images, ("n", 3, "H", "W"), (torch.float32, torch.float16))
        n, _, height, width = images.shape
    elif source in YUV_FORMATS:
        check_tensor("images", images, ("n", "H * 3 / 2", "W"), (torch.uint8,))
        n, rows, width = images.shape
        height = rows * 2 // 3
        if rows % 3 or width % 2:
            raise ValueError(
                f"images has shape {(*images.shape,)}; {source} needs rows divisible by 3 "
                "and an even width"
            )
    else:
        channels = 4 if source == "rgba" else 3
        check_tensor("images", images, ("n", "H", "W", channels), (torch.uint8,))
        n, height, width, _ = images.shape
    if target == "planar_bgr":
        half = out is not None and out.dtype == torch.float16
        out = make_output(
            out, (n, 3, height, width), torch.float16 if half else torch.float32, images.device
        )
    else:
        out = make_output(out, byte_shape(target, n, height, width), torch.uint8, images.device)
    check_no_overlap(out, "images", images)
    if out.numel():
        with implementation(images) as stages:
            stages.convert_color(images, source, target, out)
    return out
