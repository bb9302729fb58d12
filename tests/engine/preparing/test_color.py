"""HDR and wide-gamut films: what they look like in SDR, against formulas computed another way."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from engine.prepare import main
from engine.preparing.color import to_sdr
from engine.preparing.film import Film
from tests.engine.preparing.films import (
    beeps,
    beeps_in,
    flash,
    flashes_in,
    frames_of,
    head,
    record_of,
    sees,
    write_film,
)
from tests.engine.videos import CASES

PQ = {"color_trc": 16, "color_primaries": 9, "colorspace": 9}
HLG = {"color_trc": 18, "color_primaries": 9, "colorspace": 9}
# linear BT.709 to BT.2020, ITU-R BT.2087
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
# linear Display P3 to BT.709, from the literature
P3_TO_709 = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])


def linear(code):
    """Light of a BT.709 code."""
    return np.where(code < 0.081, code / 4.5, ((code + 0.099) / 1.099) ** (1 / 0.45))


def pq_code(nits):
    """SMPTE ST 2084."""
    y = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg_code(nits):
    """BT.2100, for a display of 1000 cd/m2: the inverse OOTF, and the OETF."""
    light = nits / 1000
    luminance = light @ [0.2627, 0.6780, 0.0593]
    scene = light * np.maximum(luminance, 1e-9)[..., None] ** (1 / 1.2 - 1)
    high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)


def stored(code: np.ndarray) -> av.VideoFrame:
    """Store R'G'B' of BT.2020 as 10 bits, 4:2:0, limited range."""
    red, green, blue = np.moveaxis(code, -1, 0)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    planes = [
        64 + 876 * luma,
        (512 + 896 * (blue - luma) / 1.8814)[::2, ::2],
        (512 + 896 * (red - luma) / 1.4746)[::2, ::2],
    ]
    frame = av.VideoFrame(code.shape[1], code.shape[0], "yuv420p10le")
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), "<u2")
        rows[:, : plane.width] = np.round(values)
        plane.update(rows.tobytes())
    return frame


def as_hdr(rgb: np.ndarray, encode, nits: float = 100) -> av.VideoFrame:
    """Code an SDR picture as HDR whose white is so bright."""
    return stored(encode(nits * linear(rgb / 255) @ TO_2020.T))


@pytest.mark.parametrize(("tags", "encode"), [(PQ, pq_code), (HLG, hlg_code)], ids=["pq", "hlg"])
def test_hdr_films(tmp_path, monkeypatch, tags, encode):
    """What is darker than 30 cd/m2 keeps its look, and flashes and beeps stay together."""
    sees(monkeypatch)
    times = (1, 2)

    def scene(t):
        return as_hdr(flash(times)(t), encode)

    film = write_film(
        tmp_path / "film.mp4", seconds=3, scene=scene, sound=beeps(times), pix_fmt="yuv420p10le",
        tags=tags,
    )  # fmt: skip
    folder = tmp_path / "avatar"
    assert main([str(film), "-o", str(folder)]) == 0
    assert np.abs(flashes_in(folder) - beeps_in(folder)).max() <= 0.022
    assert record_of(folder)["source"]["transfer"] == tags["color_trc"]
    shown, meant = frames_of(folder)[10], head(0.4)
    dark = (meant == meant[..., :1]).all(axis=2)  # the gray around the head
    assert dark.mean() > 0.2
    assert np.median(np.abs(shown[dark].astype(int) - meant[dark])) <= 2
    boxes = json.loads((folder / "boxes.json").read_text())
    assert len(boxes) == 75 and abs(boxes[10][2] - boxes[10][0] - 168) <= 2


def moebius(x):
    """FFmpeg's tonemap=mobius with its default of 0.3 and a peak of 10."""
    j, p = 0.3, 10.0
    a = -j * j * (p - 1) / (j * j - 2 * j + p)
    b = (j * j - 2 * j * p + p) / max(p - 1, 1e-6)
    return x if x <= j else (b * b + 2 * b * j + j * j) / (b - a) * (x + a) / (x + b)


