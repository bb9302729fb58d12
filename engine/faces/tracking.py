"""Follow one person through the frames of a film."""

import math
from typing import Literal, NamedTuple

import numpy as np

from .detector import Detector, Face, check_picture
from .mesh import PRESENT, Landmarks, Mesh, Region, region_of_face, region_of_points

CHECKED = 25  # frames between two looks at the whole picture
PATIENCE = 25  # frames without the person, after which somebody elsewhere is followed
NEAR = 1.0  # distance between two faces, in their size, that can be one person's
CUT = 20.0  # levels, mean over the picture's parts: a larger change is a cut
PARTS = 8  # a side of the picture


class Tracked(NamedTuple):
    """What was found in a frame.

    Attributes:
        landmarks: the person's; None if there is no upright face of the person.
        others: number of other faces, as last counted: at least every 25 frames.
        cut: True if the picture differs so much from the last one that the film was cut here.
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
    is no last frame, where the mesh finds no face, and at cuts; every 25 frames it checks that the
    mesh still is on a face, and counts the others.

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
        self._frame = 0  # number of the next frame
        self._upright = False  # there was an upright face
        self._others, self._turns = 0, 0
        self._parts: np.ndarray | None = None  # of the last frame

    def follow(self, rgb: np.ndarray) -> Tracked:
        """Find the person in the next frame, (H, W, 3) uint8. All have the same size."""
        check_picture(rgb)
        cut = self._is_cut(rgb)
        due = self._frame % CHECKED == 0
        if not self._upright and due:
            self._turns = self._detector.quarter_turns(rgb) or 0
        found = None
        if not self._turns:
            if self._last is not None and not self._missed and not cut:
                found = self._fit(rgb, region_of_points(self._last.points))
            if found is None or due:
                found = self._look(rgb, found, anywhere=cut or self._missed > PATIENCE)
        self._frame += 1
        self._missed = 0 if found else self._missed + 1
        self._last = found or self._last
        self._upright |= found is not None
        return Tracked(found, self._others, cut, self._turns)

    def _is_cut(self, rgb: np.ndarray) -> bool:
        """Compare the mean colors of the picture's parts with those of the last picture."""
        height, width = rgb.shape[:2]
        steps = max(height // (8 * PARTS), 1), max(width // (8 * PARTS), 1)
        sample = rgb[steps[0] // 2 :: steps[0], steps[1] // 2 :: steps[1]]
        rows = [part.mean(axis=0, dtype=np.float64) for part in np.array_split(sample, PARTS)]
        parts = np.stack([part.mean(axis=1) for part in np.array_split(rows, PARTS, axis=1)])
        last, self._parts = self._parts, parts
        return last is not None and float(np.abs(parts - last).mean()) > CUT

    def _fit(self, rgb: np.ndarray, region: Region) -> Landmarks | None:
        """Fit the mesh; None if there is no face."""
        found = self._mesh.fit(rgb, region)
        return found if found.presence >= PRESENT else None

    def _look(
        self, rgb: np.ndarray, followed: Landmarks | None, anywhere: bool
    ) -> Landmarks | None:
        """Look for the person in the whole picture, and count the others.

        Args:
            followed: the mesh that was found near the last one.
            anywhere: whether the person may be far from where it was last.
        """
        faces = self._detector.detect(rgb)
        place = followed or self._last
        if place is None:
            face = self._first(faces)
        else:
            face = min(faces, key=lambda face: _distance(face, place.points), default=None)
            near = face is not None and _distance(face, place.points) <= NEAR
            if not near and not anywhere:
                # Without any face, the detector may not know one that is covered or turned.
                self._others = len(faces)
                return None if faces else followed
        self._others = len(faces) - (face is not None)
        if face is None:
            return followed
        return followed or self._fit(rgb, region_of_face(face))

    def _first(self, faces: list[Face]) -> Face | None:
        if self._person == "largest":
            return faces[0] if faces else None
        ordered = sorted(faces, key=lambda face: face.center)
        return ordered[self._person - 1] if len(ordered) >= self._person else None


def _distance(face: Face, points: np.ndarray) -> float:
    """Return the distance of a face from a mesh's middle, in the larger one's size."""
    low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
    x, y = (low + high) / 2 - face.center
    return math.hypot(x, y) / max(face.size, float((high - low).max()))
