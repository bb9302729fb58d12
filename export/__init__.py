"""Checkpoint -> ONNX. As a command: `python -m export`."""

from export.onnx import ExportError, Report, export

__all__ = ["ExportError", "Report", "export"]
