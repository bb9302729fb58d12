"""Change files: bytes without regard to their meaning, or parts of a known structure."""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Mutate = Callable[[bytes, list[bytes], random.Random], bytes]
"""A function of a file, all files of the target, and random numbers."""

NUMBERS = (0, 1, 2, 7, 16, 127, 128, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
WORDS = (b"\0", b"\xff" * 4, b"%s", b"..", b"/", b"\n", b"nan", b"1e999", b"-1", b"\xed\xa0\x80")


def mutate_bytes(data: bytes, files: list[bytes], random: random.Random) -> bytes:
    """Flip, overwrite, insert, remove, repeat, cut, or join with another file."""
    size = len(data)
    first = random.randrange(size + 1)
    # the beginning of a file, where its headers are, is more interesting
    if random.random() < 0.5:
        first = min(first, random.randrange(256))
    last = min(size, first + random.choice((1, 2, 4, 8, 64, 1024)))
    part = data[first:last]
    match random.randrange(9):
        case 0 if part:
            part = bytes([part[0] ^ 1 << random.randrange(8)]) + part[1:]
        case 1:
            part = random.randbytes(len(part))
        case 2:
            width, order = random.choice((1, 2, 4, 8)), random.choice(("little", "big"))
            part = (random.choice(NUMBERS) % 256**width).to_bytes(width, order)
            last = min(size, first + width)
        case 3:
            part += random.choice(WORDS)
        case 4:
            part = b""
        case 5:
            part *= random.choice((2, 2, 3, 100))
        case 6:
            return data[:first]
        case 7:
            other = random.choice(files)
            place = random.randrange(len(other) + 1)
            part = other[place : place + random.choice((4, 64, 1024, len(other)))]
        case _:
            part = part[::-1]
    return data[:first] + part + data[last:]


def mixed(structured: Mutate, share: float = 0.6) -> Mutate:
    """Return a mutator that uses a structure where it can, and bytes otherwise."""

    def mutate(data: bytes, files: list[bytes], random: random.Random) -> bytes:
        if random.random() < share:
            # a file that was changed before may have lost its structure, in any way
            with suppress(Exception):
                return structured(data, files, random)
        return mutate_bytes(data, files, random)

    return mutate


# --- JSON ----------------------------------------------------------------------------------------

# Raw JSON, so that numbers which Python cannot write are among it.
VALUES = (  # noqa: SIM905
    "null true false 0 -0.0 1 -1 0.5 1e308 1e400 -1e400 NaN Infinity 16777216 2147483648 1e999999 "
    '[] {} "" [[]] [null] "0" "1e999999999" "1/0" "-1/3" "24000/1001" ".." "/" "/dev/zero" "a/../.." '
    '"\\u0000" "\\ud800" "\\n" "frames" "frames/0.png" "avatar.json" [0,0,1,1] [0,0,1e9,1e9]'
).split()
LONG = ("9" * 400, f'"{"a" * 5000}"', "[" * 2000 + "]" * 2000, "[" + "0," * 5000 + "0]")
MARK = "d1f0c3"  # stands for a raw value until the JSON is written


def mutate_json(data: bytes, files: list[bytes], random: random.Random) -> bytes:
    """Replace, remove, repeat or move a value, or rename a key."""
    tree = json.loads(data)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                visit(node[key])

    root = [tree]
    visit(root)
    node, key = random.choice(places)
    other = random.choice(places)
    raw = random.choice(VALUES if random.random() < 0.9 else LONG)
    match random.randrange(6):
        case 0 if len(places) > 1 and node is not root:
            del node[key]
        case 1 if isinstance(node, dict):
            node[random.choice(("0", "-1", "01", "1.5", "", "x", "9" * 30, "rect"))] = node.pop(key)
        case 2 if isinstance(node, list) and node is not root:
            node.insert(key, node[key])
        case 3:
            node[key] = json.loads(json.dumps(other[0][other[1]]))
        case _:
            node[key] = MARK
    return json.dumps(root[0]).replace(f'"{MARK}"', raw).encode()


# --- files of chunks -----------------------------------------------------------------------------

Chunk = tuple[bytes, bytes]  # its name and its content
INNER = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"LIST", b"RIFF"}


