"""Export checkpoints to ONNX. As a command: `python -m export`."""

import os
import signal
import sys
from itertools import pairwise

# ONNX Runtime sends telemetry to Microsoft and writes a device ID into the cache folder. The
# variable must be set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Until the command runs, Ctrl-C ends it at once, without a traceback; see `engine/__init__.py`.
if (
    sys.argv[:1] == ["-m"]
    and ("-m", "export") in pairwise(sys.orig_argv)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from export.onnx import ExportError, Report, export

__all__ = ["ExportError", "Report", "export"]
