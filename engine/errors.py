"""Errors that a user can mend."""

import reprlib


class InputError(ValueError):
    """Something given from outside cannot be used: one line says what, its value, what is allowed.

    Commands print it after "error:" and exit with 2; every other exception is a fault of ours.
    What cannot be printed in it, as a newline in a file's name, is escaped.
    """

    def __init__(self, message: object):
        super().__init__(printable(message))


class DeviceError(InputError):
    """The device cannot be used for this: another one may."""


def shortened(value: object, limit: int = 120) -> str:
    """Return `repr(value)`, cut to `limit` characters, for an error line.

    "..." marks what is left out. The full text of a long value is never built.
    """
    text = _REPR.repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 100
_REPR.maxlevel = 3


def printable(text: object) -> str:
    """The text as one line: newlines, other control characters and bytes of a file name that are no
    text are escaped, as in "a\\nb", so that a name cannot fake a line or drive a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def one_line(message: object) -> str:
    """Return a library's message in one line of at most 300 characters."""
    return " ".join(str(message).split())[:300]
