"""Frames of an avatar on demand: out of a folder of images or a video, through a bounded cache."""

import os
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image

from ..errors import InputError

CACHE_BYTES = 128 << 20
MAX_EXIF_BYTES = 1 << 16  # in a PNG; a JPEG cannot have more
# EXIF orientation -> what makes an image upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# what Pillow raises for an image that is damaged, or larger than any frame
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class Source(Protocol):
    """Where decoded frames come from.

    A frame is whatever the source likes to keep, as a video likes YUV, which takes half the
    memory of pixels; `pixels` makes those. `height` and `width` are those of every frame;
    `pixel_aspect` is a pixel's width by its height, as it is to be shown.
    """

    height: int
    width: int
    pixel_aspect: Fraction

    def __len__(self) -> int: ...

    def decode(self, number: int) -> Iterator[tuple[int, Any]]:
        """Frames that have to be decoded to get at frame `number`, which is the last of them."""
        ...

    def pixels(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        ...

    def size(self, frame: Any) -> int:
        """Bytes that a frame takes."""
        ...


class ImageFolder:
    """A list of image files of one size, each a frame. Opening reads their headers only.

    Pixels equal those of `cv2.imread`: 16 bits are truncated to 8, alpha and color profiles are
    ignored, and the EXIF orientation is applied. Those of a CMYK JPEG may differ by 2 levels.

    Raises:
        InputError: a file that is not an image, or not of the first one's size.
    """

    pixel_aspect = Fraction(1)

    def __init__(self, paths: list[Path]):
        self._paths = paths
        self._turns: list[Image.Transpose | None] = []
        self.height = self.width = 0
        for number, path in enumerate(paths):
            try:
                with Image.open(path) as image:
                    width, height = image.size
                    orientation = _orientation(path, image)
            except UNREADABLE as error:
                raise _unreadable(path) from error
            self._turns.append(TURNS.get(orientation))
            if orientation >= 5:  # stored on its side
                width, height = height, width
            if number == 0:
                self.height, self.width = height, width
            elif (height, width) != (self.height, self.width):
                raise InputError(
                    f"frame {number} ({path}) is {width} x {height}, frame 0 is "
                    f"{self.width} x {self.height}: all frames of an avatar have one size"
                )

    def __len__(self) -> int:
        return len(self._paths)

    def decode(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        path, turn = self._paths[number], self._turns[number]
        try:
            with Image.open(path) as image:
                rgb = _rgb(image)
        except UNREADABLE as error:
            raise _unreadable(path) from error
        frame = np.asarray(rgb if turn is None else rgb.transpose(turn))
        if frame.shape[:2] != (self.height, self.width):
            raise InputError(f"{path} changed its size while it was in use")
        yield number, frame

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        return frame

    def size(self, frame: np.ndarray) -> int:
        return frame.nbytes


class VideoFile:
    """A video whose frames, in the order they are shown, are the avatar's.

    Damaged frames are warned of once, when the first of them is decoded.

    Raises:
        InputError: a video that cannot be read, or is refused by `media.policy`.
    """

    def __init__(self, path: Path):
        # here: folders of images need no FFmpeg
        from ..media import policy
        from ..media.video import Video

        self._path, self._policy = path, policy
        self._video = Video(path)
        policy.judge(path, self._video.stream, "avatar")
        self.height, self.width = self._video.height, self._video.width
        self.pixel_aspect = self._video.stream.pixel_aspect
        self.fps = self._video.fps
        self.pixels = self._video.pixels
        self._starts = list(self._video.keyframes)
        self._decoder: Iterator[tuple[int, Any]] | None = None
        self._peeked: tuple[int, Any] | None = None
        self._next = 0  # what the decoder gives next
        self._damage_told = False

    def __len__(self) -> int:
        return len(self._video)

    def decode(self, number: int) -> Iterator[tuple[int, Any]]:
        # Going on from where the decoder stands is cheapest, unless a keyframe lies between.
        if self._decoder is None or not self._start_for(number) <= self._next <= number:
            start = self._seek(number)
            while self._next > start > 0:
                # Intra refresh: the frames after it come out only later, and not quite right.
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
            self._tell_damage()
        return start

    def _advance(self) -> tuple[int, Any]:
        current = self._peeked
        assert current is not None
        self._peek()
        if self._next > current[0] + 1 or self._video.is_damaged(*current):
            self._tell_damage()
        return current

    def _peek(self) -> None:
        assert self._decoder is not None
        self._peeked = next(self._decoder, None)
        self._next = len(self) if self._peeked is None else self._peeked[0]

    def _tell_damage(self) -> None:
        if not self._damage_told:
            self._damage_told = True
            damaged = self._video.damaged_frames()
            self._policy.judge_damage(self._path, damaged, len(self), "avatar")


class FrameCache:
    """The frames of a source, the ones used last kept decoded. Any number of threads may read.

    Playing a video backwards needs frames in the opposite order of decoding: the cache keeps the
    last ones of what was decoded to get at one, which are those wanted next.
    """

    def __init__(self, source: Source, capacity_bytes: int = CACHE_BYTES):
        self._source = source
        self._capacity, self._bytes = capacity_bytes, 0
        self._kept: OrderedDict[int, Any] = OrderedDict()  # the ones used last last
        self._lock = Lock()

    def read(self, numbers: list[int], out: np.ndarray) -> None:
        """Write the frames of these numbers into `out`, (n, H, W, 3) uint8 RGB.

        Raises:
            InputError: a frame that cannot be decoded.
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
                while self._bytes > self._capacity and len(self._kept) > 1:
                    self._bytes -= self._source.size(self._kept.popitem(last=False)[1])
        if number not in self._kept:
            raise InputError(f"frame {number} of the avatar cannot be decoded")
        self._kept.move_to_end(number)
        return self._kept[number]


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB as OpenCV does."""
    if image.mode.startswith("I"):  # 16-bit gray, which `convert` clips at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.info.pop("transparency", None)  # ignored by `convert`, with a warning
    return image.convert("RGB")


def _orientation(path: Path, image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8; 1 (upright) if its file does not say."""
    data = _png_exif(path) if image.format == "PNG" else image.info.get("exif")
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        orientation = exif.get(ExifTags.Base.Orientation)
    except (*UNREADABLE, struct.error):  # damaged EXIF data says nothing
        return 1
    return orientation if isinstance(orientation, int) and 2 <= orientation <= 8 else 1


def _png_exif(path: Path) -> bytes | None:
    """Return the EXIF data of a PNG, without decoding it.

    ImageMagick writes it after the pixels, where Pillow finds it only after it has decoded them.
    """
    with open(path, "rb", buffering=0) as file:
        file.seek(8)
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"eXIf":
                return file.read(min(length, MAX_EXIF_BYTES))
            if kind == b"IEND":
                break
            file.seek(length + 4, os.SEEK_CUR)  # and its checksum
    return None


def _unreadable(path: Path) -> InputError:
    return InputError(f"{path} cannot be read as an image (JPEG or PNG)")
