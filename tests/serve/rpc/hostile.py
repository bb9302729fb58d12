"""Requests and bytes that break things, and what a process holds."""

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.mutate import mutate_bytes
from tests.serve.rpc.encoding import content, number, real, varint
from tests.serve.rpc.go_client import FACE_BYTES, OTHER, SERVICE

NUMBERS = (0, 1, 2, 3, 8, 31, 32, 33, 100, 101, 7999, 8000, 16000, 44100, 192000, 192001)
NUMBERS += (-1, -8, 2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**63 - 1, -(2**63))
SIZES = (0, 1, 2, 3, 4, 5, 7, 8, 1000, 2996, 12000, 32764, 32767, 32768, 32769, 64000, 400_001)
VALUES = (0, 1, -1, 0.5, 1e-40, 1e38, float("nan"), float("inf"), -float("inf"), 255, -3)
NAMES = (b"anna", b"berta", b"dora", b"", b"x", b"../anna", b"\xff\xfe", b"a\0b", "ä".encode())
METHODS = ("InferBatchComposite",) * 8 + ("ListModels", "LoadModel", "UnloadModel")
METHODS += ("GetModelStats", "Health", "Nothing")


def requests(seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield services, methods and messages: half of them structured, half with damaged bytes."""
    dice = random.Random(seed)
    for _ in range(count):
        method = dice.choice(METHODS)
        message = _composite(dice) if method == "InferBatchComposite" else _small(dice)
        if dice.random() < 0.5:
            for _ in range(dice.choice((1, 1, 2, 5))):
                message = mutate_bytes(message, [message, b"\x0a\x04anna\x28\x01"], dice)
        yield dice.choice((SERVICE, SERVICE, OTHER)), method, message[: 1 << 22]


def _composite(dice: random.Random) -> bytes:
    fields = {
        1: content(1, dice.choice((b"anna", b"anna", b"anna", dice.choice(NAMES)))),
        3: content(3, _floats(dice, dice.choice(SIZES))),
        5: number(5, dice.choice((1, 2, 3, 32, dice.choice(NUMBERS)))),
    }
    if dice.random() < 0.4:
        fields[4] = content(4, _floats(dice, dice.choice((32768, dice.choice(SIZES)))))
        if dice.random() < 0.6:
            del fields[3]
    if dice.random() < 0.1:
        faces = bytearray(FACE_BYTES)
        if dice.random() < 0.5:
            struct.pack_into("<f", faces, 4 * dice.randrange(FACE_BYTES // 4), dice.choice(VALUES))
        fields[2] = content(2, bytes(faces))
        fields[5] = number(5, 1)
    for field in (6, 7, 8):
        if dice.random() < 0.4:
            fields[field] = number(field, dice.choice(NUMBERS))
    if dice.random() < 0.1:
        fields[9] = real(dice.randrange(1, 12), 1.5) + varint(3 << 3 | dice.randrange(8))
    order = list(fields.values())
    if dice.random() < 0.3:
        dice.shuffle(order)
    return b"".join(order)


def _small(dice: random.Random) -> bytes:
    return content(1, dice.choice(NAMES)) + number(2, dice.choice(NUMBERS))


def _floats(dice: random.Random, size: int) -> bytes:
    data = bytearray(dice.randbytes(4) * (size // 4 + 1) if dice.random() < 0.1 else size)[:size]
    if size >= 4 and dice.random() < 0.3:
        struct.pack_into("<f", data, 4 * dice.randrange(size // 4), dice.choice(VALUES))
    return bytes(data)


# --- the port -------------------------------------------------------------------------------------

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Return an HTTP/2 frame, whose length may be a lie."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: bytes) -> bytes:
    """Return an HPACK block without tables and Huffman codes."""
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
        (b"te", b"trailers"), (b"content-type", b"application/grpc"),
    ]  # fmt: skip
    return b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields
    )


def messages_of(length: int, payload: bytes, compressed: int = 0) -> bytes:
    """Return gRPC's framing of a message, whose length may be a lie."""
    return bytes([compressed]) + struct.pack(">I", length) + payload


def connections(seed: int, count: int) -> Iterator[bytes]:
    """Yield what a client that is no client sends."""
    dice = random.Random(seed)
    path = f"/{SERVICE}/InferBatchComposite".encode()
    begin = PREFACE + frame(SETTINGS, 0, 0, b"")
    call = begin + frame(HEADERS, 4, 1, headers(path))
    good = content(1, b"anna") + number(5, 1) + content(4, bytes(100))
    kinds = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        PREFACE[:10],
        begin,
        call,
        call + frame(DATA, 1, 1, messages_of(len(good), good)),
        call + frame(DATA, 1, 1, messages_of(len(good), good[:-3])),
        call + frame(DATA, 1, 1, messages_of(2**32 - 1, good)),  # 4 GB, it says
        call + frame(DATA, 1, 1, messages_of(2**31, b"")),
        call + frame(DATA, 1, 1, messages_of(len(good), good, compressed=1)),
        call + frame(DATA, 1, 1, b"\0\0"),
        call + frame(DATA, 0, 1, b"", length=2**24 - 1),
        call + frame(DATA, 0, 1, messages_of(90 << 20, b"")) + frame(RESET, 0, 1, b"\0\0\0\x08"),
        begin + frame(HEADERS, 4, 1, headers(path)[:-5]),
        begin + frame(HEADERS, 0, 1, headers(path)) + frame(CONTINUATION, 0, 1, b"\x00" * 50) * 30,
        begin + frame(HEADERS, 4, 0, headers(path)),
        begin + frame(HEADERS, 4, 2, headers(path)),
        begin + frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 2**32 - 1)),
        begin + frame(SETTINGS, 0, 0, b"12345"),
        begin + frame(WINDOW, 0, 0, struct.pack(">I", 2**31 - 1)) * 3,
        begin + frame(PING, 0, 0, b"12345678") * 50,
        begin + frame(GO_AWAY, 0, 0, bytes(8)),
        begin + frame(250, 255, 2**31 - 1, b"x" * 40),
        begin + b"".join(
            frame(HEADERS, 4, stream, headers(path)) + frame(RESET, 0, stream, b"\0\0\0\x08")
            for stream in range(1, 61, 2)
        ),
    ]  # fmt: skip
    yield from kinds
    for _ in range(count - len(kinds)):
        if dice.random() < 0.2:
            yield dice.randbytes(dice.choice((1, 10, 1000, 20_000)))
            continue
        data = dice.choice(kinds)
        for _ in range(dice.choice((1, 2, 4))):
            data = mutate_bytes(data, kinds, dice)
        yield data[: 1 << 18]


def send(port: int, data: bytes) -> None:
    """Send bytes, and read until the server has nothing more to say or closes."""
    with connected(port) as connection:
        connection.settimeout(0.02)  # many get no answer
        try:
            connection.sendall(data)
            while connection.recv(1 << 16):
                pass
        except (TimeoutError, ConnectionError, BrokenPipeError):
            pass


def connected(port: int) -> socket.socket:
    """Connect; the server may be starting anew."""
    for left in reversed(range(300)):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionError:
            if not left:
                raise
            time.sleep(0.1)
    raise AssertionError


def resident() -> int:
    """Return this process's memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
