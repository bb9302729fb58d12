"""Checkpoint -> ONNX. As a command: `python -m export`."""

import os

# ONNX Runtime reports its use to Microsoft and writes a device's number into the cache folder,
# unless told otherwise before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from export.onnx import ExportError, Report, export

__all__ = ["ExportError", "Report", "export"]
