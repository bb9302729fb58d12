"""Read files that may come from anyone: only regular ones, and none that is too large."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from .errors import InputError


def open_regular(path: Path, most: int | None = None) -> BufferedReader:
    """Open a file for reading. It does not wait for a pipe's other end.

    Args:
        path: a file or a link to one.
        most: its largest size in bytes.

    Raises:
        InputError: it is a folder, a pipe or a device, or is larger.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (most is None or status.st_size <= most):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file")
    raise InputError(f"{path} has {status.st_size} bytes; expected at most {most}")
