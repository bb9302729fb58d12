"""What a client is told when a call cannot be served."""

from engine.errors import InputError

INTERNAL = "an internal error, which the server's log describes"


class NotConfigured(InputError):
    """The server has no avatar of this name. NOT_FOUND in gRPC."""


class NotLoaded(InputError):
    """An avatar is to be unloaded that is not loaded."""


class LoadFailed(InputError):
    """An avatar cannot be loaded. The message says why; the next call tries again."""


class Busy(InputError):
    """A limit is reached, or a load took too long: another try may succeed later.
    RESOURCE_EXHAUSTED in gRPC."""


class Ending(InputError):
    """The server ends and takes nothing new. UNAVAILABLE in gRPC."""
