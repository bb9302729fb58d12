"""Open media files with FFmpeg's libraries (PyAV), and turn their errors into one line."""

import os
from pathlib import Path
from typing import Any

import av

from ..errors import InputError


def open_media(path: str | os.PathLike) -> av.container.InputContainer:
    if not Path(path).exists():
        raise InputError(f"{path} does not exist")
    with reading(path):
        # Tags are not always valid UTF-8, although FFmpeg's documentation says so.
        return av.open(media_url(path), metadata_errors="replace")


def media_url(path: str | os.PathLike) -> str:
    """Return a URL of the file, because FFmpeg takes a colon, as in "12:30.wav", for a protocol."""
    return f"file:{path}"


class reading:
    """Turns FFmpeg's errors into an `InputError` that names the file."""

    def __init__(self, path: str | os.PathLike):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, av.error.FFmpegError):
            raise InputError(
                f"{self._path} cannot be read as audio or video: {error.strerror}"
            ) from error
