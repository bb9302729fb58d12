"""One person is followed through a film, whoever else is in it, and lost ones are not made up."""

from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from engine.faces import Face, Landmarks, Tracker, smooth
from engine.faces.mesh import region_of_points
from engine.media.video import Video
from examples import DEMO
from tests.engine.faces.scenes import BOXES, OFFSET, boxes_of, scene, shrunk

LEFT, TOP, SIDE = 200, 440, 340  # of the part of the demo's frames around its boxes


@pytest.fixture(scope="module")
def film(detector, mesh):
    """The demo's film: what was found in each frame, and the part around the face."""
    video, tracker = Video(DEMO / "frames.mp4"), Tracker(detector, mesh)
    found, parts = [], []
    for _, frame in video.frames():
        rgb = video.pixels(frame)
        found.append(tracker.follow(rgb))
        parts.append(rgb[TOP : TOP + SIDE, LEFT : LEFT + SIDE].copy())
    return SimpleNamespace(found=found, raw=boxes_of(found), parts=parts)


def test_the_demo_s_boxes(film):
    """The true ones are known. The drawn jaw is not that of the mesh, so there is an offset."""
    assert len(film.found) == len(BOXES)
    for one in film.found:
        assert one.landmarks.presence > 0.99 and not (one.others or one.cut or one.turns)
    made = smooth(film.raw, np.array([one.cut for one in film.found]))
    assert made.gaps == [] and made.cuts == [] and made.valid.all()
    for boxes, spread in ((film.raw, 2.2), (made.boxes, 2.0)):
        errors = (boxes - BOXES)[:, :3]
        assert np.abs(errors.mean(axis=0) - OFFSET).max() <= 2
        assert errors.std(axis=0).max() <= spread


def steadiness(parts, boxes) -> float:
    """The mean difference between successive crops, above the mouth."""
    crops = [
        cv2.resize(
            part[y0 - TOP : y1 - TOP, x0 - LEFT : x1 - LEFT],
            (328, 328),
            interpolation=cv2.INTER_CUBIC,
        )
        for part, (x0, y0, x1, y1) in zip(parts, boxes.tolist(), strict=True)
    ]
    upper = np.stack(crops)[:, :130].astype(np.int16)
    return float(np.mean([np.abs(after - before).mean() for before, after in pairwise(upper)]))


def test_crops_are_steadier_than_those_of_truncated_boxes(film):
    """By at least 20%. The family truncates each frame's box by itself."""
    truncated = film.raw.astype(int)
    truncated[:, 3] = truncated[:, 1] + truncated[:, 2] - truncated[:, 0]
    ours = steadiness(film.parts, smooth(film.raw).boxes)
    assert ours < 0.8 * steadiness(film.parts, truncated)
    assert ours < 1.15 * steadiness(film.parts, BOXES.astype(int))  # the true ones


def follow(pictures, detector, mesh, person="largest"):
    tracker = Tracker(detector, mesh, person)
    return [tracker.follow(picture) for picture in pictures]


@pytest.mark.parametrize("width, tolerance", [(30, 4), (60, 2), (120, 2)])
def test_small_people(detector, mesh, person, width, tolerance):
    """Where the person is, within pixels of the mesh's accuracy at that size."""
    pictures = [scene((shrunk(frame.numpy(), width), (500, 100))) for frame in person[:10]]
    found = follow(pictures, detector, mesh)
    boxes = boxes_of(found)[:, :3]
    assert np.isfinite(boxes).all()
    expected = BOXES[:100:10, :3] * width / 242 + [500, 100, 500]
    errors = boxes - expected - OFFSET * width / 242
    assert np.abs(np.median(errors, axis=0)).max() < tolerance
    assert {one.others for one in found} == {0}


@pytest.fixture(scope="module")
def two(person):
    """A person on the left, and a larger one on the right."""
    return [
        scene((shrunk(a.numpy(), 95), (150, 60)), (shrunk(b.numpy(), 120), (800, 20)))
        for a, b in zip(person[:7], person[8:15], strict=True)
    ]


