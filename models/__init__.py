"""The two networks as PyTorch modules, and their checkpoints."""

from models import checkpoint
from models.audio_encoder import AudioEncoder
from models.generator import Generator

__all__ = ["AudioEncoder", "Generator", "checkpoint"]
