"""Faces are found where they are: of any size, in any shape of picture, one or several, or none."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.faces.detector import _merged, _overlap, _windows
from engine.faces.mesh import region_of_face
from tests.engine.faces.scenes import BOXES, scene, shrunk

# corners of the eyes, the nose's tip and the middle of the lips, in the mesh
MARKS = [(33, 133), (362, 263), (1,), (13, 14)]


def test_it_is_what_litert_s_outputs_say(detector):
    """A picture of the network's own size, and outputs of Google's interpreter for it, see
    test_tflite.py. Two anchors have seen the face."""
    with np.load(Path(__file__).with_name("litert.npz")) as file:
        litert = dict(file)
    (face,) = detector.detect(litert["whole"])
    assert (litert["logits"] > 0).sum() == 2
    scores = 1 / (1 + np.exp(-litert["logits"][:2]))
    places = []
    for anchor, raw in zip(litert["best"][:2], litert["raw"][:2], strict=True):
        x, y = (anchor % 48 + 0.5) * 4, (anchor // 48 + 0.5) * 4
        u, v, width, height = raw[:4]
        box = [x + u - width / 2, y + v - height / 2, x + u + width / 2, y + v + height / 2]
        places.append([*box, *np.add(raw[4:].reshape(6, 2), [x, y]).ravel()])
    expected = (np.array(places) * scores[:, None]).sum(axis=0) / scores.sum()
    np.testing.assert_allclose(face.box, expected[:4], atol=0.01)
    np.testing.assert_allclose(face.key_points.ravel(), expected[4:], atol=0.01)
    assert face.score == pytest.approx(scores[0], abs=1e-4)


def test_a_photograph(detector, mesh):
    """Eileen Collins, by NASA. The places were read off the picture by eye."""
    picture = pytest.importorskip("skimage.data").astronaut()
    (face,) = detector.detect(picture)
    eyes_and_mouth = [(201, 100), (247, 103), (224, 147)]
    points = mesh.fit(picture, region_of_face(face)).points[:, :2]
    of_mesh = [points[[33, 133]].mean(0), points[[362, 263]].mean(0), points[[13, 14]].mean(0)]
    assert np.abs(face.key_points[[0, 1, 3]] - eyes_and_mouth).max() < 6
    assert np.abs(np.array(of_mesh) - eyes_and_mouth).max() < 4
    assert [detector.quarter_turns(np.rot90(picture, turned)) for turned in range(4)] == [
        0,
        3,
        2,
        1,
    ]


@pytest.mark.parametrize("turn", [0, -0.4])
@pytest.mark.parametrize("shape", ["portrait", "landscape", "square", "odd"])
def test_its_marks_are_those_of_the_mesh(detector, mesh, person, shape, turn):
    """The eyes, the nose and the mouth that the other network finds."""
    frame = person[3].numpy()
    if turn:
        frame = np.asarray(Image.fromarray(frame).rotate(np.degrees(-turn), center=(365, 560)))
    picture = {
        "portrait": frame,
        "landscape": scene((frame, (300, -200))),
        "square": frame[200:920],
        "odd": frame[201:1000:2, 51:700:2],
    }[shape]
    (face,) = detector.detect(picture)
    points = mesh.fit(picture, region_of_face(face)).points[:, :2]
    expected = np.stack([points[list(marks)].mean(0) for marks in MARKS])
    distances = np.hypot(*(face.key_points[:4] - expected).T) / face.size
    assert distances.max() < 0.1
    assert abs(face.angle - turn) < 0.1
    assert face.score > 0.6 and type(face.score) is float
    assert 0.85 < face.size / np.ptp(points, axis=0).max() < 1.2


@pytest.mark.parametrize("width", [20, 30, 60, 120, 242, 480])
def test_faces_of_all_sizes(detector, person, width):
    """480: the face fills a third of the picture; 30: 2.3% of its longer side."""
    left, top = (500, 20) if width < 400 else (-50, -700)
    picture = scene((shrunk(person[0].numpy(), width), (left, top)))
    (face,) = detector.detect(picture)
    x0, y0, x1, _ = BOXES[0] * width / 242
    middle = left + (x0 + x1) / 2, top + y0 + 0.1 * width
    assert face.center == pytest.approx(middle, abs=(0.2 if width > 40 else 0.5) * width)
    assert 0.8 < face.size / width < (1.4 if width > 40 else 3)


def test_small_faces_are_looked_for_only_if_wanted(detector, person):
    picture = scene((shrunk(person[0].numpy(), 25), (900, 500)))
    assert detector.detect(picture, small=False) == []
    assert len(detector.detect(picture)) == 1


def test_several_faces_the_largest_first(detector, person):
    people = [(shrunk(person[n].numpy(), 60 + 20 * n), (10 + 420 * n, 100)) for n in range(3)]
    faces = detector.detect(scene(*people))
    assert len(faces) == 3
    assert [face.center[0] // 420 for face in faces] == [2, 1, 0]
    assert faces[0].size > faces[1].size > faces[2].size


def test_no_face(detector, person):
    noise = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), np.uint8)
    body = person[0].numpy()[760:]
    thin = np.full((1, 1, 3), 9, np.uint8), noise[:1], noise[:, :1]
    for picture in (noise, body, np.zeros_like(noise), *thin):
        assert detector.detect(picture) == []
    assert detector.quarter_turns(body) is None


@pytest.mark.parametrize("turned", [1, 2, 3])
def test_only_upright_faces_are_found(detector, person, turned):
    """The network sees others too: the mesh would be fitted where it is not."""
    assert detector.detect(np.rot90(person[5].numpy(), turned), small=False) == []


@pytest.mark.parametrize("turned", range(4))
def test_films_on_their_side(detector, person, turned):
    frame = np.rot90(person[5].numpy(), turned)
    assert detector.quarter_turns(frame) == (4 - turned) % 4
    for width, place in ((25, (900, 500)), (30, (300, 300)), (40, (300, 300))):
        small = scene((shrunk(person[5].numpy(), width), place))
        assert detector.quarter_turns(np.rot90(small, turned)) == (4 - turned) % 4


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture(detector, picture):
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\)"):
        detector.detect(picture)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_windows_overlap(height, width):
    """Every square of a quarter of the longer side lies in one of them, and they are few."""
    windows = _windows(height, width)
    side = max(height, width)
    assert len(windows) <= 9
    for length, axis in ((width, 0), (height, 1)):
        spans = sorted({(window[axis], window[axis + 2]) for window in windows})
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert all(stop - start <= (side + 1) // 2 for start, stop in spans)
        for (_, stop), (start, _) in pairwise(spans):
            assert stop - start >= side // 4 - 1
    assert len(windows) == len({w[0] for w in windows}) * len({w[1] for w in windows})


def corners(x, y, side):
    return np.array([[x, y], [x + side, y + side]], np.float64)


def test_boxes_of_one_face_are_merged():
    found = [(0.6, corners(10, 0, 100)), (0.9, corners(0, 0, 100)), (0.8, corners(300, 0, 50))]
    (first, box), (second, other) = _merged(found)
    assert (first, second) == (0.9, 0.8)
    np.testing.assert_allclose(box, corners(4, 0, 100))
    np.testing.assert_allclose(other, corners(300, 0, 50))
    assert _merged([(0.9, corners(5, 5, 0))])[0][0] == 0.9  # an empty box
    assert _merged([]) == []


@given(*[st.integers(0, 20)] * 4, *[st.integers(1, 20)] * 2)
def test_overlap_counts_pixels(x, y, u, v, a, b):
    first, second = (np.zeros((60, 60), bool) for _ in range(2))
    first[y : y + a, x : x + a] = True
    second[v : v + b, u : u + b] = True
    expected = (first & second).sum() / (first | second).sum()
    assert _overlap(corners(x, y, a), corners(u, v, b)) == pytest.approx(expected)
