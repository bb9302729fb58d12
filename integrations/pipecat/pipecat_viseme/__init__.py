"""Viseme's lip-synced avatars for Pipecat."""

from .service import VisemeVideoService

__all__ = ["VisemeVideoService"]
