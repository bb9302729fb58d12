"""Live sessions: speech in as it is spoken, frames and their sound out."""

from .live import Live
from .session import Counts, Piece, Session

__all__ = ["Counts", "Live", "Piece", "Session"]
