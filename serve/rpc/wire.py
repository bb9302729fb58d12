"""Large fields of a protobuf message, without a copy.

Parsing copies a field of 60 MB, and reading it from the parsed message copies it again, both with
the GIL held: 50 ms in which the event loop stands still.
"""

from collections.abc import Collection

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types; groups (3 and 4) are not in use any more
MOST_FIELDS = 1000  # of a message; each takes a microsecond here, and 50 MB could hold 25 million


def cut_bytes(message: bytes, numbers: Collection[int]) -> tuple[bytes, dict[int, memoryview]]:
    """Cut some fields of the type `bytes` out of a message.

    Returns:
        The message without them, and the content of each that is there. Of a field that is there
        more than once the last one counts, as everywhere in protobuf. A message that is damaged,
        has groups or has very many fields comes back whole: the parser decides what it is.
    """
    view, found = memoryview(message), dict[int, memoryview]()
    rest, kept, place, size, fields = list[memoryview](), 0, 0, len(message), 0
    try:
        while place < size:
            fields += 1
            if fields > MOST_FIELDS:
                return message, {}
            begin = place
            key, place = _varint(message, place)
            kind = key & 7
            if kind == BYTES:
                length, place = _varint(message, place)
                first, place = place, place + length
                if key >> 3 in numbers and place <= size:
                    found[key >> 3] = view[first:place]
                    rest.append(view[kept:begin])
                    kept = place
            elif kind == VARINT:
                _, place = _varint(message, place)
            elif kind in (FIXED64, FIXED32):
                place += 8 if kind == FIXED64 else 4
            else:
                return message, {}
    except (IndexError, ValueError):
        return message, {}
    if place != size:
        return message, {}
    return b"".join([*rest, view[kept:]]), found


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """Return a number and the place after it.

    Raises:
        ValueError: it is longer than 64 bits.
        IndexError: the message ends in it.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a varint of more than 10 bytes")
