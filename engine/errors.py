"""The error for what a user can mend."""

import reprlib


class InputError(ValueError):
    """Something given from outside cannot be used: one line says what, its value, what is allowed.

    Commands print it after "error:" and exit with 2; every other exception is a fault of ours.
    """


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
