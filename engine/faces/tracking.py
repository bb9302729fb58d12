"""Follow one person through the frames of a film."""

import math
from typing import Literal, NamedTuple

import numpy as np

from .detector import Detector, Face, check_picture
from .mesh import PRESENT, Landmarks, Mesh, region_of_face, region_of_points

CHECKED = 5  # frames between two looks at the whole picture
UNCONFIRMED = 3  # looks without the person, after which the mesh is not trusted
PATIENCE = 25  # frames without the person, after which somebody elsewhere is followed
CUT = 20.0  # levels, mean over the picture's parts: a larger change is a cut
PARTS, SAMPLES = 8, 8  # a side of the picture in parts, and a side of a part in pixels looked at
SMALL = 0.1  # of the picture's longer side: smaller faces are looked for in its parts
# Distance between the middles of a face and a mesh, in the larger one's size, ...
NEAR = 1.0  # which can be one person's in successive frames
SAME = 0.35  # which are of one face, if
ALIKE = 1.6  # neither is larger by this factor


class Tracked(NamedTuple):
    """What was found in a frame.

    Attributes:
        landmarks: the person's; None if there is no upright face of the person.
        others: number of other faces, as last counted: every 5 frames.
        cut: True if the picture differs so much from the last one with the person that the film was
            cut in between.
        turns: how often the film must be turned by 90 degrees, counterclockwise as by
            `numpy.rot90`, for its faces to be upright. Not 0: it is on its side, and no landmarks
            are found.
    """

    landmarks: Landmarks | None
    others: int
    cut: bool
    turns: int


class Tracker:
    """Follows one person from frame to frame.

    The mesh is fitted where it was in the last frame. The detector looks for the person where there
    is no last frame, where the mesh finds no face, and at cuts. Every 5 frames it counts the others
    and confirms that the mesh is on a face, because a mesh beside a face may be sure too. Without
    the detector's word for 3 looks, the person counts as lost.

    Args:
        detector, mesh: the networks.
        person: whom to follow: in the first frame with a face the largest one, or in the first
            frame with N faces the Nth from the left, counted from 1. Later it is the face nearest
            to the last.
    """

    def __init__(
        self, detector: Detector, mesh: Mesh, person: int | Literal["largest"] = "largest"
    ):
        if person != "largest" and person < 1:
            raise ValueError(f"the person is {person}; expected at least 1, or 'largest'")
        self._detector, self._mesh, self._person = detector, mesh, person
        self._last: Landmarks | None = None  # the person, when seen last
        self._missed = 0  # frames since then
        self._unconfirmed = 0  # looks since the detector found the person
        self._frame = 0  # number of the next frame
        self._others, self._turns = 0, 0
        self._parts: np.ndarray | None = None  # of the last frame with the person

    def follow(self, rgb: np.ndarray) -> Tracked:
        """Find the person in the next frame, (H, W, 3) uint8. All have the same size."""
        check_picture(rgb)
        parts = _colors(rgb)
        cut = self._parts is not None and float(np.abs(parts - self._parts).mean()) > CUT
        if self._last is None and self._frame % PATIENCE == 0:
            self._turns = self._detector.quarter_turns(rgb) or 0
        found = None
        if not self._turns:
            if self._last is not None and not self._missed and not cut:
                found = self._mesh.fit(rgb, region_of_points(self._last.points))
                found = found if found.presence >= PRESENT else None
            if found is None or self._frame % CHECKED == 0:
                found = self._look(rgb, found, anywhere=cut or self._missed >= PATIENCE)
        self._frame += 1
        self._missed = 0 if found else self._missed + 1
        if found:
            self._last, self._parts = found, parts
        return Tracked(found, self._others, cut and found is not None, self._turns)

    def _look(self, rgb: np.ndarray, found: Landmarks | None, anywhere: bool) -> Landmarks | None:
        """Look for the person in the whole picture, and count the others.

        Args:
            found: the mesh that was fitted near the last one, if there is a face.
            anywhere: whether the person may be far from the last place.

        Returns:
            `found` if it is on a face, otherwise the mesh of the face nearest to the last place.
        """
        due = self._frame % CHECKED == 0
        small = self._last is None or _size(self._last) < SMALL * max(rgb.shape[:2])
        faces = self._detector.detect(rgb, small=small or due)
        face = self._nearest(faces, found or self._last, anywhere)
        self._others = len(faces) - (face is not None)
        if face is None:
            self._unconfirmed += 1
            return found if self._unconfirmed < UNCONFIRMED else None
        self._unconfirmed = 0
        if found and _is_on(face, found):
            return found
        fitted = self._mesh.fit(rgb, region_of_face(face))
        return fitted if fitted.presence >= PRESENT else None

    def _nearest(self, faces: list[Face], place: Landmarks | None, anywhere: bool) -> Face | None:
        """Return the face of the person who was in a place, or None."""
        if place is None:
            number = 1 if self._person == "largest" else self._person
            by_size = self._person == "largest"
            ordered = faces if by_size else sorted(faces, key=lambda face: face.center)
            return ordered[number - 1] if len(ordered) >= number else None
        nearest = min(faces, key=lambda face: _distance(face, place), default=None)
        if nearest is None or anywhere or _distance(nearest, place) <= NEAR:
            return nearest
        return None


def _colors(rgb: np.ndarray) -> np.ndarray:
    """Return the mean colors of a picture's parts, (PARTS, PARTS, 3), from some of its pixels."""
    places = (np.arange(PARTS * SAMPLES) + 0.5) / (PARTS * SAMPLES)
    rows, columns = ((places * side).astype(int) for side in rgb.shape[:2])
    sample = rgb[rows[:, None], columns].reshape(PARTS, SAMPLES, PARTS, SAMPLES, 3)
    return np.asarray(sample.mean(axis=(1, 3)))


def _distance(face: Face, place: Landmarks) -> float:
    """Return the distance between the middles of a face and a mesh, in the larger one's size."""
    low, high = place.points[:, :2].min(axis=0), place.points[:, :2].max(axis=0)
    x, y = ((low + high) / 2 - face.center).tolist()
    return math.hypot(x, y) / max(face.size, _size(place))


def _is_on(face: Face, found: Landmarks) -> bool:
    """Return whether a mesh is on a face that the detector found."""
    return _distance(face, found) <= SAME and 1 / ALIKE <= face.size / _size(found) <= ALIKE


def _size(place: Landmarks) -> float:
    """Return the longer side of a mesh in pixels."""
    return float(np.ptp(place.points[:, :2], axis=0).max())
