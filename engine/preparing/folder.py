"""The folder of a prepared avatar: it appears when it is whole, and holds nothing else."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError, shortened
from ..files import whole

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
    if path.is_symlink() or os.path.ismount(path.absolute()):
        kind = "a link" if path.is_symlink() else "a mount point"
        raise InputError(f"{path} is {kind}; expected a new name or an empty folder")
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path} is a file; expected a new name or an empty folder")
    if path.samefile(os.curdir):  # to replace it would leave the shell in a removed folder
        raise InputError(f"{path} is the current folder; name it from the folder above")
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
def new_folder(path: Path, film: str | os.PathLike, *, force: bool) -> Iterator[Path]:
    """Yield a folder that replaces `path` if the block ends without an exception. Otherwise `path`
    is as it was.

    Raises:
        InputError: the folder cannot be made, or, as of `check_folder`, `path` has got files while
            the block ran.
    """
    path = path.absolute()
    old = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    partial = None
    try:
        with whole(path, folder=True) as partial:
            yield partial
            check_folder(path, film, force=force)  # hours may have passed
            if path.exists():
                path.rename(old)
    except OSError as error:
        if str(path) in (error.filename, error.filename2):
            raise InputError(f"{path} cannot be created: {error.strerror}") from error
        # The name, if there is one, is the temporary one, which would say nothing.
        if error.errno in FULL or (partial is not None and partial.name in str(error.filename)):
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        raise
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(old, ignore_errors=True)


def copy_film(film: str | os.PathLike, target: Path) -> None:
    """Copy the film's file, byte for byte."""
    shutil.copyfile(film, target)
