"""Speech and an avatar in, lip-synced video out."""

import os

# OpenMP's idle threads spin by default, and occupy cores that the networks need. The variable must
# be set before PyTorch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# ONNX Runtime sends telemetry to Microsoft and writes a device ID into the cache folder. The
# variable must be set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .avatar import Avatar
from .cache import VERSION as __version__
from .errors import InputError
from .pipeline import Pipeline

__all__ = ["Avatar", "InputError", "Pipeline", "__version__"]
