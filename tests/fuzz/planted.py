"""Targets with faults, to see that the fuzzer finds them."""

import json
import os
import time
from pathlib import Path

from tests.fuzz.mutate import mixed, mutate_bytes, mutate_json
from tests.fuzz.target import Target


def seeds(_: Path) -> list[bytes]:
    return [b'{"count": 3, "parts": [1, 2]}']


def right(path: Path) -> None:
    try:
        count = json.loads(path.read_bytes())["count"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path.name} has no count") from error
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"count is {str(count)[:99]}; expected at least 0")


def traceback(path: Path) -> None:
    right(path)
    json.loads(path.read_bytes())["parts"]


def long_message(path: Path) -> None:
    if len(path.read_bytes()) != 29:
        raise ValueError("one line\nand another one")


def crash(path: Path) -> None:
    if len(path.read_bytes()) < 20:
        os.abort()


def leave(path: Path) -> None:
    if len(path.read_bytes()) < 20:
        os._exit(3)


def hang(path: Path) -> None:
    while len(path.read_bytes()) > 60:
        time.sleep(0.1)


def memory(path: Path) -> None:
    if len(path.read_bytes()) > 60:
        b"x" * (5 << 28)


def deep(path: Path) -> None:
    """Fail only for a file that contains three things. Each one alone runs another line."""
    data = path.read_bytes()
    if b"\0" not in data:
        return
    if b"%s" not in data:
        return
    if b"1e999" not in data:
        return
    raise KeyError("found")


TARGETS = {
    read.__name__: Target(read, seeds, ".json", mutate, (ValueError,))
    for read, mutate in [
        (right, mixed(mutate_json)), (traceback, mixed(mutate_json)), (long_message, mutate_bytes),
        (crash, mutate_bytes), (leave, mutate_bytes), (hang, mutate_bytes),
        (memory, mutate_bytes), (deep, mutate_bytes),
    ]
}  # fmt: skip
