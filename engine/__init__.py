"""Speech and an avatar in, lip-synced video out."""

import os

# Idle threads of OpenMP spin unless told otherwise before PyTorch loads it, and occupy the cores
# that the networks need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .avatar import Avatar
from .cache import VERSION as __version__
from .errors import InputError
from .pipeline import Pipeline

__all__ = ["Avatar", "InputError", "Pipeline", "__version__"]
