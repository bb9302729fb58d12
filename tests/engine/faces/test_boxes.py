"""Boxes from points, steady within a shot, and never across a cut or a long gap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d

from engine.faces import Gap, box_of, smooth

NONE = np.full(4, np.nan)


def film(count: int, seed: int = 0, noise: float = 0.6) -> np.ndarray:
    """(N, 4) boxes of a face that moves slowly, with the noise of a mesh."""
    random = np.random.default_rng(seed)
    time = np.arange(count)
    x = 300 + 8 * np.sin(time / 15) + random.normal(0, noise, count)
    y = 400 + 5 * np.cos(time / 21) + random.normal(0, noise, count)
    size = 200 + 4 * np.sin(time / 90) + random.normal(0, noise, count)
    return np.stack([x, y, x + size, y + size], axis=1)


def test_the_box_of_a_mesh():
    points = np.random.default_rng(0).random((2, 3, 468, 3)).astype(np.float32)
    points[..., 93, 0], points[..., 323, 0], points[..., 195, 1] = 244.25, 486.5, 474.75
    assert box_of(points).shape == (2, 3, 4)
    assert box_of(points)[1, 2].tolist() == [244.25, 474.75, 486.5, 717.0]
    assert box_of(points[0, 0, :, :2]).tolist() == [244.25, 474.75, 486.5, 717.0]


@settings(max_examples=50)
@given(st.integers(1, 200), st.integers(0, 1000))
def test_they_stay_near_a_gaussian_of_scipy(count, seed):
    boxes = film(count, seed)
    made = smooth(boxes, longest_gap=0)
    assert made.valid.all() and made.gaps == [] and made.cuts == []
    x0, y0, x1, y1 = made.boxes.T
    assert made.boxes.dtype == np.int32 and ((x1 - x0) == (y1 - y0)).all()
    size = gaussian_filter1d(boxes[:, 2] - boxes[:, 0], 12, mode="nearest")
    middle = gaussian_filter1d((boxes[:, 0] + boxes[:, 2]) / 2, 2, mode="nearest")
    top = gaussian_filter1d(boxes[:, 1], 2, mode="nearest")
    for whole, value in ((x1 - x0, size), ((x0 + x1) / 2, middle), (y0, top)):
        assert np.abs(whole - value).max() <= 0.75 + 1e-6
        assert abs(whole[0] - value[0]) <= 0.5 + 1e-6
    # and change only when they must
    for whole, value in ((x1 - x0, size), (y0, top)):
        changes = np.flatnonzero(np.diff(whole)) + 1
        assert (np.abs(whole[changes - 1] - value[changes]) > 0.75 - 1e-6).all()
        assert (np.abs(whole[changes] - value[changes]) <= 0.5 + 1e-6).all()


def test_they_are_steadier_than_truncated_ones():
    boxes = film(500, noise=0.7)
    sizes = [np.diff(one[:, 2] - one[:, 0]) for one in (boxes.astype(int), smooth(boxes).boxes)]
    assert np.count_nonzero(sizes[0]) > 200 and np.count_nonzero(sizes[1]) < 20


@settings(max_examples=30)
@given(st.integers(-500, 500), st.integers(-500, 500), st.integers(2, 80))
def test_a_film_moved_by_whole_pixels(x, y, count):
    boxes = np.round(film(count) * 64) / 64  # so that the sums are exact
    boxes[count // 2] = np.nan
    moved = smooth(boxes + np.array([x, y, x, y]))
    fixed = smooth(boxes)
    differences = (moved.boxes - fixed.boxes)[fixed.valid]
    assert (np.abs(differences - [x, y, x, y]) <= 1).all()  # a rounding error at 0.75 may decide
    assert (differences == [x, y, x, y]).mean() > 0.9
    assert moved.gaps == fixed.gaps and moved.cuts == fixed.cuts


@pytest.mark.parametrize("length", [1, 5, 6, 50])
def test_gaps(length):
    boxes = film(200)
    with_gap = boxes.copy()
    with_gap[60 : 60 + length] = np.nan
    made = smooth(with_gap)
    filled = length <= 5
    assert made.gaps == [Gap(60, 60 + length, filled)]
    assert made.valid.sum() == (200 if filled else 200 - length) and made.cuts == []
    if filled:
        assert np.abs(made.boxes - smooth(boxes).boxes).max() <= 2
    else:
        assert not made.boxes[60 : 60 + length].any()
        # each part by itself
        assert (made.boxes[:60] == smooth(boxes[:60]).boxes).all()
        assert (made.boxes[60 + length :] == smooth(boxes[60 + length :]).boxes).all()


def test_a_filled_gap_is_a_straight_way():
    """The face moves by 12 pixels a frame; between 3 and 7 it is not seen."""
    x = 12.0 * np.arange(40)
    boxes = np.stack([x, x / 2, x + 300, x / 2 + 300], axis=1)
    expected = smooth(boxes).boxes
    boxes[20:24] = np.nan
    assert (smooth(boxes).boxes == expected).all()


@pytest.mark.parametrize("start, stop", [(0, 2), (48, 50), (0, 50)])
def test_gaps_at_the_ends_are_not_filled(start, stop):
    boxes = film(50)
    boxes[start:stop] = np.nan
    made = smooth(boxes)
    assert made.gaps == [Gap(start, stop, False)] and made.cuts == []
    assert made.valid.sum() == 50 - (stop - start)


@pytest.mark.parametrize("known", [True, False])
def test_shots_are_smoothed_by_themselves(known):
    """A cut is found by the jump of the box; one that moves it little must be told."""
    shots = [film(40, 1), film(30, 2) + ([9, 3, 9, 3] if known else [60, 0, 60, 0]), film(50, 3)]
    flags = np.zeros(120, bool)
    flags[[40, 70]] = known
    made = smooth(np.concatenate(shots), flags)
    assert made.cuts == [40, 70]
    assert (made.boxes == np.concatenate([smooth(shot).boxes for shot in shots])).all()
    without = smooth(np.concatenate(shots)).cuts
    assert without == ([] if known else [40, 70])


@pytest.mark.parametrize(
    "change, cut",
    [
        ((19, 0, 0), False),
        ((21, 0, 0), True),
        ((0, -21, 0), True),
        ((0, 0, 21), True),
        ((0, 0, 19), False),
    ],
)
def test_a_jump_of_more_than_a_tenth_is_a_cut(change, cut):
    x, y, size = change
    boxes = np.tile([100.0, 100, 300, 300], (20, 1))
    boxes[10:] += [x - size / 2, y, x + size / 2, y + size]
    assert smooth(boxes).cuts == ([10] if cut else [])


@pytest.mark.parametrize(("x", "filled"), [(59, True), (61, False)])
def test_a_face_that_is_elsewhere_after_a_gap(x, filled):
    """A jump by more than 30% of its size is a cut, however many frames there are for it."""
    boxes = np.tile([100.0, 100, 300, 300], (20, 1))
    boxes[15:] += [x, 0, x, 0]
    boxes[10:15] = np.nan
    made = smooth(boxes)
    assert made.gaps == [Gap(10, 15, filled)] and made.cuts == ([] if filled else [15])


def test_a_face_that_is_inside_out():
    """Seen from behind, its right edge may be left of the left one. A box has a pixel at least."""
    made = smooth(np.tile([100.0, 100, 60, 60], (5, 1)))
    assert (made.boxes == [80, 100, 81, 101]).all()


@pytest.mark.parametrize("flag", [None, 10, 11, 12])
def test_a_cut_in_a_gap(flag):
    """No boxes are made up between two shots."""
    boxes = np.tile([100.0, 100, 300, 300], (20, 1))
    if flag is None:
        boxes[12:] += 70
    boxes[10:12] = np.nan
    flags = np.arange(20) == flag
    made = smooth(boxes, flags)
    assert made.gaps == [Gap(10, 12, False)] and made.cuts == [flag or 12]


@settings(max_examples=60)
@given(st.lists(st.booleans(), max_size=60), st.lists(st.integers(0, 59)), st.integers(0, 7))
def test_any_frames_without_a_face(found, cuts, longest):
    count = len(found)
    boxes = np.where(np.array(found, bool)[:, None], film(count, 5), np.nan)
    flags = np.isin(np.arange(count), cuts)
    before = boxes.copy(), flags.copy()
    made = smooth(boxes, flags, longest)
    np.testing.assert_array_equal(boxes, before[0])  # nothing is changed
    np.testing.assert_array_equal(flags, before[1])
    assert made.boxes.shape == (count, 4)
    inside = [number for gap in made.gaps for number in range(gap.start, gap.stop)]
    assert inside == [number for number in range(count) if not found[number]]
    left = {n for gap in made.gaps if not gap.filled for n in range(gap.start, gap.stop)}
    assert np.flatnonzero(~made.valid).tolist() == sorted(left)
    assert all(gap.stop - gap.start <= longest for gap in made.gaps if gap.filled)
    sizes = (made.boxes[:, 2:] - made.boxes[:, :2])[made.valid]
    assert (sizes[:, 0] == sizes[:, 1]).all() and (sizes > 0).all()
    assert not made.boxes[~made.valid].any()
    assert 0 not in made.cuts and made.cuts == sorted(set(made.cuts))
