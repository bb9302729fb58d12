"""Errors that a user can fix."""

import reprlib


class InputError(ValueError):
    """An input cannot be used. The message is one line: the value, and what is expected instead.

    Commands print it after "error:" and exit with 2. Every other exception is a bug. Characters
    that cannot be printed, such as a newline in a file's name, are escaped. A message of more than
    1000 characters is cut in the middle; one with a command and its paths is shorter.
    """

    def __init__(self, message: object):
        # cut first too, because escaping megabytes takes long
        super().__init__(_cut(printable(_cut(str(message)))))


def _cut(text: str, limit: int = 1000) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2 - 3]} ... {text[2 - limit // 2 :]}"


class DeviceError(InputError):
    """The device cannot be used, but another one may."""


class DeviceFull(DeviceError):
    """The device has too little free memory."""


def shortened(value: object, limit: int = 120) -> str:
    """Return `repr(value)`, shortened to `limit` characters, for an error line.

    "..." marks an omission. The full text of a long value is never built.
    """
    text = _REPR.repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100
_REPR.maxlevel = 3


def printable(text: object) -> str:
    """Return the text as one printable line.

    Newlines, other control characters and undecodable bytes of file names are escaped, as in
    "a\\nb". So a name cannot forge a line of output or control a terminal.
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def one_line(message: object) -> str:
    """Return a library's message in one line of at most 300 characters."""
    return " ".join(str(message).split())[:300]
