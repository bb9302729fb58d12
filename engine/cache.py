"""This version, and its folder in the user's cache."""

import os
import stat
import tempfile
import warnings
from importlib import metadata
from pathlib import Path

from .errors import InputError

try:
    VERSION = metadata.version("viseme")
except metadata.PackageNotFoundError:  # run from its source
    VERSION = "0+source"


def cache_folder() -> Path:
    """Return this version's cache folder, and create it: viseme/VERSION in $XDG_CACHE_HOME or
    ~/.cache.

    If neither is set, or ~/.cache cannot be written, it is a folder of this user in the temporary
    folder, with a warning. Containers have such users.

    Raises:
        InputError: it cannot be created, or others could write in it.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # a relative path is ignored, as specified
        return _made(Path(given) / "viseme" / VERSION)
    try:
        home = Path.home()
        reason = f"HOME is {str(home)!r}, no absolute path"
        if home.is_absolute():
            reason = f"{home} cannot be written"
            return _made(home / ".cache" / "viseme" / VERSION)
    except RuntimeError:
        reason = "HOME is not set"
    except InputError:
        pass
    root = _private_folder(reason)
    warnings.warn(
        f"{reason}; the cache is in {root}. Set XDG_CACHE_HOME to a folder that lasts",
        stacklevel=2,
    )
    return _made(root / "viseme" / VERSION)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made: {error.strerror}") from error
    return folder


def _private_folder(reason: str) -> Path:
    """Create a folder in the temporary folder that only this user can enter.

    Args:
        reason: why it is needed, for errors.

    Raises:
        InputError: it cannot be created, or its name is taken by what is not such a folder.
    """
    user = os.getuid()
    try:
        folder = Path(tempfile.gettempdir()) / f"viseme-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(
            f"{reason}, and no cache can be made in the temporary folder ({error.strerror}). "
            "Set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    private = found.st_uid == user and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not private:
        raise InputError(
            f"{folder} is not a folder that only this user can enter; others could change what "
            "it holds. Remove it, or set XDG_CACHE_HOME to another folder"
        )
    return folder
