"""Stand-alone resize and colour conversion against OpenCV and NumPy."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from benchmarks import frame_loop
from kernels.spec import YUV_FORMATS
from tests.tolerances import TOLERANCES, U8, assert_close

FORMULA = TOLERANCES["convert_color", U8, "formula"]
INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def check_resize(image: np.ndarray, size: tuple[int, int], mode: str) -> None:
    expected = cv2.resize(image, size[::-1], interpolation=INTERPOLATION[mode])
    expected = expected.reshape(*size, image.shape[2])
    actual = kernels.resize(torch.from_numpy(image)[None], size, mode=mode)[0].numpy()
    tolerance = TOLERANCES[f"resize {mode}", U8, "OpenCV"]
    # Where the image is flat along its rows, one tie is a whole row.
    assert_close(actual, expected, tolerance, at_least=expected[0].size)


SIZES = [
    ((1, 1), (1, 1)),
    ((1, 1), (64, 48)),
    ((64, 48), (1, 1)),
    ((2, 3), (7, 5)),
    ((328, 328), (182, 182)),
    ((182, 182), (328, 328)),
    ((1280, 720), (641, 361)),
    ((8192, 3), (17, 5)),
    ((3, 8192), (5, 17)),
    ((5, 2), (8192, 3)),
    ((2, 5), (3, 8192)),
]


@pytest.mark.parametrize("mode", INTERPOLATION)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resize(person, source, target, mode):
    image = person[0].numpy()
    image = np.tile(image, (8, 12, 1))[200 : 200 + source[0], 100 : 100 + source[1]]
    check_resize(np.ascontiguousarray(image), target, mode)


@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    mode=st.sampled_from(sorted(INTERPOLATION)),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_resize_matches_torch(source, target, mode, channels, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (2, *source, channels), dtype=np.uint8)
    images = torch.from_numpy(noise)
    expected = torch.nn.functional.interpolate(
        images.permute(0, 3, 1, 2).double(), target, mode=mode, align_corners=False
    ).permute(0, 2, 3, 1)
    actual = kernels.resize(images, target, mode=mode)
    assert_close(actual, expected.clamp(0, 255), TOLERANCES["resize", U8, "PyTorch in float64"])


@pytest.mark.parametrize("mode", kernels.RESIZE_MODES)
def test_the_same_size_is_a_copy(person, mode):
    assert torch.equal(kernels.resize(person[:2], (1280, 720), mode=mode), person[:2])


@pytest.mark.parametrize("mode", kernels.RESIZE_MODES)
@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
def test_a_flat_image_stays_flat(mode, level):
    flat = torch.full((1, 33, 17, 3), level, dtype=torch.uint8)
    for size in [(1, 1), (3, 1000), (77, 13), (320, 182)]:
        assert (kernels.resize(flat, size, mode=mode) == level).all()


def row(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, -1, 1)


def test_exact_bilinear():
    # The centres of the doubled pixels are at -0.25, 0.25, 0.75, 1.25 in the source.
    assert kernels.resize(row([0, 200]), (1, 4)).flatten().tolist() == [0, 50, 150, 200]
    assert kernels.resize(row([0, 100, 200, 40]), (1, 2)).flatten().tolist() == [50, 120]


def test_exact_bicubic():
    # At 1/8: W(1.125), W(0.125), W(0.875), W(1.875) of Keys' kernel with a = -0.75.
    a = -0.75
    near = lambda x: (a + 2) * x**3 - (a + 3) * x**2 + 1  # noqa: E731
    far = lambda x: a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a  # noqa: E731
    weights = np.array([far(1.125), near(0.125), near(0.875), far(1.875)])
    step = row([10, 20, 200, 60, 90])
    # Four per pixel, with centres at n / 4 + 1 / 8.
    wide = kernels.resize(step, (1, 20), mode="bicubic").flatten()
    assert wide[10] == round(float(weights @ [20, 200, 60, 90]))
    assert wide[6] == round(float(weights @ [10, 20, 200, 60]))
    # Overshoot on either side of an edge is clipped.
    edge = kernels.resize(row([0, 0, 0, 255, 255, 255]), (1, 24), mode="bicubic").flatten()
    assert edge.min() == 0 and edge.max() == 255


def test_exact_direct():
    # src = dst * 2 / 5: 0, 0.4, 0.8, 1.2 and 1.6, clamped to the edge, truncated.
    assert kernels.resize(row([10, 21]), (1, 5), mode="direct").flatten().tolist() == [
        10, 14, 18, 21, 21,
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 40, 182, 319, 320, 321, 700])
def test_direct_matches_float64(person, size):
    roi = person[0, 300:620, 200:520]
    actual = kernels.resize(roi[None], (size, size), mode="direct")[0]
    assert np.array_equal(actual.numpy(), frame_loop.direct_resize(roi.numpy(), size))


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (8193, 5), (5, -1)])
def test_bad_sizes(size):
    with pytest.raises(ValueError, match="; expected 1 to 8192"):
        kernels.resize(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), size)
    with pytest.raises(
        ValueError, match="mode is 'cubic'; expected one of: bilinear, bicubic, direct"
    ):
        kernels.resize(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), (2, 2), mode="cubic")


CODES = {
    ("rgb", "bgr"): cv2.COLOR_RGB2BGR,
    ("rgb", "rgba"): cv2.COLOR_RGB2RGBA,
    ("bgr", "rgb"): cv2.COLOR_BGR2RGB,
    ("bgr", "rgba"): cv2.COLOR_BGR2RGBA,
    ("rgba", "rgb"): cv2.COLOR_RGBA2RGB,
    ("rgba", "bgr"): cv2.COLOR_RGBA2BGR,
}


@pytest.mark.parametrize(("source", "target"), CODES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (1280, 720)])
def test_colors_match_opencv(source, target, shape):
    channels = 4 if source == "rgba" else 3
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    actual = kernels.convert_color(torch.from_numpy(image)[None], source, target)[0]
    assert np.array_equal(actual.numpy(), cv2.cvtColor(image, CODES[source, target]))


@pytest.mark.parametrize("name", ["rgb", "bgr", "rgba"])
def test_bytes_to_floats_and_back(name):
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    images = kernels.convert_color(levels, "rgb", name)
    planes = kernels.convert_color(images, name, "planar_bgr")
    assert planes.shape == (1, 3, 16, 16) and planes.min() == 0 and planes.max() == 1
    assert torch.equal(planes[:, 2], levels[..., 0].float() / 255)
    back = kernels.convert_color(planes, "planar_bgr", name)
    # v / 255 * 255 may be slightly below v and is then truncated: at most 1 below, never above.
    lost = images.int() - back.int()
    assert lost.min() >= 0 and lost.max() <= 1 and (lost == 0).float().mean() > 0.9


VALUES = [-1e10, -1.0, -0.0, 0.0, 1e-10, 0.5, 0.999, 1.0, 1.001, 2.0, 1e10]
LEVELS = [0, 0, 0, 0, 0, 127, 254, 255, 255, 255, 255]


@pytest.mark.parametrize("target", ["rgb", "bgr", "rgba"])
def test_floats_are_clamped(target):
    values = torch.tensor([*VALUES, float("nan"), float("inf"), float("-inf")])
    levels = torch.tensor([*LEVELS, 0, 255, 0], dtype=torch.uint8)
    planes = values.expand(1, 3, 1, -1)
    image = kernels.convert_color(planes, "planar_bgr", target)
    assert torch.equal(image[0, 0, :, :3], levels[:, None].expand(-1, 3))
    if target == "rgba":
        assert (image[..., 3] == 255).all()


def test_out_must_not_overlap_the_images():
    images = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="out overlaps images in memory; pass a separate tensor"):
        kernels.convert_color(images, "rgb", "bgr", out=images)
    with pytest.raises(ValueError, match="out overlaps images in memory; pass a separate tensor"):
        kernels.resize(images, (4, 4), out=images)
    with pytest.raises(ValueError, match="images has 17 channels; expected 1 to 16"):
        kernels.resize(torch.zeros(1, 4, 4, 17, dtype=torch.uint8), (4, 4))


def test_planar_order_is_blue_green_red():
    planes = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1)
    assert kernels.convert_color(planes, "planar_bgr", "rgb").flatten().tolist() == [0, 127, 255]
    assert kernels.convert_color(planes, "planar_bgr", "bgr").flatten().tolist() == [255, 127, 0]
    half = torch.zeros(1, 3, 1, 1, dtype=torch.float16)
    pixel = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 1, 1, 3)
    kernels.convert_color(pixel, "rgb", "planar_bgr", out=half)
    assert torch.equal(half.flatten(), (torch.tensor([30, 20, 10]) / 255).half())


@pytest.mark.parametrize(
    ("images", "source", "message"),
    [
        (
            torch.zeros(1, 2, 2, 3).byte(),
            "yuv",
            "source is 'yuv'; expected one of: rgb, bgr, rgba, nv12, i420, planar",
        ),
        (torch.zeros(1, 2, 2, 4).byte(), "rgb", r"\(1, 2, 2, 4\).*\(n, H, W, 3\)"),
        (torch.zeros(1, 2, 2, 3), "rgb", "torch.float32.*torch.uint8"),
        (torch.zeros(1, 2, 2, 3), "planar_bgr", r"\(n, 3, H, W\)"),
    ],
)
def test_bad_colors(images, source, message):
    with pytest.raises(ValueError, match=message):
        kernels.convert_color(images, source, "rgb")


def smooth(height: int, width: int) -> torch.Tensor:
    """Make pictures in which every 2 x 2 pixels have one colour."""
    generator = torch.Generator().manual_seed(4)
    small = torch.randint(0, 256, (2, height // 2, width // 2, 3), generator=generator)
    return small.byte().repeat_interleave(2, 1).repeat_interleave(2, 2)


def test_nv12_matches_ffmpeg(person):
    av = pytest.importorskip("av")
    rgb = person[0].numpy()
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
    theirs = frame.reformat(format="nv12", dst_colorspace="ITU709").to_ndarray()
    ours = kernels.convert_color(person[:1], "rgb", "nv12")[0].numpy()
    assert_close(ours[:1280], theirs[:1280], TOLERANCES["convert_color", U8, "Y of FFmpeg"])
    # FFmpeg filters U and V along the rows, so single values differ by more.
    assert np.abs(ours.astype(int) - theirs).mean() < 0.6


def test_nv12_by_the_formula():
    """BT.709 in float64, limited range."""
    rgb = smooth(64, 48)
    r, g, b = rgb.double().unbind(-1)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    u, v = ((b - y) / 1.8556)[:, ::2, ::2], ((r - y) / 1.5748)[:, ::2, ::2]
    nv12 = kernels.convert_color(rgb, "rgb", "nv12")
    assert nv12.shape == (2, 96, 48)
    assert_close(nv12[:, :64], 16 + 219 / 255 * y, FORMULA)
    chroma = nv12[:, 64:].view(2, 32, 24, 2)
    assert_close(chroma[..., 0], 128 + 224 / 255 * u, FORMULA)
    assert_close(chroma[..., 1], 128 + 224 / 255 * v, FORMULA)


def test_chroma_of_the_mean_of_four_pixels():
    rgb = torch.randint(0, 256, (1, 8, 6, 3), dtype=torch.uint8)
    mean = rgb.view(1, 4, 2, 3, 2, 3).double().mean(dim=(2, 4))
    r, g, b = mean.unbind(-1)
    u = 128 + 224 / 255 * (b - (0.2126 * r + 0.7152 * g + 0.0722 * b)) / 1.8556
    nv12 = kernels.convert_color(rgb, "rgb", "nv12")
    assert_close(nv12[:, 8:, ::2], u, FORMULA)


def test_nv12_and_back():
    rgb = smooth(64, 48)
    back = kernels.convert_color(kernels.convert_color(rgb, "rgb", "nv12"), "nv12", "rgb")
    assert_close(back, rgb, TOLERANCES["convert_color", U8, "NV12 and back"])
    grey = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    grey = grey.repeat_interleave(2, 1).repeat_interleave(2, 2)
    nv12 = kernels.convert_color(grey, "rgb", "nv12")
    assert (nv12[:, 32:] == 128).all() and nv12[:, :32].min() == 16 and nv12.max() == 235
    back = kernels.convert_color(nv12, "nv12", "rgb")
    assert (back[..., 0] == back[..., 1]).all() and (back[..., 1] == back[..., 2]).all()


@pytest.mark.parametrize("format", YUV_FORMATS)
def test_yuv_from_itself_is_a_copy(format):
    images = torch.randint(0, 256, (2, 12, 6), dtype=torch.uint8)
    assert torch.equal(kernels.convert_color(images, format, format), images)


def planes_apart(nv12: torch.Tensor) -> torch.Tensor:
    """Rearrange NV12 into I420, one image after another."""
    height = nv12.shape[1] * 2 // 3
    return torch.stack([
        torch.cat([image[:height].flatten(), image[height:, ::2].flatten(), image[height:, 1::2].flatten()])
        for image in nv12
    ]).view(nv12.shape)  # fmt: skip


# H / 2 odd, so that V begins in the middle of a row of the array; and even.
@pytest.mark.parametrize(("height", "width"), [(6, 10), (8, 6), (2, 2), (1280, 720)])
@pytest.mark.parametrize("source", ["rgb", "bgr", "rgba", "planar_bgr"])
def test_i420_is_nv12_rearranged(person, source, height, width):
    rgb = person[:2, -height:, -width:]
    images = kernels.convert_color(rgb, "rgb", source)
    nv12 = kernels.convert_color(images, source, "nv12")
    i420 = kernels.convert_color(images, source, "i420")
    assert torch.equal(i420, planes_apart(nv12))
    assert torch.equal(kernels.convert_color(nv12, "nv12", "i420"), i420)
    assert torch.equal(kernels.convert_color(i420, "i420", "nv12"), nv12)
    strided = torch.cat([i420, nv12], dim=2)[..., :width]
    assert torch.equal(kernels.convert_color(strided, "i420", "nv12"), nv12)
    back = kernels.convert_color(strided, "i420", source)
    assert torch.equal(back, kernels.convert_color(nv12, "nv12", source))


def test_i420_matches_ffmpeg(person):
    """The layout is that of PyAV's arrays of yuv420p."""
    av = pytest.importorskip("av")
    frame = av.VideoFrame.from_ndarray(person[0].numpy(), "rgb24")
    theirs = frame.reformat(format="yuv420p", dst_colorspace="ITU709").to_ndarray()
    ours = kernels.convert_color(person[:1], "rgb", "i420")[0].numpy()
    assert ours.shape == theirs.shape
    assert_close(ours[:1280], theirs[:1280], TOLERANCES["convert_color", U8, "Y of FFmpeg"])
    for rows in (slice(1280, 1600), slice(1600, 1920)):  # as for NV12
        assert np.abs(ours[rows].astype(int) - theirs[rows]).mean() < 0.6


