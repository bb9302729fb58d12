"""Frames of an avatar, decoded on demand from images or a video, through a bounded cache."""

import os
import struct
import warnings
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError
from .folder import Folder

CACHE_BYTES = 128 << 20
# Frames from one keyframe to the next. Where backward playback finds a frame no longer in the
# cache, it decodes all from the keyframe on: 300 take half a second at 1280 x 720. Encoders make a
# keyframe every 250 frames or more often.
LONGEST_GROUP = 300
MAX_IMAGE_BYTES = 256_000_000  # of a file; 4096 x 4096 pixels of 64 bits take 134 MB
FORMATS = ("PNG", "JPEG")  # Pillow's other decoders are never used, whatever the file contains
MAX_EXIF_BYTES = 1 << 16  # read from a PNG; a JPEG cannot have more
# EXIF orientation -> the transposition that makes the image upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Source(Protocol):
    """A source of decoded frames.

    The source chooses how it keeps a decoded frame: a video keeps YUV 4:2:0, half the size of RGB.
    `pixels` converts to RGB.

    Attributes:
        height, width: size of every frame in pixels.
        pixel_aspect: displayed width of a pixel divided by its height.
    """

    height: int
    width: int
    pixel_aspect: Fraction

    def __len__(self) -> int: ...

    def decode(self, number: int) -> Iterator[tuple[int, Any]]:
        """Yield the frames that must be decoded to get frame `number`, which is the last one."""
        ...

    def pixels(self, frame: Any) -> np.ndarray:
        """Convert to (H, W, 3) uint8 RGB."""
        ...

    def size(self, frame: Any) -> int:
        """Return the bytes that a frame takes."""
        ...


