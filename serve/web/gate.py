"""Who may use the server over HTTP."""

from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection

from engine.errors import shortened

from ..config import Config
from ..refused import Refused
from ..tokens import Tokens

NO_TOKEN = 'the request has no token; expected the header "Authorization: Bearer TOKEN"'


class Gate:
    """Who may use the server: with a token, and from which web pages.

    Args:
        config: has the tokens and the origins.
    """

    def __init__(self, config: Config):
        self._tokens = Tokens(config.server.tokens)
        self._origins = set(config.web.origins)

    def check(self, request: HTTPConnection) -> None:
        """Check the origin and the token.

        Raises:
            Refused: as `check_origin` and `check_token`.
        """
        self.check_origin(request)
        self.check_token(request)

    def check_origin(self, request: HTTPConnection) -> None:
        """Check which web page asks, if one does.

        Raises:
            Refused: 403: it is neither the server's own nor one of the configuration.
        """
        for origin in request.headers.getlist("origin"):
            if "*" in self._origins or origin in self._origins:
                continue
            # A proxy in front may speak TLS, so the scheme does not count.
            if _host(origin) != request.headers.get("host", ""):
                raise Refused(403, f"the origin {shortened(origin)} is not one of web.origins")

    def check_token(self, request: HTTPConnection) -> None:
        """Check the token in the header Authorization, if the server wants one.

        Raises:
            Refused: 401.
        """
        if self._tokens:
            self.check_given(self.token_of(request))

    def check_given(self, token: str | None) -> None:
        """Check a token that came in another way.

        Raises:
            Refused: 401.
        """
        if not self._tokens:
            return
        if token is None:
            raise Refused(401, NO_TOKEN)
        if not self._tokens.knows(token):
            raise Refused(401, "the request's token is not known")

    @staticmethod
    def token_of(request: HTTPConnection) -> str | None:
        """Return the token in the header Authorization, None if there is none."""
        given = request.headers.getlist("authorization")
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        return token.strip() if scheme.lower() == "bearer" else None


def cross_origin(config: Config) -> list[Middleware]:
    """Return what tells browsers that pages of `web.origins` may use the server."""
    if not config.web.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=config.web.origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type"),
            expose_headers=("Location",),
        )
    ]


def _host(origin: str) -> str | None:
    """Return host and port of an origin, None if it has none."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
