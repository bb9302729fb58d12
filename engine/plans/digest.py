"""Hashes of plans, and of the files that plans are built from."""

import hashlib
import os
from pathlib import Path

from ..errors import InputError, shortened
from ..reading import open_regular

CHUNK = 1 << 20  # bytes


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def source_sha256(path: Path) -> str:
    """Hash a network's file, and the files beside it in which an ONNX file keeps its weights.

    Raises:
        InputError: a file is not a regular one, or the weights are not in the network's folder.
    """
    digest = hashlib.sha256()
    is_onnx = path.suffix.lower() == ".onnx"
    data = b""
    with open_regular(path) as file:
        while chunk := file.read(-1 if is_onnx else CHUNK):
            digest.update(chunk)
            data = chunk if is_onnx else b""
    # Parsing is slow. Every reference to an external file contains this word, and few other files
    # do.
    if b"location" in data:
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
            if weights := _inside(path, location):
                with open_regular(weights) as file:
                    while chunk := file.read(CHUNK):
                        digest.update(chunk)
    return digest.hexdigest()


def _inside(path: Path, location: str) -> Path | None:
    """Return the file of a network's weights; None if it does not exist.

    Raises:
        InputError: it is not in the network's folder, also if links are followed. ONNX refuses such
            a file too.
    """
    try:
        folder = path.parent.resolve()
        weights = (folder / location).resolve()
        if not os.path.isabs(location) and weights.is_relative_to(folder):
            return weights if weights.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, circular links
        pass
    raise InputError(
        f"{path} keeps its weights in {shortened(location)}; expected a file in its folder"
    )
