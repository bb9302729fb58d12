"""Tokens that a client shows: where they are from, and what they look like. They are secrets, so
that no error has one in it."""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.errors import InputError

VARIABLE = "VISEME_TOKENS"
MAX_TOKENS = 1000
MAX_BYTES = 1_000_000  # of a file
_FORM = re.compile(r"[A-Za-z0-9._~+/-]{16,512}={0,2}", re.ASCII)  # as in RFC 6750
EXPECTED = "16 to 512 letters, digits and ._~+/-"


class Tokens:
    """The tokens of which a client must show one. False if there is none, so that all may come.

    Args:
        tokens: the texts.
    """

    def __init__(self, tokens: Sequence[str]):
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def knows(self, token: str) -> bool:
        """Return whether this is one of them."""
        found, digest = False, _digest(token)
        for known in self._digests:  # all of them, so that the time tells nothing
            found |= hmac.compare_digest(known, digest)
        return found


def tokens_of_file(path: Path) -> list[str]:
    """Return a file's tokens: one a line, without empty lines and those that begin with "#".

    Raises:
        InputError: the file cannot be read, has no token, or one that cannot be used.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} is larger than {MAX_BYTES} bytes; expected a token a line")
    tokens = {}
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        token = line.strip()
        if token and not token.startswith("#"):
            tokens[f"{path}:{number}: the token"] = token
    if not tokens:
        raise InputError(f"{path} has no token; expected one a line")
    return _checked(tokens.items())


def tokens_of_environment() -> list[str]:
    """Return the tokens in VISEME_TOKENS, between which are commas or spaces.

    Raises:
        InputError: one cannot be used, or the variable is set and has none: nobody would be asked.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return []
    tokens = [token for token in re.split(r"[,\s]+", text) if token]
    if not tokens:
        raise InputError(f"{VARIABLE} is set, but has no token; expected one, or no such variable")
    return _checked((f"token {number} of {VARIABLE}", t) for number, t in enumerate(tokens, 1))


def unusable(token: str) -> str | None:
    """Return why a text is no token, without it; None if it is one."""
    if _FORM.fullmatch(token):
        return None
    return f"has {len(token)} characters, or one that is not allowed; expected {EXPECTED}"


def _checked(tokens: Iterable[tuple[str, str]]) -> list[str]:
    found = []
    for name, token in tokens:
        if why := unusable(token):
            raise InputError(f"{name} {why}")
        found.append(token)
    return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
