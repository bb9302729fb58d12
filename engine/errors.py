"""The error for what a user can mend."""


class InputError(ValueError):
    """Something given from outside cannot be used: one line says what, its value, what is allowed.

    Commands print it after "error:" and exit with 2; every other exception is a fault of ours.
    """


class DeviceError(InputError):
    """The device cannot be used for this: another one may."""
