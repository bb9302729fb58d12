"""A recorded person: a folder of frames, face boxes and networks, in any of four layouts."""

from .avatar import Avatar

__all__ = ["Avatar"]
