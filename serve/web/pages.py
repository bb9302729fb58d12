"""The page: a few static files of the package."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

INDEX = "index.html"
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# A server behind a proxy does not know its own address, and not all browsers take 'self' for
# WebSockets too.
POLICY = (
    "default-src 'self'; connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
HEADERS = {
    "Cache-Control": "no-cache",  # asked for each time, answered by 304 while it is the same
    "Content-Security-Policy": POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> list[BaseRoute]:
    """Return `/`, which is the page, and `/page/NAME` for each file that it uses."""
    folder = files(__package__) / "page"
    found: list[BaseRoute] = [Route("/", _answer(folder / INDEX))]
    for file in _files(folder):
        if file.name != INDEX:
            found.append(Route(f"/page/{file.name}", _answer(file)))
    return found


def _files(folder: Traversable) -> Iterator[Traversable]:
    for file in folder.iterdir():
        if file.is_file() and file.name.rpartition(".")[2] in TYPES:
            yield file


def _answer(file: Traversable) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers GET and HEAD with a file, which is read once."""
    body = file.read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "Content-Type": TYPES[file.name.rpartition(".")[2]], "ETag": tag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        tags = {known.strip().removeprefix("W/") for known in known.split(",")}
        if tags & {tag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers)

    return answer
