"""The version, its folder in the user's cache, and the files in it, which hold their checksums."""

import os
import shutil
import stat
import sys
import tempfile
import time
import warnings
import zlib
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from .errors import InputError, printable
from .reading import open_regular

LEFTOVER_AGE = 3600  # seconds
CHUNK = 1 << 20  # bytes

# Files of the cache whose content was compared with the checksum in their name: path and state.
_verified: set[tuple[object, ...]] = set()

try:
    VERSION = metadata.version("viseme")
except metadata.PackageNotFoundError:  # run from its source
    VERSION = "0+source"


def cache_folder() -> Path:
    """Create and return this version's cache folder: viseme/VERSION in $XDG_CACHE_HOME or ~/.cache.

    If there is no home, or ~/.cache cannot be written, as in some containers, use a private folder
    in the temporary folder, and warn.

    Raises:
        InputError: the folder cannot be created, or others can write to it.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the XDG specification says to ignore a relative path
        return _made(Path(given) / "viseme" / VERSION)
    try:
        home = Path.home()
        reason = f"HOME is {str(home)!r}, which is not an absolute path"
        if home.is_absolute():
            reason = f"{home} cannot be written"
            return _made(home / ".cache" / "viseme" / VERSION)
    except RuntimeError:
        reason = "HOME is not set"
    except InputError:
        pass
    root = _private_folder(reason)
    warnings.warn(
        f"{reason}; the cache is in {root}. Set XDG_CACHE_HOME to a folder that is kept",
        stacklevel=2,
    )
    return _made(root / "viseme" / VERSION)


def find_undamaged(folder: Path, stem: str) -> Path | None:
    """Return the undamaged ONNX file whose name is `stem` and its checksum. Remove damaged ones."""
    for path in sorted(folder.glob(f"{stem}-*.onnx")):
        status = path.stat()
        state = (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state in _verified:
            return path
        if path.stem == f"{stem}-{checksum(path)}":
            _verified.add(state)
            return path
        print(printable(f"{path} is damaged; it is made again"), file=sys.stderr)
        path.unlink(missing_ok=True)
    return None


def checksum(path: Path) -> str:
    """Return the CRC-32 of a file, which takes less than half the time of a digest.

    It finds damage; nobody but the user can write to the cache.
    """
    value, chunk = 0, memoryview(bytearray(CHUNK))
    with open_regular(path) as file:
        while size := file.readinto(chunk):
            value = zlib.crc32(chunk[:size], value)
    return f"{value:08x}"


def remove_leftovers(folder: Path) -> None:
    """Remove unfinished files and folders older than an hour from a cache folder.

    Processes that were killed left them. No work in the cache takes an hour.
    """
    for path in folder.glob(".*.partial*"):
        with suppress(OSError):  # another process may remove it too
            if time.time() - path.lstat().st_mtime < LEFTOVER_AGE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be created: {error.strerror}") from error
    return folder


def _private_folder(reason: str) -> Path:
    """Create a folder for this user alone in the temporary folder.

    Args:
        reason: why the usual folder cannot be used, for errors.

    Raises:
        InputError: it cannot be created, or something else has its name.
    """
    user = os.getuid()
    try:
        folder = Path(tempfile.gettempdir()) / f"viseme-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(
            f"{reason}, and the temporary folder cannot be used ({error.strerror}). "
            "Set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    private = found.st_uid == user and stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not private:
        raise InputError(
            f"{folder} is not a private folder of this user, so that others could change its "
            "content. Remove it, or set XDG_CACHE_HOME to another folder"
        )
    return folder
