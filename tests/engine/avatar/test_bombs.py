"""Frames that are small files and large pictures, or hold chunks that decompress to gigabytes."""

import io
import json
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine import Avatar, InputError

pytestmark = [
    pytest.mark.usefixtures("limits"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

SIZE = 48
GIB = 1 << 30


@cache
def zeros(count: int) -> bytes:
    """Return a zlib stream of so many zeros, without compressing all of them."""
    part = 1 << 20
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = encoder.compress(bytes(part)) + encoder.flush(zlib.Z_FULL_FLUSH)
    checksum = struct.pack(">HH", count % 65521, 1)  # Adler-32
    return (
        b"\x78\x9c" + block * (count // part) + zlib.compress(bytes(count % part))[2:-4] + checksum
    )


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return struct.pack(">I4s", size, kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


SHADES = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
PIXELS = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in SHADES)))


def write_avatar(root: Path, data: bytes, name: str = "0.png") -> Path:
    (root / "frames").mkdir(parents=True)
    (root / "frames" / name).write_bytes(data)
    (root / "boxes.json").write_text(json.dumps([[5, 5, 15, 15]]))
    record = {
        **{"name": "a", "fps": 25, "frames": "frames", "boxes": "boxes.json"},
        **{"generator": "generator.onnx", "audio_encoder": "audio_encoder.onnx"},
    }
    (root / "avatar.json").write_text(json.dumps(record))
    return root


def read(root: Path) -> np.ndarray:
    return Avatar.load(root, networks=False).batch([0])[0][0].numpy()


def refused(root: Path) -> str:
    """Return the error line, which must not be due to the limit of the memory."""
    with pytest.raises(InputError) as caught:
        read(root)
    error: BaseException | None = caught.value
    while error is not None:
        assert not isinstance(error, MemoryError)
        error = error.__cause__ or error.__context__
    return str(caught.value)


def test_the_bombs_are_bombs():
    assert zlib.decompress(zeros(3_000_001)) == bytes(3_000_001)
    assert len(zeros(2 * GIB)) < 3_000_000
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(png(header(SIZE, SIZE), PIXELS)))), SHADES
    )


BOMBS = {
    "zTXt": lambda: chunk(b"zTXt", b"Comment\0\0" + zeros(2 * GIB)),
    "iTXt": lambda: chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros(2 * GIB)),
    "iCCP": lambda: chunk(b"iCCP", b"profile\0\0" + zeros(2 * GIB)),
    "many zTXt": lambda: b"".join(
        chunk(b"zTXt", b"%d\0\0" % number + zeros((1 << 20) - 1)) for number in range(2048)
    ),
}


@pytest.mark.parametrize("place", ["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("kind", BOMBS)
def test_chunks_of_gigabytes(tmp_path, kind, place):
    chunks = [BOMBS[kind](), PIXELS] if place.startswith("before") else [PIXELS, BOMBS[kind]()]
    root = write_avatar(tmp_path / "avatar", png(header(SIZE, SIZE), *chunks))
    assert refused(root).endswith("0.png cannot be read as an image (JPEG or PNG)")


def test_more_pixels_than_the_header_says(tmp_path):
    root = write_avatar(
        tmp_path / "avatar", png(header(SIZE, SIZE), chunk(b"IDAT", zeros(2 * GIB)))
    )
    assert np.array_equal(read(root), np.zeros((SIZE, SIZE, 3), np.uint8))


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"eXIf", b"noNe"])
def test_chunks_that_claim_gigabytes(tmp_path, kind, length):
    data = png(header(SIZE, SIZE), chunk(kind, b"a\0\0" + zeros(99), length), PIXELS)
    root = write_avatar(tmp_path / "avatar", data)
    assert refused(root).endswith("0.png cannot be read as an image (JPEG or PNG)")


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1])
def test_pixels_that_claim_gigabytes(tmp_path, length):
    """Pillow asks for as many bytes, of which the system gives only those that are written to."""
    data = png(header(SIZE, SIZE), chunk(b"IDAT", b"a\0\0" + zeros(99), length), PIXELS)
    root = write_avatar(tmp_path / "avatar", data)
    with pytest.raises(InputError, match=r"0\.png cannot be read as an image"):
        read(root)


SIDES = [(2**31 - 1, 2**31 - 1), (60000, 60000), (13000, 13000), (2**31 - 1, 1), (1, 2**31 - 1)]


@pytest.mark.parametrize(("width", "height"), SIDES)
def test_headers_of_too_many_pixels(tmp_path, width, height):
    """Pillow refuses the largest ones, and this engine the others."""
    root = write_avatar(tmp_path / "avatar", png(header(width, height), PIXELS))
    of_pillow = width * height > 178_956_970
    expected = "0.png cannot be read as an image" if of_pillow else f"frames of {width} x {height};"
    assert expected in refused(root)


def test_the_largest_frame_without_its_pixels(tmp_path):
    root = write_avatar(tmp_path / "avatar", png(header(4096, 4096), PIXELS))
    assert "0.png cannot be read as an image" in refused(root)


@pytest.mark.parametrize("side", [65535, 12000])
def test_a_jpeg_header_of_too_many_pixels(tmp_path, side):
    file = io.BytesIO()
    Image.fromarray(SHADES).save(file, "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    assert struct.unpack_from(">HH", data, at) == (SIZE, SIZE)
    struct.pack_into(">HH", data, at, side, side)
    of_pillow = side * side > 178_956_970
    expected = "0.jpg cannot be read as an image" if of_pillow else f"frames of {side} x {side};"
    assert expected in refused(write_avatar(tmp_path / "avatar", bytes(data), "0.jpg"))
