"""Protobuf by hand: fields as bytes, and bytes as fields."""

import struct


def varint(value: int) -> bytes:
    value %= 1 << 64  # negative numbers take ten bytes
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def content(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def real(field: int, value: float) -> bytes:
    return varint(field << 3 | 5) + struct.pack("<f", value)


def read(message: bytes) -> list[tuple[int, int | bytes | float]]:
    """Return the fields of a message in their order; those of 32 bits as float."""
    place, found = 0, []

    def read_varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        key = read_varint()
        if key & 7 == 0:
            found.append((key >> 3, read_varint()))
        elif key & 7 == 2:
            size = read_varint()
            found.append((key >> 3, message[place : place + size]))
            place += size
        else:
            assert key & 7 == 5
            found.append((key >> 3, struct.unpack_from("<f", message, place)[0]))
            place += 4
    return found
