"""Write files atomically: under a temporary name, then renamed."""

import secrets
from collections.abc import Callable
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Return a temporary name beside `path`.

    It is random, because processes in two containers may have the same ID. It has the suffix of
    `path`, because libraries choose the format by the suffix.
    """
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial{path.suffix}")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` write to a temporary name beside `path`, then rename it to `path`.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    partial = partial_path(path)
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