@pytest.mark.parametrize("nits", [0, 1, 5, 20, 30, 50, 100, 203, 500, 1000])
@pytest.mark.parametrize(("transfer", "encode"), [(16, pq_code), (18, hlg_code)])
def test_gray_light(nits, transfer, encode):
    code = encode(np.full((1, 3), float(nits)))
    mapped = linear(to_sdr(code, transfer, 9)[0])
    assert np.abs(mapped - moebius(nits / 100)).max() < 0.004


def test_colors_keep_their_hue():
    """Light of 350 cd/m2 in the largest component: all are reduced by the same factor."""
    light = np.array([3.5, 3.0, 2.5])
    mapped = linear(to_sdr(pq_code(100 * TO_2020 @ light), 16, 9))
    largest = (TO_2020 @ light).max()
    assert np.abs(mapped - light * moebius(largest) / largest).max() < 0.01


def test_a_wide_gamut():
    """Display P3 in SDR: a color inside of BT.709."""
    code = np.array([0.6, 0.5, 0.4])
    expected = P3_TO_709 @ linear(code)
    assert np.abs(linear(to_sdr(code, 1, 12)) - expected).max() < 0.002
    assert to_sdr(np.array([0.0, 1.0, 0.0]), 1, 12).min() == 0  # outside: clipped


@pytest.mark.parametrize("transfer", [16, 18, 1])
def test_films_that_do_not_say_their_primaries(transfer):
    """HDR has those of BT.2020, whose colors would be pale otherwise; SDR those of BT.709."""
    code = np.random.default_rng(0).uniform(0.2, 0.6, (50, 3))
    said = to_sdr(code, transfer, 9 if transfer > 1 else 1)
    assert np.array_equal(to_sdr(code, transfer, 2), said)


def test_a_film_with_a_wide_gamut(tmp_path):
    """It is not copied: as BT.709, its colors would be pale."""
    code = np.array([0.7, 0.5, 0.3])
    film = write_film(
        tmp_path / "film.mp4", scene=lambda t: np.full((64, 64, 3), 255 * code).astype(np.uint8),
        seconds=0.2, sound=None, tags={"color_primaries": 12},
    )  # fmt: skip
    opened = Film(film, Fraction(25))
    assert opened.suffix_to_copy is None
    shown = next(opened.pictures()).rgb[32, 32] / 255
    assert np.abs(linear(shown) - P3_TO_709 @ linear(code)).max() < 0.015


@pytest.mark.parametrize(("tags", "encode"), [(PQ, pq_code), (HLG, hlg_code)], ids=["pq", "hlg"])
def test_the_table_is_fine_enough(tmp_path, tags, encode):
    """Pixels of colors such as skin equal the formula, within three levels."""
    rng = np.random.default_rng(3)
    brightness = 400 * rng.uniform(0.1, 1, (6, 8, 1)) ** 3
    light = brightness * rng.uniform(0.35, 1, (6, 8, 3))  # cd/m2 of BT.709
    blocks = np.kron(encode(light @ TO_2020.T), np.ones((32, 32, 1)))
    film = write_film(
        tmp_path / "film.mp4", scene=lambda t: stored(blocks), seconds=0.2, sound=None, tags=tags,
        pix_fmt="yuv420p10le", options={"crf": "1"},
    )  # fmt: skip
    picture = next(Film(film, Fraction(25)).pictures())
    centers = picture.rgb[16::32, 16::32].astype(int)
    expected = 255 * to_sdr(blocks[16::32, 16::32], tags["color_trc"], 9)
    assert np.abs(centers - expected).max() <= 3


def test_a_phone_film():
    """White was 159, and red (136, 53, 28), when its codes were taken for those of BT.709."""
    picture = next(Film(CASES / "hlg.mp4", Fraction(25)).pictures())
    assert picture.rgb.max() > 200
