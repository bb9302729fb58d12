"""Follow one person through the frames of a film."""

from typing import Literal, NamedTuple

import numpy as np

from .detector import Detector
from .mesh import Landmarks, Mesh


class Tracked(NamedTuple):
    """What was found in a frame.

    Attributes:
        landmarks: the person's; None if there is no face.
        others: number of other faces, as last counted.
        cut: True if the picture differs so much from the last one that the film was cut here.
        turns: None, or in a frame without upright faces: how often it must be turned by 90 degrees,
            as by `numpy.rot90`, to show an upright one. Looked for until a face has been found.
    """

    landmarks: Landmarks | None
    others: int
    cut: bool
    turns: int | None


class Tracker:
    """Follows one person from frame to frame.

    Args:
        detector, mesh: the networks.
        person: whom to follow, in the first frame with a face: the largest face, or the Nth from
            the left (counted from 1). Later it is the one nearest to the last.
    """

    def __init__(
        self, detector: Detector, mesh: Mesh, person: int | Literal["largest"] = "largest"
    ):
        raise NotImplementedError

    def follow(self, rgb: np.ndarray) -> Tracked:
        """Find the person in the next frame, (H, W, 3) uint8. All have the same size."""
        raise NotImplementedError
