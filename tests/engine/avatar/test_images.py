"""Frames from image files against OpenCV, with which the SyncTalk 2D family reads them."""

import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from engine import InputError
from engine.avatar.folder import Folder
from engine.avatar.frames import FrameCache, ImageFolder
from tests.tolerances import TOLERANCES, assert_close

HEIGHT, WIDTH = 24, 40
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of the PNG specification
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}


def read(path) -> np.ndarray:
    folder = ImageFolder(Folder(path.parent), [path])
    out = np.empty((1, folder.height, folder.width, 3), np.uint8)
    FrameCache(folder).read([0], out)
    return out[0]


def read_with_opencv(path, flags: int = 0) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_COLOR | flags)[..., ::-1]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, samples, bits=8, colour=RGB, before=(), behind=()):
    """Write a PNG of (H, W, channels) samples, with other chunks before and after its pixels."""
    rows = samples.reshape(len(samples), -1)
    packed = rows.astype(">u2").view(np.uint8) if bits == 16 else rows.astype(np.uint8)
    if bits < 8:
        places = np.arange(8 - bits, -1, -bits)
        packed = (rows.reshape(len(rows), -1, 8 // bits) << places).sum(-1).astype(np.uint8)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    size = struct.pack(">IIBBBBB", samples.shape[1], len(samples), bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", size), *before, (b"IDAT", data[:99]), (b"IDAT", data[99:]), *behind]
    parts = (chunk(*part) for part in (*chunks, (b"IEND", b"")))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A face's smooth shades, (24, 40, 3) uint8, all channels different."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [128 + 100 * np.sin(x / (3 + i)) * np.cos(y / (5 - i)) for i in range(3)]
    return np.stack(planes, axis=-1).astype(np.uint8)


PALETTES = [(b"PLTE", bytes(range(48)) * 16), (b"tRNS", bytes(range(256)))]


@pytest.mark.parametrize(
    ("bits", "colour", "before"),
    [
        *[(bits, GREY, []) for bits in (1, 2, 4, 8, 16)],
        *[(bits, colour, []) for bits in (8, 16) for colour in (RGB, GREY_ALPHA, RGBA)],
        *[(bits, PALETTE, [(b"PLTE", PALETTES[0][1][: 3 * 2**bits])]) for bits in (1, 2, 4, 8)],
        (8, PALETTE, PALETTES),  # some of the colors are transparent
        (8, RGB, [(b"tRNS", bytes(6))]),
        (16, GREY, [(b"tRNS", bytes(2))]),
        (16, GREY, [(b"sBIT", bytes([10]))]),
        (8, RGB, [(b"gAMA", struct.pack(">I", 100000))]),
    ],
)
def test_every_kind_of_png(tmp_path, bits, colour, before):
    shape = (HEIGHT, WIDTH, CHANNELS[colour])
    samples = np.random.default_rng(bits).integers(0, 2**bits, shape)
    edges = np.array([0, 127, 128, 255, 256, 65279, 65280, 65535])  # where 16 bits are cut to 8
    samples.reshape(-1)[: len(edges)] = edges % 2**bits
    path = write_png(tmp_path / "0.png", samples, bits, colour, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read(path), read_with_opencv(path))


def test_16_bits_of_grey_are_not_white(tmp_path):
    """The result is the first byte of each sample."""
    samples = np.array([[[0], [127], [256], [32768], [65280], [65535]]])
    path = write_png(tmp_path / "0.png", samples, 16, GREY)
    assert read(path)[0].tolist() == [[v] * 3 for v in (0, 0, 1, 128, 255, 255)]


def save_jpeg(path, image: Image.Image, **options):
    image.save(path, quality=95, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"progressive": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_every_kind_of_jpeg(tmp_path, picture, mode, options):
    path = save_jpeg(tmp_path / "0.jpg", Image.fromarray(picture).convert(mode), **options)
    kind = "JPEG of CMYK" if mode == "CMYK" else "JPEG of RGB or grey"
    assert_close(read(path), read_with_opencv(path), TOLERANCES[kind, torch.uint8, "OpenCV"])


# --- EXIF ----------------------------------------------------------------------------------------


def exif(orientation: int, order: str = "<", kind: int = 3, count: int = 1) -> bytes:
    """Return EXIF data with one tag, by default of type SHORT."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, kind, count, orientation, 0)
    return head + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def jpeg_with(path, picture, segment: bytes):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    path.write_bytes(
        data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    )
    return path


def upright(lying: np.ndarray, orientation: int) -> np.ndarray:
    """Return the upright image, given that row 0 and column 0 of `lying` are where EXIF's table
    says."""
    return {
        1: lying,  # top, left
        2: lying[:, ::-1],  # top, right
        3: lying[::-1, ::-1],  # bottom, right
        4: lying[::-1],  # bottom, left
        5: lying.swapaxes(0, 1),  # left, top
        6: np.rot90(lying, -1),  # right, top
        7: lying[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: np.rot90(lying),  # left, bottom
    }[orientation]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("where", ["jpeg", "png", "png, behind the pixels"])
def test_exif_orientation(tmp_path, picture, where, orientation, order):
    data = exif(orientation, order)
    if where == "jpeg":
        path = jpeg_with(tmp_path / "0.jpg", picture, b"Exif\0\0" + data)
        lying = read_with_opencv(path, cv2.IMREAD_IGNORE_ORIENTATION)
    else:
        place = "behind" if "behind" in where else "before"
        path = write_png(tmp_path / "0.png", picture, **{place: [(b"eXIf", data)]})
        lying = picture
    found = read(path)
    assert np.array_equal(found, upright(lying, orientation))
    assert np.array_equal(found, read_with_opencv(path))


def test_exif_of_16_bits_of_grey(tmp_path):
    samples = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 1))
    path = write_png(tmp_path / "0.png", samples, 16, GREY, [(b"eXIf", exif(6))])
    assert np.array_equal(read(path), read_with_opencv(path))
    assert read(path).shape == (WIDTH, HEIGHT, 3)


XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "segment",
    [
        b"Exif\0\0" + exif(0),
        b"Exif\0\0" + exif(9),
        b"Exif\0\0" + exif(ord("6"), kind=2, count=4),  # text
        b"Exif\0\0" + exif(6)[:14],
        b"Exif\0\0",
        b"Exif\0\0no EXIF data",
        XMP,  # notes of programs, which viewers ignore
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_images_without_a_valid_orientation(tmp_path, picture, segment):
    path = jpeg_with(tmp_path / "0.jpg", picture, segment)
    found = read(path)
    assert found.shape == picture.shape
    assert np.array_equal(found, read_with_opencv(path))


@pytest.mark.parametrize(("kind", "count"), [(1, 2), (2, 2), (2, 4), (5, 1), (7, 1), (7, 4), (10, 1), (11, 1), (12, 1)])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_orientation_that_is_no_whole_number(tmp_path, picture, kind, count):
    """Bytes, text, fractions and floats say nothing, although OpenCV takes some of them for 6."""
    path = jpeg_with(tmp_path / "0.jpg", picture, b"Exif\0\0" + exif(6, kind=kind, count=count))
    assert np.array_equal(read(path), read_with_opencv(path, cv2.IMREAD_IGNORE_ORIENTATION))


def test_several_pictures_in_one_jpeg(tmp_path, picture):
    """Phones append a preview. The orientation applies all the same."""
    turn = Image.Exif()
    turn[0x0112] = 8
    first, second = Image.fromarray(picture), Image.fromarray(picture[::2, ::2])
    path = tmp_path / "0.jpg"
    first.save(path, "MPO", save_all=True, append_images=[second], exif=turn.tobytes())
    assert read(path).shape == (WIDTH, HEIGHT, 3)
    assert np.array_equal(read(path), read_with_opencv(path))


# --- faults --------------------------------------------------------------------------------------


def test_sizes_are_those_of_upright_images(tmp_path, picture):
    paths = [
        write_png(tmp_path / "0.png", picture),
        write_png(tmp_path / "1.png", np.rot90(picture), behind=[(b"eXIf", exif(6))]),
        write_png(tmp_path / "2.png", picture, before=[(b"eXIf", exif(6))]),
    ]
    folder = ImageFolder(Folder(tmp_path), paths[:2])
    assert (folder.height, folder.width) == (HEIGHT, WIDTH)
    with pytest.raises(
        InputError, match=r"2.png\) is 24 x 40; expected 40 x 24, the size of frame 0"
    ):
        ImageFolder(Folder(tmp_path), paths)


def test_a_truncated_image(tmp_path, picture):
    path = tmp_path / "0.png"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    folder = ImageFolder(Folder(tmp_path), [path])  # its header can be read
    with pytest.raises(InputError, match=r"0.png cannot be read as an image"):
        FrameCache(folder).read([0], np.empty((1, HEIGHT, WIDTH, 3), np.uint8))
