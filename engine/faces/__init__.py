"""Find the face of one person in a film's frames, and the face boxes that fit it.

It knows pictures and points only: nothing of films, avatars or pipelines.
"""

from .boxes import Boxes, Gap, box_of, smooth
from .detector import Detector, Face
from .mesh import Landmarks, Mesh
from .nets import FaceNetworks, face_networks
from .tracking import Tracked, Tracker

__all__ = [
    "Boxes",
    "Detector",
    "Face",
    "FaceNetworks",
    "Gap",
    "Landmarks",
    "Mesh",
    "Tracked",
    "Tracker",
    "box_of",
    "face_networks",
    "smooth",
]
