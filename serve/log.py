"""The log: one line an event, on stderr."""

import logging
import sys
from types import TracebackType

from engine.errors import printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """Escapes what cannot be printed: a client's text cannot make a line of its own, or control a
    terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, info: _Info) -> str:
        return "\n".join(map(printable, super().formatException(info).split("\n")))


def configure() -> None:
    """Log to stderr, from level info on, until `set_level` says otherwise."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(FORMAT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)  # of avatars whose files do not fit together


def set_level(level: str) -> None:
    """Set the level: debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())
    # Others log each step, some with what clients send, which may be a token.
    for name in ("aioice", "aiortc", "asyncio", "httpcore", "httpx", "websockets"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    # Of a client's mistakes the client is told; a line each would let clients fill the log.
    for name in ("uvicorn", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
