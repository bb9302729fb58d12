"""Live sessions: speech in as it is spoken, frames and their sound out."""

from .live import SAMPLE_RATES, Live
from .piece import Counts, Piece
from .scheduler import Scheduler
from .session import Session

__all__ = ["SAMPLE_RATES", "Counts", "Live", "Piece", "Scheduler", "Session"]
