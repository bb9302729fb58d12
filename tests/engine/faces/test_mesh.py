"""The mesh is fitted where the face is, to a fraction of a pixel, at any place, size and angle."""

import math

import cv2
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.faces.mesh import Region, region_of_face, region_of_points, warp


@settings(max_examples=50)
@given(
    x=st.floats(20, 80),
    y=st.floats(20, 60),
    size=st.floats(3, 300),
    angle=st.floats(-3.2, 3.2),
    side=st.sampled_from([16, 33, 192]),
    axis=st.sampled_from([0, 1]),
)
def test_warp_on_a_slope(x, y, size, angle, side, axis):
    """Any mean of pixels around a place is the slope's value there: it shows a shift of any part
    of a pixel, in the reduction too."""
    places = np.meshgrid(np.arange(100) + 0.5, np.arange(80) + 0.5)[axis] * 2.5
    slopes = np.stack([places, 255 - places, places], axis=-1)
    made = warp(slopes.round().astype(np.uint8), Region(x, y, size, angle), side).astype(float)
    offsets = ((np.arange(side) + 0.5) / side - 0.5) * size
    right, down = np.meshgrid(offsets, offsets)
    source_x = x + math.cos(angle) * right - math.sin(angle) * down
    source_y = y + math.sin(angle) * right + math.cos(angle) * down
    edge = 1 + 2 * max(size / side, 1)
    distance = np.minimum(np.minimum(source_x, 100 - source_x), np.minimum(source_y, 80 - source_y))
    assert made[distance < -edge].max(initial=0) == 0
    expected = (source_x, source_y)[axis] * 2.5
    up, down, _ = np.moveaxis(made, -1, 0) - np.stack([expected, 255 - expected, expected])
    inside = distance > edge
    assert max(np.abs(up)[inside].max(initial=0), np.abs(down)[inside].max(initial=0)) <= 2.5
    # What it rounds down is the same in both, and what it shifts is opposite: a fifth of a pixel.
    if inside.sum() > 100:
        assert abs((up - down)[inside].mean()) < 1


