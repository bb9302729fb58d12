"""Speech and an avatar in, lip-synced video out."""

import os

# Threads of OpenMP that have nothing to do spin, unless told otherwise before PyTorch loads it, and
# hold the cores that the networks' threads need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .avatar import Avatar
from .errors import InputError
from .pipeline import Pipeline

__all__ = ["Avatar", "InputError", "Pipeline"]
