"""Speech and an avatar in, lip-synced video out."""

from .avatar import Avatar
from .errors import InputError
from .pipeline import Pipeline

__all__ = ["Avatar", "InputError", "Pipeline"]