@pytest.mark.parametrize(
    "who, x, others", [("largest", 919, 1), (1, 247, 1), (2, 919, 1), (3, None, 2)]
)
def test_one_of_two_people(detector, mesh, two, who, x, others):
    found = follow(two, detector, mesh, who)
    assert {one.others for one in found} == {others}
    if x is None:
        assert all(one.landmarks is None for one in found)
    else:
        assert np.abs(boxes_of(found)[:, 0] - x).max() < 20


def test_the_person_who_leaves_is_not_replaced(detector, mesh, two, person):
    """For a second; after it, whoever is there is followed."""
    alone = scene((shrunk(person[0].numpy(), 95), (150, 60)))
    tracker = Tracker(detector, mesh)
    seen = [tracker.follow(picture).landmarks is not None for picture in [*two, *[alone] * 28]]
    assert seen == [True] * 7 + [False] * 25 + [True] * 3


@pytest.mark.parametrize("turned", [1, 2, 3])
def test_a_film_on_its_side(detector, mesh, person, turned):
    found = follow([np.rot90(frame, turned) for frame in person[:3].numpy()], detector, mesh)
    assert {one.turns for one in found} == {4 - turned}
    assert all(one.landmarks is None for one in found)


def test_no_face(detector, mesh, person):
    for one in follow(list(person[:6, 760:].numpy()), detector, mesh):
        assert one == (None, 0, False, 0)


def test_a_gap_and_a_cut(detector, mesh, person):
    """Frames without the person, the same scene again, and then another one."""
    here = [scene((shrunk(frame.numpy(), 120), (100, 50))) for frame in person[:3]]
    wall = np.full((720, 1280, 3), 235, np.uint8)
    there = np.full_like(wall, 235)
    picture = shrunk(person[4].numpy(), 140)[:700]
    there[10:710, 800 : 800 + picture.shape[1]] = picture
    found = follow([*here, wall, wall, *here, there, there], detector, mesh)
    assert [one.landmarks is None for one in found] == [False] * 3 + [True] * 2 + [False] * 5
    assert [one.cut for one in found] == [False] * 8 + [True, False]
    assert boxes_of(found)[8, 0] > 850  # in the first frame of the new shot already


class Scene:
    """A detector and a mesh whose answers are set for each frame."""

    def __init__(self):
        self.faces: list[tuple[float, float]] = []  # x, size
        self.presence = 1.0
        self.looks = self.fits = 0
        self.small: list[bool] = []
        self.turns: int | None = None

    def detect(self, rgb, small=True):
        self.looks += 1
        self.small.append(small)
        faces = []
        for x, size in self.faces:
            box = np.array([x - size / 2, 200 - size / 2, x + size / 2, 200 + size / 2], np.float32)
            faces.append(Face(box, 0.9, np.float32([[x - 9, 200], [x + 9, 200]] + [[x, 200]] * 4)))
        return sorted(faces, key=lambda face: -face.size)

    def quarter_turns(self, rgb):
        return 0 if self.faces else self.turns

    def fit(self, rgb, region, passes=2):
        self.fits += 1
        points = np.zeros((468, 3), np.float32)
        reach = region.size / 3
        points[:, :2] = region.x, region.y
        points[0, :2] -= reach
        points[1, :2] += reach
        points[33, :2], points[263, :2] = (region.x - 9, region.y), (region.x + 9, region.y)
        return Landmarks(points, self.presence)


def scripted(frames, person="largest"):
    """Follow through frames of (faces, presence); return x of the person and the others."""
    stage = Scene()
    tracker = Tracker(stage, stage, person)
    seen = []
    for stage.faces, stage.presence in frames:
        one = tracker.follow(np.zeros((400, 900, 3), np.uint8))
        place = region_of_points(one.landmarks.points).x if one.landmarks else None
        seen.append((None if place is None else round(place), one.others))
    return seen, stage


def test_the_detector_is_asked_for_every_fifth_frame():
    seen, stage = scripted([([(300, 100), (600, 50)], 1.0)] * 20)
    assert seen == [(300, 1)] * 20 and stage.looks == 4 and stage.fits == 20


def test_at_a_cut_the_detector_is_asked_at_once():
    """The mesh may find something in the old place, which is not the person."""
    stage = Scene()
    tracker = Tracker(stage, stage)
    found = []
    for x, level in [(300, 0)] * 2 + [(600, 90)] * 2:
        stage.faces = [(x, 100)]
        found.append(tracker.follow(np.full((400, 900, 3), level, np.uint8)))
    assert [round(float(one.landmarks.points[:, 0].mean())) for one in found] == [300] * 2 + [
        600
    ] * 2
    assert [one.cut for one in found] == [False, False, True, False]


