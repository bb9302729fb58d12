"""Live sessions: speech in as it is spoken, frames and their sound out."""

from .live import Live
from .piece import Counts, Piece
from .scheduler import Scheduler
from .session import Session

__all__ = ["Counts", "Live", "Piece", "Scheduler", "Session"]
