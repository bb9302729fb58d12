"""Speech and an avatar in, lip-synced video out."""

import os

# Idle threads of OpenMP spin unless told otherwise before PyTorch loads it, and occupy the cores
# that the networks need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# ONNX Runtime reports its use to Microsoft and writes a device's number into the cache folder,
# unless told otherwise before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from .avatar import Avatar
from .cache import VERSION as __version__
from .errors import InputError
from .pipeline import Pipeline

__all__ = ["Avatar", "InputError", "Pipeline", "__version__"]
