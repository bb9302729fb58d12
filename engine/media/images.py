"""Write finished frames as numbered images; JPEGs are encoded on the GPU if nvImageCodec can."""

import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..files import whole

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
        self._encoder: _GpuEncoder | None = None
        # Neither can be replaced by a folder, which would be noticed only at the end.
        if self.folder.is_symlink() or self.folder.is_mount():
            kind = "a link" if self.folder.is_symlink() else "a mount point"
            raise InputError(f"{folder} is {kind}; expected a new name or an empty folder")
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise InputError(f"{folder} exists; expected a new name or an empty folder")
        self._whole = whole(self.folder)
        self._partial = self._whole.__enter__()
        try:
            self._partial.mkdir()
        except OSError as error:
            raise InputError(f"{folder} cannot be created: {error.strerror}") from error

    def write(self, frames: Tensor, pixels: np.ndarray) -> None:
        """Append frames, (n, H, W, 3) uint8 RGB on any device; `pixels` are the same frames on the
        host."""
        if self._kind == "jpg" and frames.is_cuda and on_gpu(frames.device):
            if self._encoder is None:
                self._encoder = _GpuEncoder(self._options["quality"], frames.device)
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


@cache
def on_gpu(device: torch.device) -> bool:
    """Return whether this GPU can encode JPEGs. If not, warn once and say why.

    A small image is encoded to find out, because nvImageCodec can be installed without a working
    encoder, for example without libnvjpeg.
    """
    try:
        (file,) = _GpuEncoder(QUALITY, device)(
            torch.zeros(1, 128, 128, 3, dtype=torch.uint8).to(device)
        )
        if file.startswith(b"\xff\xd8"):
            return True
        reason = "nvImageCodec encodes no JPEG"
    except ImportError as error:
        reason = f"nvImageCodec cannot be loaded ({error})"
    except Exception as error:  # nvImageCodec has no exceptions of its own
        reason = str(error) or type(error).__name__
    warnings.warn(
        f"JPEGs are encoded on the CPU, not on {device}: {reason.splitlines()[0]}; "
        "the extra 'jpeg' installs the encoder",
        stacklevel=2,
    )
    return False


class _GpuEncoder:
    """Encodes frames on a GPU as JPEG files, by nvImageCodec. Only the files leave the GPU."""

    def __init__(self, quality: int, device: torch.device):
        from nvidia import nvimgcodec

        self._codec, self._device = nvimgcodec, device
        kinds = nvimgcodec.BackendKind
        self._encoder = nvimgcodec.Encoder(
            device_id=device.index or 0,
            backends=[  # all but those that copy the pixels to the CPU
                nvimgcodec.Backend(kind)
                for kind in (kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU, kinds.HW_GPU_ONLY)
            ],
        )
        self._params = nvimgcodec.EncodeParams(
            quality_type=nvimgcodec.QualityType.QUALITY,
            quality_value=quality,
            chroma_subsampling=nvimgcodec.ChromaSubsampling.CSS_444,
        )

    def __call__(self, frames: Tensor) -> list[bytes]:
        # CUDA's handle for the default stream is 0 or 1; nvImageCodec takes 0 for no stream
        stream = torch.cuda.current_stream(self._device).cuda_stream or 1
        images = self._codec.as_images(list(frames), cuda_stream=stream)
        files = self._encoder.encode(images, ".jpg", params=self._params, cuda_stream=stream)
        # nvImageCodec returns None for a frame that it cannot encode; older versions leave it out.
        if None in files or len(files) != len(images):
            made = sum(file is not None for file in files)
            raise RuntimeError(f"nvImageCodec encoded {made} of {len(images)} frames")
        return [bytes(file) for file in files]
