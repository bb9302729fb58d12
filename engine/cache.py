"""The user's cache folder."""

import os
from importlib import metadata
from pathlib import Path

from .errors import InputError


def cache_folder() -> Path:
    """Where this version keeps what it can make again: ~/.cache/viseme/VERSION, made if need be.

    Raises:
        InputError: it cannot be made.
    """
    try:
        version = metadata.version("viseme")
    except metadata.PackageNotFoundError:
        version = "source"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "viseme" / version
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from error
    return folder
