"""Read files that may come from anyone: only regular ones, and none that is too large."""

import os
import stat
from io import BufferedReader

from .errors import InputError

# Neither is waited for: a pipe's other end, nor a device.
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
Name = str | os.PathLike[str]


class IrregularFile(InputError):
    """A folder, a pipe, a socket or a device; `mode` says which."""

    def __init__(self, path: Name, mode: int):
        super().__init__(f"{path} is not a regular file")
        self.mode = mode


def open_regular(
    path: Name, most: int | None = None, *, called: Name | None = None, flags: int = 0
) -> BufferedReader:
    """Open a file for reading. It does not wait for a pipe's other end.

    Args:
        path: a file or a link to one.
        most: its largest size in bytes.
        called: what errors call it, instead of `path`.
        flags: for `os.open`, besides those that every file is opened with.

    Raises:
        IrregularFile: it is a folder, a pipe, a socket or a device.
        InputError: it is larger.
        OSError: it cannot be opened.
    """
    called = path if called is None else called
    _check(os.stat(path), called, most)  # to open a device can start something
    descriptor = os.open(path, FLAGS | flags)
    try:
        _check(os.fstat(descriptor), called, most)  # it may have been replaced
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Name, most: int, *, called: Name | None = None, flags: int = 0) -> bytes:
    """Read a file of at most `most` bytes, whatever size it says it has.

    Raises:
        InputError, OSError: as `open_regular`, or it cannot be read.
    """
    with open_regular(path, most, called=called, flags=flags) as file:
        data = file.read(most + 1) or b""  # None where it would have to wait, as in /proc/kmsg
    if len(data) > most:  # it has grown, or is one of the kernel's, which say 0
        raise _too_large(path if called is None else called, len(data), most)
    return data


def _check(status: os.stat_result, called: Name, most: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise IrregularFile(called, status.st_mode)
    if most is not None and status.st_size > most:
        raise _too_large(called, status.st_size, most)


def _too_large(called: Name, size: int, most: int) -> InputError:
    return InputError(f"{called} has {size} bytes; expected at most {most}")
