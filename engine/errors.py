"""Errors that a user can mend."""


class InputError(ValueError):
    """Something given from outside cannot be used: one line says what, its value, what is allowed.

    Commands print it after "error:" and exit with 2; every other exception is a fault of ours.
    """


class DeviceError(InputError):
    """The device cannot be used for this: another one may."""


def one_line(message: object) -> str:
    """Return a library's message in one line of at most 300 characters."""
    return " ".join(str(message).split())[:300]