def read_riff(data: bytes) -> list[Chunk]:
    """Read the chunks of WAV and AVI; the file is one of them, with others inside."""
    found, place = [], 0
    while place + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, place)
        found.append((name, data[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return found


def write_riff(chunks: list[Chunk]) -> bytes:
    return b"".join(n + struct.pack("<I", len(c)) + c + b"\0" * (len(c) % 2) for n, c in chunks)


def read_boxes(data: bytes) -> list[Chunk]:
    """Read the boxes of an MP4."""
    found, place = [], 0
    while place + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        size = max(size, 8)
        found.append((name, data[place + 8 : place + size]))
        place += size
    return found


def write_boxes(boxes: list[Chunk]) -> bytes:
    return b"".join(struct.pack(">I", len(c) + 8) + n + c for n, c in boxes)


PNG = b"\x89PNG\r\n\x1a\n"


def read_png(data: bytes) -> list[Chunk]:
    found, place = [], len(PNG)
    while place + 12 <= len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        found.append((name, data[place + 8 : place + 8 + size]))
        place += 12 + size
    return found


def write_png(chunks: list[Chunk]) -> bytes:
    """Write chunks with right checksums, without which nothing behind them is looked at."""
    parts = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]  # fmt: skip
    return PNG + b"".join(parts)


def mutate_chunks(data: bytes, files: list[bytes], random: random.Random) -> bytes:
    """Change one chunk of a WAV, AVI, MP4 or PNG; sizes and checksums stay right."""
    if data.startswith(PNG):
        return write_png(_changed(read_png(data), random, read_png, write_png))
    if data.startswith(b"RIFF"):
        return write_riff(_changed(read_riff(data), random, read_riff, write_riff))
    if data[4:8] == b"ftyp":
        return write_boxes(_changed(read_boxes(data), random, read_boxes, write_boxes))
    raise ValueError("has no chunks that are known here")


def _changed(
    chunks: list[Chunk],
    random: random.Random,
    read: Callable[[bytes], list[Chunk]],
    write: Callable[[list[Chunk]], bytes],
) -> list[Chunk]:
    place = random.randrange(len(chunks))
    name, content = chunks[place]
    if name in INNER and random.random() < 0.9:
        head = 4 if name in (b"RIFF", b"LIST") else 0
        inner = _changed(read(content[head:]), random, read, write)
        return [*chunks[:place], (name, content[:head] + write(inner)), *chunks[place + 1 :]]
    match random.randrange(6):
        case 0:
            return chunks[:place] + chunks[place + 1 :]
        case 1:
            return [*chunks[:place], chunks[place], *chunks[place:]]
        case 2:
            other = random.randrange(len(chunks))
            chunks[place], chunks[other] = chunks[other], chunks[place]
            return chunks
        case _:
            changed = name, mutate_bytes(content, [content], random)
            return [*chunks[:place], changed, *chunks[place + 1 :]]


# --- weights and networks ------------------------------------------------------------------------


def mutate_safetensors(data: bytes, files: list[bytes], random: random.Random) -> bytes:
    """Change the header's JSON; its length stays right."""
    (size,) = struct.unpack_from("<Q", data)
    header = mutate_json(data[8 : 8 + size], files, random)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def mutate_zip(data: bytes, files: list[bytes], random: random.Random) -> bytes:
    """Change the pickle or another member of a .pth; checksums stay right."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(written, "w") as new:
        names = old.namelist()
        pickles = [name for name in names if name.endswith("data.pkl")]
        chosen = random.choice(pickles if random.random() < 0.7 else names)
        for name in names:
            content = old.read(name)
            if name == chosen:
                content = mutate_bytes(content, [content], random)
            new.writestr(name, content)
    return written.getvalue()


def mutate_onnx(data: bytes, files: list[bytes], random: random.Random) -> bytes:
    """Change, remove or repeat one field of the model, its graph, or a node."""
    import onnx  # late, because the other mutators need no libraries

    model = onnx.ModelProto()
    model.ParseFromString(data)
    messages: list[Any] = [model]
    for message in messages:
        for description, value in message.ListFields():
            if description.message_type is not None:
                messages += value if description.is_repeated else [value]
    message = random.choice(messages)
    fields = message.ListFields()
    if not fields:
        raise ValueError("has no fields")
    description, value = random.choice(fields)
    name = description.name
    if description.is_repeated:
        place = random.randrange(len(value))
        if random.random() < 0.4 or description.message_type is not None:
            if random.random() < 0.5:
                del value[place]
            else:
                value.append(value[place])
        else:
            value[place] = _other(value[place], random)
    elif description.message_type is not None or random.random() < 0.2:
        message.ClearField(name)
    else:
        setattr(message, name, _other(value, random))
    return model.SerializeToString()


def _other(value: Any, random: random.Random) -> Any:
    if isinstance(value, bytes):
        return mutate_bytes(value, [value], random)
    if isinstance(value, str):
        return random.choice(("", "x", value * 2, value[:-1], "Loop", "Identity", "a\nb"))
    if isinstance(value, float):
        return random.choice((0.0, -1.0, 1e38, float("nan"), float("inf")))
    return random.choice((0, 1, 2, 6, 7, 16, -1, value + 1, 2**31 - 1))


# --- text ----------------------------------------------------------------------------------------


def mutate_lines(data: bytes, files: list[bytes], random: random.Random) -> bytes:
    """Change a word of a line, or remove or repeat the line."""
    lines = data.decode().splitlines()
    place = random.randrange(len(lines))
    words = lines[place].split()
    match random.randrange(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[place])
        case _ if words:
            words[random.randrange(len(words))] = random.choice((*VALUES[:16], "1_0", "\u0661", ""))
            lines[place] = " ".join(words)
    return "\n".join(lines).encode()
