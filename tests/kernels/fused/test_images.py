"""resize and convert_color: Triton against the reference, and against OpenCV."""

import pytest
import torch

import kernels
from kernels import reference
from kernels.spec import YUV_FORMATS
from tests.tolerances import TOLERANCES, U8, assert_close

PAIRS = [(s, t) for s in kernels.COLOR_FORMATS for t in kernels.COLOR_FORMATS]


def image_of(format: str, height: int, width: int, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    if format == "planar_bgr":
        return torch.rand(n, 3, height, width, generator=generator) * 1.2 - 0.1
    shape = (height, width, 4 if format == "rgba" else 3)
    if format in YUV_FORMATS:
        shape = (height * 3 // 2, width)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)


# Rows whose number of bytes 16, 4, 2 and 1 divide, and in I420 half of it; an odd number of rows of
# U and V; a single pixel; more than one program.
SHAPES = [(4, 16), (6, 4), (2, 2), (6, 32), (10, 24), (40, 130), (3, 5), (1, 1)]


@pytest.mark.parametrize(("height", "width"), SHAPES)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_convert_color(device, poisoned, source, target, height, width):
    if {source, target} & {*YUV_FORMATS} and (height % 2 or width % 2):
        pytest.skip("NV12 and I420 need even sides")
    images = image_of(source, height, width).to(device)
    shape = image_of(target, height, width).shape
    floats = (torch.float32, torch.float16)
    for dtype in floats if target == "planar_bgr" else (torch.uint8,):
        out = poisoned(*shape, dtype=dtype)
        assert kernels.convert_color(images, source, target, out=out) is out
        want = torch.empty(shape, dtype=dtype)
        reference.convert_color(images.cpu(), source, target, want)
        assert torch.equal(out.cpu(), want)


def test_extreme_floats(device):
    values = [float("nan"), float("inf"), float("-inf"), -0.0, 1e-10, 1e10, -1e10, 0.5, 1.0]
    levels = [0, 255, 0, 0, 0, 255, 0, 127, 255]
    planes = torch.tensor(values, device=device).expand(1, 3, 2, -1)
    for dtype in (torch.float32, torch.float16):
        rgba = kernels.convert_color(planes.to(dtype), "planar_bgr", "rgba")[0, 1]
        assert rgba.tolist() == [[level] * 3 + [255] for level in levels]


def test_transposed_and_unaligned(device, poisoned):
    images = image_of("rgb", 6, 8).to(device)
    want = kernels.convert_color(images, "rgb", "bgr")
    transposed = images.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    assert torch.equal(kernels.convert_color(transposed, "rgb", "bgr"), want)
    out = poisoned(2, 6, 8, 3, dtype=torch.uint8, shift=1)
    moved = torch.cat([images.flatten()[:3], images.flatten()])[3:].view(images.shape)
    assert torch.equal(kernels.convert_color(moved, "rgb", "bgr", out=out), want)


# To one pixel, from one, the same size, twice, half, different ratios; 1, 3 and 4 channels.
SIZES = [
    ((9, 7), (1, 1)), ((1, 1), (5, 9)), ((16, 24), (16, 24)), ((16, 24), (32, 48)),
    ((16, 24), (8, 12)), ((33, 21), (11, 100)), ((5, 300), (37, 13)),
]  # fmt: skip


def check_resized(images, got, want, mode):
    if mode == "bilinear":  # few different weights, so many values are half way between two levels
        exact = torch.nn.functional.interpolate(
            images.permute(0, 3, 1, 2).double(), got.shape[1:3], mode="bilinear"
        )
        ties = ((exact % 1 - 0.5).abs() < 1e-4).permute(0, 2, 3, 1)
        got, want = got[~ties], want[~ties]
    if mode == "direct":
        assert torch.equal(got, want)
    else:
        assert_close(got, want, TOLERANCES["resize", U8, "reference"])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mode", kernels.RESIZE_MODES)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resize(device, poisoned, source, target, mode, channels):
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (2, *source, channels), dtype=torch.uint8, generator=generator)
    out = poisoned(2, *target, channels, dtype=torch.uint8)
    assert kernels.resize(images.to(device), target, mode=mode, out=out) is out
    want = reference.resize(images, mode, torch.empty(out.shape, dtype=torch.uint8))
    got = out.cpu()
    check_resized(images, got, want, mode)


@pytest.mark.parametrize("target", [(40, 40), (96, 96), (61, 130)])
def test_resize_against_opencv(device, person, target):
    cv2 = pytest.importorskip("cv2")
    image = person[0, 300:364, 200:264].contiguous()
    got = kernels.resize(image[None].to(device), target, mode="bicubic")[0].cpu()
    want = cv2.resize(image.numpy(), target[::-1], interpolation=cv2.INTER_CUBIC)
    assert_close(got, want, TOLERANCES["resize bicubic", U8, "OpenCV"])


def test_transposed_images(device):
    images = torch.randint(0, 256, (1, 12, 10, 3), dtype=torch.uint8, device=device)
    transposed = images.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    want = kernels.resize(images, (7, 9))
    assert torch.equal(kernels.resize(transposed, (7, 9)), want)


@pytest.mark.parametrize("mode", kernels.RESIZE_MODES)
@pytest.mark.parametrize(("source", "target"), [((5, 70), (9, 132)), ((11, 150), (9, 124))])
def test_resize_tile_edges(device, poisoned, source, target, mode):
    """More than one tile across and down; one column of pixels more and less than a tile."""
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (1, *source, 3), dtype=torch.uint8, generator=generator)
    # At every alignment of a row.
    moved = torch.cat([images.flatten()[:1], images.flatten()])[1:].view(images.shape)
    for picture in (images, moved):
        out = poisoned(1, *target, 3, dtype=torch.uint8)
        kernels.resize(picture.to(device), target, mode=mode, out=out)
        want = reference.resize(images, mode, torch.empty(out.shape, dtype=torch.uint8))
        check_resized(images, out.cpu(), want, mode)
