"""Hashes of plans, and of the files that plans are built from."""

import hashlib
from pathlib import Path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def source_sha256(path: Path) -> str:
    """Hash a network's file, and the files beside it in which an ONNX file keeps its weights."""
    data = path.read_bytes()
    digest = hashlib.sha256(data)
    # Parsing is slow. Every reference to an external file contains this word, and few other files
    # do.
    if path.suffix.lower() == ".onnx" and b"location" in data:
        import onnx
        from google.protobuf.message import DecodeError

        try:
            graph = onnx.load_model_from_string(data).graph
        except DecodeError:
            return digest.hexdigest()
        locations = {
            entry.value
            for tensor in graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        for location in sorted(locations):
            if (path.parent / location).is_file():
                digest.update((path.parent / location).read_bytes())
    return digest.hexdigest()
