"""Frames for requests of a few frames each, which share batches on the device."""

from .batches import SharedBatches
from .request import BatchRequest, BatchResult

__all__ = ["BatchRequest", "BatchResult", "SharedBatches"]