def test_i420_has_the_layout_of_opencv(person):
    """OpenCV knows BT.601 only, whose planes of a picture are almost proportional to ours."""
    rgb = person[:1, 200:400, 200:360]
    ours = kernels.convert_color(rgb, "rgb", "i420")[0].numpy().astype(int)
    theirs = cv2.cvtColor(rgb[0].numpy(), cv2.COLOR_RGB2YUV_I420)
    assert theirs.shape == ours.shape == (300, 160)
    for plane in (slice(0, 200), slice(200, 250), slice(250, 300)):
        assert np.corrcoef(ours[plane].ravel(), theirs[plane].ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: kernels.convert_color(torch.zeros(1, 3, 4, 3).byte(), "rgb", "nv12"),
            "3 x 4.*even",
        ),
        (
            lambda: kernels.convert_color(torch.zeros(1, 4, 3, 3).byte(), "rgb", "nv12"),
            "4 x 3.*even",
        ),
        (
            lambda: kernels.convert_color(torch.zeros(1, 4, 4).byte(), "nv12", "rgb"),
            r"\(1, 4, 4\); nv12 needs rows divisible by 3",
        ),
        (lambda: kernels.convert_color(torch.zeros(1, 6, 3).byte(), "nv12", "rgb"), "even width"),
        (
            lambda: kernels.convert_color(torch.zeros(1, 3, 4, 3).byte(), "rgb", "i420"),
            "images are 3 x 4; i420 needs an even height and width",
        ),
        (
            lambda: kernels.convert_color(torch.zeros(1, 4, 4).byte(), "i420", "rgb"),
            r"\(1, 4, 4\); i420 needs rows divisible by 3",
        ),
    ],
)
def test_bad_yuv(call, message):
    with pytest.raises(ValueError, match=message):
        call()