def test_warp_of_a_picture(person):
    """As OpenCV does it, whose centers of pixels are whole numbers."""
    frame = person[0].numpy()
    region = Region(371.3, 560.8, 300, 0.3)
    turn = np.array([[math.cos(0.3), -math.sin(0.3)], [math.sin(0.3), math.cos(0.3)]]) * 300 / 192
    offset = np.array([371.3, 560.8]) - turn @ [96, 96]
    matrix = np.c_[turn, offset + turn @ [0.5, 0.5] - 0.5]
    expected = cv2.warpAffine(
        frame, matrix, (192, 192), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    made = warp(frame, region, 192).astype(int)
    difference = np.abs(made - expected)  # OpenCV's weights have 5 bits
    assert difference.mean() < 0.5 and difference.max() <= 8


@pytest.mark.parametrize("factor", [2, 4, 7.5])
def test_a_large_face_is_reduced_by_means(factor):
    """Of noise, almost nothing is left; single pixels of it would make the points tremble."""
    noise = np.random.default_rng(0).integers(0, 256, (1700, 1700, 3), np.uint8)
    made = warp(noise, Region(850.3, 849.8, 192 * factor, 0.1), 192)
    assert made.std() < 1.05 * 74 / int(factor)  # of n x n pixels, a n-th of theirs


def test_a_region_outside_the_picture(mesh, person):
    frame = person[0].numpy()
    assert not warp(frame, Region(-500, 50, 100, 0), 192).any()
    assert mesh.fit(frame, Region(-500, 50, 100, 0)).presence < 0.5


def test_points_are_mapped_back(face_nets, mesh, person):
    """Against the network's own output on an upright part of the picture, cut out by hand."""
    frame = person[0].numpy()
    session = onnxruntime.InferenceSession(face_nets.mesh, providers=["CPUExecutionProvider"])
    part = np.ascontiguousarray(frame[400:784, 160:544])
    small = part.reshape(192, 2, 192, 2, 3).mean(axis=(1, 3))
    raw, logit = session.run(None, {"input_1": (small[None] / 255).astype(np.float32)})
    found = mesh.fit(frame, Region(352, 592, 384, 0), passes=1)
    expected = raw.reshape(468, 3) * 2 + [160, 400, 0]
    np.testing.assert_allclose(found.points, expected, atol=0.1)  # the mean is rounded here
    assert found.presence == pytest.approx(1 / (1 + math.exp(-logit.item())), abs=1e-6)
    assert found.points.dtype == np.float32 and found.points.shape == (468, 3)


@pytest.fixture(scope="module")
def first(detector, mesh, person):
    frame = person[0].numpy()
    return mesh.fit(frame, region_of_face(detector.detect(frame)[0]), passes=4)


@pytest.mark.parametrize("angle", [-70, -25, 25, 70])
def test_a_turned_head(mesh, person, first, angle):
    frame = Image.fromarray(person[0].numpy())
    turned = np.asarray(frame.rotate(-angle, Image.Resampling.BICUBIC, center=(360, 560)))
    region = region_of_points(first.points)
    a = math.radians(angle)
    turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    x, y = turn @ (np.array(region[:2]) - [360, 560]) + [360, 560]
    found = mesh.fit(turned, Region(x, y, region.size, region.angle + a))
    expected = (first.points[:, :2] - [360, 560]) @ turn.T + [360, 560]
    assert np.abs(found.points[:, :2] - expected).max() < 4
    assert np.abs(found.points[:, :2] - expected).mean() < 1
    assert region_of_points(found.points).angle == pytest.approx(region.angle + a, abs=0.03)


def test_a_larger_picture(mesh, person, first):
    frame = person[0].numpy().repeat(2, axis=0).repeat(2, axis=1)
    region = region_of_points(first.points)
    found = mesh.fit(frame, Region(2 * region.x, 2 * region.y, 2 * region.size, region.angle))
    difference = found.points / 2 - first.points
    assert np.abs(difference.mean(axis=0)).max() < 0.3  # half a pixel would be a wrong center
    assert np.abs(difference[:, :2]).mean() < 0.6


def test_a_second_pass_comes_closer(detector, mesh, person):
    """From regions that are shifted and too large, it ends near where many passes end."""
    errors = {1: [], 2: []}
    for frame in person[::6].numpy():
        region = region_of_face(detector.detect(frame)[0])
        best = mesh.fit(frame, region, passes=5).points[:, :2]
        for x, y, size in ((0.1, 0, 1), (-0.1, 0.05, 1), (0, -0.1, 1), (0, 0, 1.25)):
            moved = Region(
                region.x + x * region.size, region.y + y * region.size, region.size * size, 0.1
            )
            for passes, found in errors.items():
                points = mesh.fit(frame, moved, passes).points[:, :2]
                found.append(np.abs(points - best).mean())
    assert np.mean(errors[2]) < 0.6 * np.mean(errors[1])
    assert np.array_equal(mesh.fit(frame, moved).points, mesh.fit(frame, moved, 2).points)


def test_regions(first):
    points = np.zeros((468, 3))
    points[:, :2] = [[100, 50]]
    points[33, :2], points[263, :2], points[0, :2] = (0, 0), (60, 80), (30, 40)
    region = region_of_points(points)
    assert region.angle == pytest.approx(math.atan2(80, 60))
    # in the direction of the eyes from 0 to 100, across from 0 to -50: (100, 50) is at 100, -50
    assert region.size == pytest.approx(150)
    center = np.array([0.6, 0.8]) * 50 + np.array([-0.8, 0.6]) * -25
    assert (region.x, region.y) == pytest.approx(tuple(center))
    assert region_of_points(first.points).angle == pytest.approx(0, abs=0.1)
