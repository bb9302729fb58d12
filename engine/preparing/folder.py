"""The folder of a prepared avatar: it appears when it is whole, and holds nothing else."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, shortened
from ..files import whole

FRAMES = ("frames.mp4", "frames.mkv")
FILES = ("avatar.json", "boxes.json", "aud.wav", "prepare.json", "prepare.png", *FRAMES)


def check_folder(path: Path, film: str | os.PathLike, *, force: bool) -> None:
    """Check, before the work, that the avatar can be written to a folder.

    Raises:
        InputError: the folder exists and is not empty. With `force`, only if it has other files
            than those of an earlier preparation, or the film itself.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; create it first")
    if path.is_symlink() or path.is_mount():
        kind = "a link" if path.is_symlink() else "a mount point"
        raise InputError(f"{path} is {kind}; expected a new name or an empty folder")
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file; expected a new name or an empty folder")
    names = sorted(os.listdir(path))
    if names and not force:
        raise InputError(
            f"{path} is not empty; give a new name, or --force to replace an earlier preparation"
        )
    others = [name for name in names if name not in FILES]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputError(
            f"{path} has files that are not of a preparation: {shortened(others[0])}{more}; move "
            "them away first"
        )
    files = [path / name for name in names]
    if os.path.exists(film) and any(file.exists() and file.samefile(film) for file in files):
        raise InputError(f"{film} is a file of {path}; give another folder with -o")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that replaces `path`, as checked before, if the block ends without an
    exception. Otherwise `path` is as it was.

    Raises:
        InputError: the folder cannot be made.
    """
    path = path.absolute()
    try:
        with whole(path, folder=True) as partial:
            yield partial
            _remove_files(path)
    except OSError as error:
        if error.filename != str(path):
            raise
        raise InputError(f"{path} cannot be created: {error.strerror}") from error


def _remove_files(path: Path) -> None:
    """Empty the folder of an earlier preparation, so that another can be renamed to it."""
    if path.is_dir():
        for name in FILES:
            (path / name).unlink(missing_ok=True)


def copy_film(film: str | os.PathLike, target: Path) -> None:
    """Copy the film's file, byte for byte."""
    shutil.copyfile(film, target)
