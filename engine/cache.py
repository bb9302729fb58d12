"""This version, and its folder in the user's cache."""

import os
from importlib import metadata
from pathlib import Path

from .errors import InputError

try:
    VERSION = metadata.version("viseme")
except metadata.PackageNotFoundError:  # run from its source
    VERSION = "0+source"


def cache_folder() -> Path:
    """Return the folder for files that can be made again: ~/.cache/viseme/VERSION. It is made if
    need be.

    Raises:
        InputError: it cannot be made.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "viseme" / VERSION
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from error
    return folder
