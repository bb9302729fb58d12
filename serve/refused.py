"""How requests over HTTP are refused: a status, and one line of what was got and is expected."""

from engine.errors import DeviceError, InputError

from .errors import Busy, Ending, LoadFailed, NotConfigured, NotLoaded

AGAIN_SECONDS = 5.0

# of the errors that say what a client, or an operator, can do
STATUSES: tuple[tuple[type[InputError], int], ...] = (
    (NotConfigured, 404),
    (NotLoaded, 409),
    (LoadFailed, 500),
    (Busy, 429),
    (Ending, 503),
    (DeviceError, 503),
    (InputError, 400),
)
LATER = {429, 503}


class Refused(Exception):
    """A client is told that something cannot be done.

    Args:
        status: of HTTP.
        line: what was got, and what is expected.
        retry_seconds: after which it may work; unless given, 5 for 429 and 503.
    """

    def __init__(self, status: int, line: object, *, retry_seconds: float | None = None):
        self.status, self.line = status, str(InputError(line))
        if retry_seconds is None and self.status in LATER:
            retry_seconds = AGAIN_SECONDS
        self.retry_seconds = retry_seconds
        super().__init__(self.line)


def refused(error: InputError) -> Refused:
    """Return an error of the engine or the registry with its status."""
    return Refused(next(status for kind, status in STATUSES if isinstance(error, kind)), error)
