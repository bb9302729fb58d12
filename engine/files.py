"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from .errors import InputError


def partial_path(path: Path) -> Path:
    """Return a new name beside `path` to write under before renaming.

    The name is random, because processes of two containers may have the same number, and ends as
    the path's does, because libraries choose the format by it.
    """
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")


def check_output(
    output: Path, speech: str | os.PathLike[str], avatar: str | os.PathLike[str]
) -> None:
    """Check that an output does not overwrite what is read.

    Raises:
        InputError: it does.
    """
    if not output.exists():
        return
    if Path(speech).exists() and output.samefile(speech):
        raise InputError(f"{output} is the speech itself")
    if output.resolve().is_relative_to(Path(avatar).resolve()):
        raise InputError(f"{output} is a file of the avatar")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` write to a temporary name beside `path`, then rename it to `path`.

    Raises:
        OSError: the folder or the disk does not allow it; `path` is as it was.
    """
    partial = partial_path(path)
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
