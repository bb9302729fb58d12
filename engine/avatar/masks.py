"""Masks of an avatar: pixels that a render keeps, because something is in front of the face."""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..errors import InputError
from .folder import Folder
from .frames import ImageFolder

MASK_SUFFIXES = (".png",)


class MaskFolder:
    """A list of mask images in an avatar folder, as a source of packed masks.

    A mask keeps the pixels that are pure red or pure white. (To OpenCV, whose pixels are BGR, red
    is (0, 0, 255).) Opening reads only the headers. A warning says, when the last one has been
    decoded, that none of them keeps a pixel.

    Args:
        path: the folder of the images, for messages.
        paths: the images.
        height, width: size of the avatar's frames.

    Raises:
        InputError: as `ImageFolder`, or a mask does not have the size of the frames.
    """

    pixel_aspect = Fraction(1)

    def __init__(self, folder: Folder, path: Path, paths: list[Path], height: int, width: int):
        self.path, self.height, self.width = path, height, width
        self._images = ImageFolder(folder, paths, what="mask")
        if (self._images.height, self._images.width) != (height, width):
            raise InputError(
                f"{paths[0]} is {self._images.width} x {self._images.height}; expected "
                f"{width} x {height}, the size of the frames"
            )
        self._unseen: set[int] | None = set(range(len(paths)))  # None: a pixel is kept

    def __len__(self) -> int:
        return len(self._images)

    def check_count(self, used: int, frames: int, first_number: int) -> None:
        """Check that there is a mask for each frame, and warn if there are more.

        Those of frames that are not used do not count from then on.

        Args:
            used: how many of the avatar's frames are used, of `frames`.
            first_number: number of the first one.

        Raises:
            InputError: there are fewer masks than used frames.
        """
        if len(self) < used:
            raise InputError(
                f"{self.path} has {len(self)} masks for {used} frames; number "
                f"{first_number + len(self)} is missing"
            )
        if len(self) > frames:
            warnings.warn(
                f"{self.path} has {len(self)} masks for {frames} frames; "
                f"the first {frames} are used",
                stacklevel=3,
            )
        if self._unseen is not None:
            self._unseen &= set(range(used))

    def decode(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        for decoded, rgb in self._images.decode(number):
            packed = pack(kept_pixels(rgb))
            self._look(decoded, packed)
            yield decoded, packed

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        """Return (H, ceil(W / 8)) uint8 of bits, as `kernels.composite` takes them."""
        return frame

    def size(self, frame: np.ndarray) -> int:
        return frame.nbytes

    def _look(self, number: int, packed: np.ndarray) -> None:
        if self._unseen is None:
            return
        self._unseen.discard(number)
        if packed.any():
            self._unseen = None
        elif not self._unseen:
            self._unseen = None
            warnings.warn(
                f"{self.path}: no mask has a pixel that is pure red or pure white, so none of them "
                "changes anything",
                stacklevel=2,
            )


def kept_pixels(rgb: np.ndarray) -> np.ndarray:
    """Return where (H, W, 3) uint8 is pure red or pure white: (H, W) bool."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return (red == 255) & (green == blue) & ((green == 0) | (green == 255))


def pack(mask: np.ndarray) -> np.ndarray:
    """Pack (H, W) bool into bits, the first pixel in the lowest one: (H, ceil(W / 8)) uint8."""
    return np.packbits(mask, axis=1, bitorder="little")


def row_bytes(width: int) -> int:
    """Return the bytes of a packed row of `width` pixels."""
    return -(-width // 8)
