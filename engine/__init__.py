"""Speech and an avatar in, lip-synced video out."""

import os
import signal
import sys
from itertools import pairwise

# OpenMP's idle threads spin by default, and occupy cores that the networks need. The variable must
# be set before PyTorch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# MKL's own memory manager can hang: threads that had rendered spun for ever on its lock when they
# ended, once in some thousand tests. The variable must be set before MKL is used.
os.environ.setdefault("MKL_DISABLE_FAST_MM", "1")
# ONNX Runtime sends telemetry to Microsoft and writes a device ID into the cache folder. The
# variable must be set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Importing takes a second or more. Until `engine.command.program` runs a command, Ctrl-C ends it at
# once, without a traceback.
if (
    sys.argv[:1] == ["-m"]  # as long as Python looks for the command's module
    and any(word == "-m" and name.startswith("engine.") for word, name in pairwise(sys.orig_argv))
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from .avatar import Avatar
from .cache import VERSION as __version__
from .errors import InputError
from .pipeline import Pipeline

__all__ = ["Avatar", "InputError", "Pipeline", "__version__"]
