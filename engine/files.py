"""Files and folders that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InputError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a new name beside `path` to write a file or a folder under.

    If the block ends well, what was written there is renamed to `path`; otherwise it is removed
    and `path` stays as it was. The name is random, because processes of two containers may have
    the same number, and ends as the path's does, because libraries choose the format by it.

    Raises:
        OSError: it cannot be renamed.
    """
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            with suppress(OSError):  # usually there is nothing to remove
                partial.unlink()


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
    """Write a file by one call, `write(name)`, as in `whole`.

    Raises:
        OSError: the folder or the disk does not allow it; `path` is as it was.
    """
    with whole(path) as partial:
        write(partial)
