"""What clients send over HTTP, read with limits of its size and of its time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from tempfile import SpooledTemporaryFile
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from engine.errors import shortened

from ..refused import Refused

MAX_TEXT = 100_000  # bytes of JSON or SDP
MAX_DEPTH = 20  # of JSON
MAX_UPLOADS = 8  # that are being read, and decoded, at a time
MAX_FIELD, MAX_FIELDS = 10_000, 10  # of a form, beside its file
PART_SECONDS = 10.0  # in which something of a body must come
TEXT_SECONDS, UPLOAD_SECONDS = 20.0, 300.0  # in which all of it must be there
DRAINED = 64 << 20  # bytes at most that are read of what was refused


async def json_object(request: Request) -> dict[str, Any]:
    """Read a body that is a JSON object. Its Content-Type is not looked at.

    Raises:
        Refused: 400: it is none; or as `body`.
    """
    return parse_object(await body(request))


def parse_object(data: bytes | str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        Refused: 400: it is none, or is nested deeply.
    """
    try:
        value = json.loads(data, parse_constant=_no_constant)
        if _depth(value) > MAX_DEPTH:
            raise RecursionError
    except (ValueError, RecursionError):
        raise Refused(400, f"the body is no JSON of at most {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise Refused(400, f"the body is {shortened(value)}; expected a JSON object")
    return value


async def sdp(request: Request) -> str:
    """Read a body that is an SDP.

    Raises:
        Refused: 415: of another Content-Type; 400: no UTF-8; or as `body`.
    """
    kind = _media_type(request)
    if kind != "application/sdp":
        raise Refused(415, f"Content-Type is {shortened(kind)}; expected application/sdp")
    try:
        return (await body(request)).decode()
    except UnicodeDecodeError:
        raise Refused(400, "the SDP is not UTF-8") from None


async def body(request: Request, most: int = MAX_TEXT) -> bytes:
    """Read a body.

    Raises:
        Refused: 413: it is larger than `most` bytes; 408: it comes too slowly.
    """
    return b"".join([part async for part in _parts(request, most, TEXT_SECONDS)])


class Uploads:
    """Forms with a file, of which a few are in use at a time.

    Args:
        most: bytes of a form.
    """

    def __init__(self, most: int):
        self._most, self._reading = most, 0

    @asynccontextmanager
    async def form(self, request: Request) -> AsyncIterator[tuple[dict[str, str], Any]]:
        """Read a form of the type multipart/form-data.

        Returns:
            Its fields, and its file, or None. The file is on disk if it is large; it is gone when
            the block ends.

        Raises:
            Refused: 415: of another type; 400: it cannot be read; 503: others are being read; 413,
                408: as `body`.
        """
        if self._reading >= MAX_UPLOADS:
            busy = Refused(503, f"{self._reading} files are being sent; expected fewer")
            await _drain(request, MAX_TEXT)
            raise busy
        self._reading += 1
        try:
            form = await self._parse(request)
            try:
                pairs = form.multi_items()
                fields = {key: value for key, value in pairs if isinstance(value, str)}
                files = [value for _, value in pairs if not isinstance(value, str)]
                yield fields, files[0].file if files else None
            finally:
                await form.close()
        finally:
            self._reading -= 1

    async def _parse(self, request: Request) -> FormData:
        kind = _media_type(request)
        if kind != "multipart/form-data":
            raise Refused(415, f"Content-Type is {shortened(kind)}; expected multipart/form-data")
        whole = request.headers["content-type"].encode("latin-1")
        parser = MultiPartParser(
            Headers(raw=[(b"content-type", whole)]),
            _parts(request, self._most, UPLOAD_SECONDS),
            max_files=1,
            max_fields=MAX_FIELDS,
            max_part_size=MAX_FIELD,
        )
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise Refused(400, f"the form cannot be read: {error.message}") from None
        except (FormParserError, UnicodeError, ValueError, KeyError):
            raise Refused(400, "the form cannot be read") from None


async def read_file(file: SpooledTemporaryFile[bytes]) -> bytes:
    """Return what is in a form's file."""
    return await asyncio.to_thread(file.read)


async def _parts(request: Request, most: int, seconds: float) -> Any:
    """Iterate over the parts of a body."""
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > most:
        await _drain(request, DRAINED)
        raise _too_large(most)
    size, loop = 0, asyncio.get_running_loop()
    end, parts = loop.time() + seconds, request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout_at(min(loop.time() + PART_SECONDS, end)):
                part = await anext(parts, b"")
        except TimeoutError:
            raise Refused(408, "the body came too slowly") from None
        if not part:
            return
        size += len(part)
        if size > most:
            await _drain(request, DRAINED)
            raise _too_large(most)
        yield part


async def _drain(request: Request, most: int) -> None:
    """Read what is left of a body and forget it, within limits: many clients read no answer before
    they have sent all."""
    try:
        async with asyncio.timeout(PART_SECONDS):
            while most > 0:
                message = await request.receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                most -= len(message.get("body", b""))
    except TimeoutError:
        return


def _media_type(request: Request) -> str:
    """Return a body's Content-Type, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_large(most: int) -> Refused:
    return Refused(413, f"the body is larger than {most} bytes; expected at most that")


def _depth(value: Any) -> int:
    """Return how deep a value is nested; a number or a text has the depth 0."""
    depth, level = 0, [value]
    while level := [
        part
        for one in level
        if isinstance(one, dict | list)
        for part in (one.values() if isinstance(one, dict) else one)
    ]:
        depth += 1
        if depth > MAX_DEPTH:
            break
    return depth


def _no_constant(name: str) -> None:
    raise ValueError(name)  # NaN and infinities are no JSON
