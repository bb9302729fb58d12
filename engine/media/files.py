"""Media files: how FFmpeg's libraries (PyAV) open one, and what they say of it in one line."""

import os
from pathlib import Path
from typing import Any

import av

from ..errors import InputError


def open_media(path: str | os.PathLike) -> av.container.InputContainer:
    if not Path(path).exists():
        raise InputError(f"{path} does not exist")
    with reading(path):
        # Tags are not always in the UTF-8 that FFmpeg promises.
        return av.open(media_url(path), metadata_errors="replace")


def media_url(path: str | os.PathLike) -> str:
    """A name with a colon in it, "12:30.wav", would be a protocol to FFmpeg."""
    return f"file:{path}"


class reading:
    """Turns what FFmpeg says of a file into one line with the file's name."""

    def __init__(self, path: str | os.PathLike):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, av.error.FFmpegError):
            raise InputError(
                f"{self._path} cannot be read as audio or video: {error.strerror}"
            ) from error
