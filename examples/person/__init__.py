"""A drawn person who can speak: `draw(pose, mouth)` returns a frame."""

from .frame import draw
from .pose import SIZE, Mouth, Pose, face_box, idle, idle_mouth, mouth_box

__all__ = ["SIZE", "Mouth", "Pose", "draw", "face_box", "idle", "idle_mouth", "mouth_box"]
