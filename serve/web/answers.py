"""What clients are told when a request over HTTP is refused or fails."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from engine.errors import InputError

from .. import errors
from ..refused import Refused, refused

UNREAD = {408, 413, 503}  # statuses of answers to what was not read to its end

_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


@contextmanager
def refusals(what: str) -> Iterator[None]:
    """Turn errors into what a client is told. Those that are no client's mistake are logged.

    Args:
        what: failed, for the log.

    Raises:
        Refused: for every other exception.
    """
    try:
        yield
    except Refused:
        raise
    except ClientDisconnect:
        raise Refused(400, "the client has left") from None
    except InputError as error:
        raise refused(error) from error
    except Exception as error:
        _log.error("%s failed", what, exc_info=error)
        raise Refused(500, errors.INTERNAL) from None


def answered(handler: Handler) -> Handler:
    """Answer what a handler refuses with its status, in plain text."""

    async def answer(request: Request) -> Response:
        try:
            with refusals(f"{request.method} {request.url.path}"):
                return await handler(request)
        except Refused as error:
            return refusal(error)

    return answer


def refusal(error: Refused) -> Response:
    """Return the answer of a request that is refused."""
    headers = closing(error)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_seconds is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_seconds))
    return PlainTextResponse(f"{error.line}\n", error.status, headers)


def closing(error: Refused) -> dict[str, str]:
    """Return the header that ends a connection on which the rest of a body may come."""
    return {"Connection": "close"} if error.status in UNREAD else {}
