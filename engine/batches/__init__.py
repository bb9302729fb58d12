"""Frames for requests of a few frames each, which share batches on the device."""

from .batches import SharedBatches
from .request import AUDIO_SHAPE, FACE_SHAPE, MOST_FRAMES, BatchRequest, BatchResult

__all__ = [
    "AUDIO_SHAPE",
    "FACE_SHAPE",
    "MOST_FRAMES",
    "BatchRequest",
    "BatchResult",
    "SharedBatches",
]
