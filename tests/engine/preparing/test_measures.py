"""What is measured in each frame: at the edges of a picture, and of frames that are not new."""

import numpy as np
import pytest

from engine.faces import Landmarks
from engine.preparing.measures import Measures

NOSE = 1


def face(x0: float, y0: float, size: float = 100) -> Landmarks:
    """Points that fill a square; the nose is in the middle."""
    points = np.zeros((468, 3), np.float32)
    spread = np.linspace(0, 1, 468)
    points[:, 0], points[:, 1] = x0 + spread * size, y0 + spread[::-1] * size
    points[[93, 234], 0], points[[323, 454], 0], points[195, 1] = x0, x0 + size, y0
    points[NOSE, :2] = x0 + size / 2, y0 + size / 2
    return Landmarks(points, 1.0)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (200, 240, 3), np.uint8)


@pytest.mark.parametrize("place", [(60, 50), (-60, 50), (60, -30), (190, 50), (60, 120)], ids=str)
def test_a_face_that_is_partly_out_of_the_picture(place):
    """What is seen of it counts: its light, and whether it changes."""
    measures, first, other = Measures(), noise(0), noise(1)
    for rgb in (first, other, other, first, other):
        measures.add(rgb, face(*place), others=0, cut=False)
    assert measures.repeated.tolist() == [False, False, True, False, False]
    x0, y0 = (max(value, 0) for value in place)
    seen = first[y0 : place[1] + 100 : 4, x0 : place[0] + 100 : 4].reshape(-1, 3).mean(axis=0)
    assert measures.luma[0] == pytest.approx(seen @ [0.2126, 0.7152, 0.0722])


def test_a_face_that_is_out_of_the_picture():
    measures = Measures()
    for rgb in (noise(0), noise(0)):
        measures.add(rgb, face(-300, -300), others=0, cut=False)
    assert np.isnan(measures.luma).all() and not measures.repeated.any()


def test_luma_is_that_of_bt_709():
    measures = Measures()
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        rgb = np.full((200, 240, 3), color, np.uint8)
        measures.add(rgb, face(60, 50), others=0, cut=False)
    np.testing.assert_allclose(measures.luma, 255 * np.array([0.2126, 0.7152, 0.0722]))


def test_frames_that_are_not_new():
    """One that is the last one again has its figures, and one without a picture has none."""
    measures = Measures()
    measures.add(noise(0), face(60, 50), others=2, cut=True)
    measures.repeat()
    measures.skip()
    measures.add(noise(0), face(60, 50), others=0, cut=False)  # not a repeat of what is not there
    measures.repeat()
    assert len(measures) == 5
    assert measures.repeated.tolist() == [False, True, False, False, True]
    assert measures.missing.tolist() == [False, False, True, False, False]
    assert measures.cuts.tolist() == [True, False, False, False, False]
    assert measures.others.tolist() == [2, 2, 0, 0, 0]
    assert np.isnan(measures.boxes[2]).all()
    assert measures.boxes[[0, 1, 3, 4]].tolist() == [[60, 50, 160, 150]] * 4


def test_a_crowd():
    measures = Measures()
    measures.add(noise(0), None, others=1000, cut=False)
    assert measures.others.tolist() == [100]
