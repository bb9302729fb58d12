"""Export checkpoints to ONNX. As a command: `python -m export`."""

import os

# ONNX Runtime sends telemetry to Microsoft and writes a device ID into the cache folder. The
# variable must be set before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from export.onnx import ExportError, Report, export

__all__ = ["ExportError", "Report", "export"]
