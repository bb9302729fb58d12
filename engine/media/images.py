"""Write finished frames as numbered images; JPEGs are encoded on the GPU if nvImageCodec can."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..files import whole
from .jpeg import GpuJpegEncoder, on_gpu

IMAGE_FORMATS = ("png", "jpg")
QUALITY = 95


class ImageWriter:
    """Writes numbered images, 000000.png, 000001.png, ..., to a folder.

    A context manager. The folder gets its name when the block ends without an exception; otherwise
    nothing of it stays.

    Args:
        folder: does not exist yet, or is empty.
        kind: "png" or "jpg".
        quality: JPEG quality, 1 to 100. Chroma is not subsampled.

    Raises:
        InputError: the folder exists and is not empty, is a link or a mount point, or cannot be
            created.
    """

    def __init__(self, folder: str | os.PathLike, kind: str, *, quality: int = QUALITY):
        if not 1 <= quality <= 100:
            raise InputError(f"quality is {quality}; expected 1 to 100")
        self.folder, self._kind, self._written = Path(folder).absolute(), kind, 0
        self._options: dict[str, Any] = {"compress_level": 1}
        if kind == "jpg":
            self._options = {"quality": quality, "subsampling": 0}
        self._encoder: GpuJpegEncoder | None = None
        # Neither can be replaced by a folder, which would be noticed only at the end.
        if self.folder.is_symlink() or self.folder.is_mount():
            kind = "a link" if self.folder.is_symlink() else "a mount point"
            raise InputError(f"{folder} is {kind}; expected a new name or an empty folder")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{folder} exists; expected a new name or an empty folder")
        self._whole = whole(self.folder, folder=True)
        try:
            self._partial = self._whole.__enter__()
        except OSError as error:
            raise InputError(f"{folder} cannot be created: {error.strerror}") from error

    def write(self, frames: Tensor, pixels: np.ndarray) -> None:
        """Append frames, (n, H, W, 3) uint8 RGB on any device; `pixels` are the same frames on the
        host.

        Raises:
            OSError: the disk is full.
        """
        try:
            self._write(frames, pixels)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.folder)) from error

    def _write(self, frames: Tensor, pixels: np.ndarray) -> None:
        if self._kind == "jpg" and frames.is_cuda and on_gpu(frames.device):
            if self._encoder is None:
                self._encoder = GpuJpegEncoder(self._options["quality"], frames.device, "4:4:4")
            for file in self._encoder(frames):
                self._next().write_bytes(file)
            return
        for frame in pixels:
            Image.fromarray(frame).save(self._next(), **self._options)

    def _next(self) -> Path:
        path = self._partial / f"{self._written:06}.{self._kind}"
        self._written += 1
        return path

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, *raised: Any) -> None:
        self._whole.__exit__(*raised)
