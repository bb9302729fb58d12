"""The log: one line an event, on stderr."""

import logging
import sys
from types import TracebackType

from engine.errors import printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Libraries log each step, some with what clients send, which may be a token. Of a client's mistakes
# the client is told: a line each would let clients fill the log.
QUIET = {
    **dict.fromkeys(
        ("aioice", "aiortc", "asyncio", "httpcore", "httpx", "websockets"), logging.WARNING
    ),
    **dict.fromkeys(("uvicorn", "python_multipart"), logging.ERROR),
}
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
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(least, logging.getLogger().level))