class ImageFolder:
    """A list of image files of one size in an avatar folder. Opening reads only their headers.

    Pixels equal those of `cv2.imread`: 16 bits are truncated to 8, alpha and color profiles are
    ignored, and the EXIF orientation is applied. A CMYK JPEG may differ by 2 levels.

    Args:
        what: "frame" or "mask", for errors.

    Raises:
        InputError: a file is not an image, is refused by `Folder.open`, or differs in size from the
            first one.
    """

    pixel_aspect = Fraction(1)

    def __init__(self, folder: Folder, paths: list[Path], *, what: str = "frame"):
        self._folder, self._paths = folder, paths
        self._turns: list[Image.Transpose | None] = []
        self.height = self.width = 0
        for number, path in enumerate(paths):
            with folder.open(path, MAX_IMAGE_BYTES) as file, _decoding(path):
                image = Image.open(file, formats=FORMATS)
                width, height = image.size
                orientation = _orientation(file, image)
            self._turns.append(TURNS.get(orientation))
            if orientation >= 5:  # stored on its side
                width, height = height, width
            if number == 0:
                self.height, self.width = height, width
            elif (height, width) != (self.height, self.width):
                raise InputError(
                    f"{what} {number} ({path}) is {width} x {height}; expected "
                    f"{self.width} x {self.height}, the size of {what} 0"
                )

    def __len__(self) -> int:
        return len(self._paths)

    def decode(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        path, turn = self._paths[number], self._turns[number]
        frame = None
        with self._folder.open(path, MAX_IMAGE_BYTES) as file, _decoding(path):
            image = Image.open(file, formats=FORMATS)
            if sorted(image.size) == sorted((self.height, self.width)):
                rgb = _rgb(image)
                frame = np.asarray(rgb if turn is None else rgb.transpose(turn))
        if frame is None or frame.shape[:2] != (self.height, self.width):
            raise InputError(f"{path} changed its size while it was in use")
        yield number, frame

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        return frame

    def size(self, frame: np.ndarray) -> int:
        return frame.nbytes


class VideoFile:
    """The frames of a video, in display order.

    A warning names the damaged frames once, when the first of them is decoded. Another one says
    that there are too few keyframes.

    Raises:
        InputError: the video cannot be read, or `media.policy` refuses it.
    """

    def __init__(self, path: Path):
        # late, because folders of images need no FFmpeg
        from ..media import policy
        from ..media.video import Video

        self._path, self._policy = path, policy
        self._video = Video(path)
        policy.check_video(path, self._video.stream, "avatar")
        self.height, self.width = self._video.height, self._video.width
        self.pixel_aspect = self._video.stream.pixel_aspect
        self.fps = self._video.fps
        self.pixels = self._video.pixels
        self._starts = list(self._video.keyframes)
        self._decoder: Iterator[tuple[int, Any]] | None = None
        self._peeked: tuple[int, Any] | None = None
        self._next = 0  # number of the frame that the decoder returns next
        self._damage_reported = False
        starts = [*self._starts, len(self)]
        longest = max(end - start for start, end in pairwise(starts))
        if longest > LONGEST_GROUP:
            warnings.warn(
                f"{path} has {longest} frames from one keyframe to the next, which makes backward "
                "playback slow; for more keyframes: "
                "ffmpeg -i IN -c:v libx264 -crf 12 -g 25 -an OUT.mp4",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self._video)

    def decode(self, number: int) -> Iterator[tuple[int, Any]]:
        # Continuing from the decoder's position is cheapest, unless there is a keyframe in between.
        if self._decoder is None or not self._start_for(number) <= self._next <= number:
            start = self._seek(number)
            while self._next > start > 0:
                # With intra refresh, decoding from here returns the first frames late and inexact.
                self._starts.remove(start)
                start = self._seek(number)
        given = None
        while self._next <= number:
            given, frame = self._advance()
            yield given, frame
        if given != number:
            raise InputError(f"{self._path}: frame {number} cannot be decoded; it is damaged")

    def size(self, frame: Any) -> int:
        return sum(plane.buffer_size for plane in frame.planes)

    def _start_for(self, number: int) -> int:
        return self._starts[bisect_right(self._starts, number) - 1]

    def _seek(self, number: int) -> int:
        """Start decoding at the keyframe that frame `number` needs, and return its number."""
        start = self._start_for(number)
        self._decoder = self._video.frames(start)
        self._peek()
        if self._next > start == 0:
            self._report_damage()
        return start

    def _advance(self) -> tuple[int, Any]:
        current = self._peeked
        assert current is not None
        self._peek()
        if self._next > current[0] + 1 or self._video.is_damaged(*current):
            self._report_damage()
        return current

    def _peek(self) -> None:
        assert self._decoder is not None
        self._peeked = next(self._decoder, None)
        self._next = len(self) if self._peeked is None else self._peeked[0]

    def _report_damage(self) -> None:
        if not self._damage_reported:
            self._damage_reported = True
            damaged = self._video.damaged_frames()
            self._policy.check_damage(self._path, damaged, len(self), "avatar")


class FrameCache:
    """A cache of the decoded frames that were used last. Any number of threads may read.

    Reverse playback needs frames in the opposite order of decoding. Decoding frame n also decodes
    the frames from the keyframe to it. The cache keeps these, because they are needed next.
    """

    def __init__(self, source: Source, capacity_bytes: int = CACHE_BYTES):
        self._source = source
        self.capacity_bytes, self._bytes = capacity_bytes, 0
        self._kept: OrderedDict[int, Any] = OrderedDict()  # by last use, the oldest first
        self._lock = Lock()

    def read(self, numbers: list[int], out: np.ndarray) -> None:
        """Write the frames of these numbers into `out`, (n, H, W, 3) uint8 RGB, or the masks, see
        `MaskFolder.pixels`.

        Raises:
            InputError: a frame cannot be decoded.
        """
        with self._lock:
            for pixels, number in zip(out, numbers, strict=True):
                pixels[...] = self._source.pixels(self._frame(number))

    def _frame(self, number: int) -> Any:
        if number not in self._kept:
            for decoded, frame in self._source.decode(number):
                if decoded not in self._kept:
                    self._kept[decoded] = frame
                    self._bytes += self._source.size(frame)
                self._kept.move_to_end(decoded)
                while self._bytes > self.capacity_bytes and len(self._kept) > 1:
                    self._bytes -= self._source.size(self._kept.popitem(last=False)[1])
        if number not in self._kept:
            raise InputError(f"frame {number} of the avatar cannot be decoded")
        self._kept.move_to_end(number)
        return self._kept[number]


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB as OpenCV does."""
    if image.mode.startswith("I"):  # 16-bit gray, which `convert` clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.info.pop("transparency", None)  # `convert` would ignore it with a warning
    return image.convert("RGB")


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn what Pillow raises for a damaged image, which can be any exception, into one line.

    Even a MemoryError: it allocates as many bytes as a chunk of a PNG claims to have.
    """
    try:
        yield
    except Exception as error:
        raise InputError(f"{path} cannot be read as an image (JPEG or PNG)") from error


def _orientation(file: BinaryIO, image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) if its file does not say."""
    data = _png_exif(file.fileno()) if image.format == "PNG" else image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        orientation = exif.get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data
        return 1
    return orientation if isinstance(orientation, int) and 2 <= orientation <= 8 else 1


def _png_exif(file: int) -> bytes | None:
    """Return the EXIF data of a PNG, without decoding it.

    ImageMagick writes it after the pixels, where Pillow finds it only after it has decoded them.
    """
    position = 8
    while len(header := os.pread(file, 8, position)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if kind == b"eXIf":
            return os.pread(file, min(length, MAX_EXIF_BYTES), position + 8)
        if kind == b"IEND":
            break
        position += length + 12  # header, data and checksum
    return None