def test_a_mesh_beside_the_face_is_moved():
    """It may be sure beside a face too; every fifth frame the detector's place counts."""
    seen, _ = scripted([([(300, 100)], 1.0)] * 3 + [([(360, 100)], 1.0)] * 4)
    assert [x for x, _ in seen] == [300] * 5 + [360] * 2


def test_a_mesh_of_another_size_than_the_face_is_fitted_again():
    stage = Scene()
    tracker = Tracker(stage, stage)
    sizes = []
    for size in [100] * 3 + [55] * 4:
        stage.faces = [(300, size)]
        points = tracker.follow(np.zeros((400, 900, 3), np.uint8)).landmarks.points
        sizes.append(round(float(np.ptp(points[:, 0]))))
    assert sizes == [100] * 5 + [55] * 2


def test_a_mesh_without_the_detector_s_word_is_not_trusted_for_long():
    """It may have drifted to a wall. A face that is covered for a moment is kept."""
    seen, _ = scripted([([(300, 100)], 1.0)] * 5 + [([], 1.0)] * 14 + [([(310, 100)], 1.0)] * 2)
    assert [x for x, _ in seen] == [300] * 15 + [None] * 4 + [310] * 2
    seen, _ = scripted([([(300, 100)], 1.0)] * 5 + [([], 1.0)] * 10 + [([(300, 100)], 1.0)] * 9)
    assert [x for x, _ in seen] == [300] * 24
    looks = [[(300, 100)], [], []] * 3  # twice, again and again
    seen, _ = scripted([(faces, 1.0) for faces in looks for _ in range(5)])
    assert [x for x, _ in seen] == [300] * 45


def test_a_detector_s_face_without_a_mesh_is_none():
    assert scripted([([(300, 100)], 0.1)] * 3)[0] == [(None, 0)] * 3


def test_when_small_faces_are_looked_for():
    """It takes long: not if the person was large a moment ago, but where the others are counted."""
    for size, small in ((100, [True, False, False, True]), (80, [True] * 4)):
        face = [(300, size)]
        _, stage = scripted([(face, 1.0)] * 3 + [(face, 0.1)] + [(face, 1.0)] * 2)
        assert stage.small == small


@pytest.mark.parametrize("turns", [1, None])
def test_a_person_on_the_side_after_a_title(turns):
    """Without a person, it is looked at once a second."""
    stage = Scene()
    tracker = Tracker(stage, stage)
    found = []
    for number in range(52):
        stage.turns = turns if 25 <= number < 50 else None
        found.append(tracker.follow(np.zeros((400, 900, 3), np.uint8)).turns)
    assert found == [0] * 25 + [turns or 0] * 25 + [0] * 2


@pytest.mark.parametrize(("change", "cut"), [(19, False), (21, True)])
def test_a_cut_is_a_change_of_20_levels(change, cut):
    stage = Scene()
    stage.faces, tracker = [(300, 100)], Tracker(stage, stage)
    for level in (50, 50 + change):
        one = tracker.follow(np.full((400, 900, 3), level, np.uint8))
    assert one.cut is cut


def test_a_lost_person_comes_back():
    seen, _ = scripted(
        [([(300, 100), (700, 90)], 1.0)] * 2
        + [([(700, 90)], 0.1)] * 2
        + [([(330, 100), (700, 90)], 1.0)]
    )
    assert seen == [(300, 1)] * 2 + [(None, 1)] * 2 + [(330, 1)]


def test_the_nth_person_is_waited_for():
    faces = [(600, 150), (100, 80)]
    seen, _ = scripted([([(600, 150)], 1.0), (faces, 1.0), ([*faces, (350, 60)], 1.0)], person=3)
    assert seen == [(None, 1), (None, 2), (600, 2)]
    seen, _ = scripted([(faces, 1.0)], person=1)
    assert seen == [(100, 1)]
    with pytest.raises(ValueError, match="person is 0; expected at least 1"):
        Tracker(Scene(), Scene(), 0)
