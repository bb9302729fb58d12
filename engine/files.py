"""Write files and folders atomically: under a temporary name, then renamed."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


@contextmanager
def whole(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Create a file, or a folder, under a temporary name beside `path`, and yield the name.

    If the block ends without an exception, the file or folder is renamed to `path`. Otherwise it is
    removed, and `path` is unchanged. The name is random, because processes in two containers may
    have the same ID, and no link that someone put there is followed. It has the suffix of `path`,
    because libraries choose the format by it.

    Raises:
        OSError: it cannot be created or renamed. An error of the block that names the temporary
            name names `path` instead.
    """
    with suppress(FileNotFoundError):
        os.lstat(path)  # a name that is too long is an error now, not at the end
    partial = _unused_name(path)
    try:
        if folder:
            partial.mkdir()
        else:
            partial.touch(exist_ok=False)
        yield partial
        partial.replace(path)
    except OSError as error:
        if partial.name not in str(error.filename):
            raise
        # the temporary name would say nothing
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        if os.path.isdir(partial):  # unlike Path.is_dir, it takes names that are too long
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with suppress(OSError):  # usually there is nothing to remove
                partial.unlink()


def _unused_name(path: Path) -> Path:
    # Where `path` is as long as a name can be, this one must not be longer.
    stem, suffix = path.stem[:40], path.suffix if len(path.suffix) <= 20 else ""
    while True:
        name = f".{stem}.{secrets.token_hex(4)}.partial{suffix}"
        if not os.path.lexists(partial := path.with_name(name)):
            return partial


class Outputs:
    """The files and folders that a command writes. Its text says which of them it has written.

    Args:
        paths: as they are before the command begins; None for none.
    """

    def __init__(self, *paths: str | os.PathLike[str] | None):
        self._before = {os.fspath(path): _identity(path) for path in paths if path}

    def __str__(self) -> str:
        # What somebody removed has no identity.
        new = [p for p, before in self._before.items() if _identity(p) not in (None, before)]
        if not new:
            return "nothing was written"
        old = [path for path in self._before if path not in new]
        text = f"{' and '.join(new)} {'was' if len(new) == 1 else 'were'} written"
        return text + (f", {' and '.join(old)} not" if old else "")


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what differs if another file is renamed to this path."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):  # ValueError: a null byte
        return None
    return status.st_dev, status.st_ino


def check_output(
    output: Path, speech: str | os.PathLike[str], avatar: str | os.PathLike[str]
) -> None:
    """Raise InputError if the output would overwrite the speech or a file of the avatar."""
    if not output.exists():
        return
    if Path(speech).exists() and output.samefile(speech):
        raise InputError(f"{output} is the speech itself; give another name with -o")
    # unlike Path.resolve, realpath raises nothing for circular links
    if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(avatar)):
        raise InputError(f"{output} is a file of the avatar; give another name with -o")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically, see `whole`. `write` is called with the temporary name.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    with whole(path) as partial:
        write(partial)
