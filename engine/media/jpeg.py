"""JPEG files of frames: on a GPU by nvImageCodec where it can, otherwise by Pillow."""

import io
import warnings
from functools import cache
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Subsampling = Literal["4:4:4", "4:2:0"]  # of chroma


def encode_jpeg(rgb: np.ndarray, quality: int, subsampling: Subsampling) -> bytes:
    """Encode (H, W, 3) uint8 as a baseline JPEG file, without the GIL."""
    file = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(rgb))
    image.save(file, "jpeg", quality=quality, subsampling=subsampling)
    return file.getvalue()


@cache
def on_gpu(device: torch.device) -> bool:
    """Return whether this GPU can encode JPEGs. If not, warn once and say why.

    A small image is encoded to find out, because nvImageCodec can be installed without a working
    encoder, for example without libnvjpeg.
    """
    try:
        (file,) = GpuJpegEncoder(75, device, "4:4:4")(
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


class GpuJpegEncoder:
    """Encodes frames on a GPU as JPEG files, by nvImageCodec. Only the files leave the GPU.

    For one thread at a time.

    Args:
        quality: 1 to 100.
        device: where the frames are.
        subsampling: of chroma.
    """

    def __init__(self, quality: int, device: torch.device, subsampling: Subsampling):
        from nvidia import nvimgcodec

        self._codec, self._device = nvimgcodec, device
        kinds, chroma = nvimgcodec.BackendKind, nvimgcodec.ChromaSubsampling
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
            chroma_subsampling=chroma.CSS_444 if subsampling == "4:4:4" else chroma.CSS_420,
        )

    def __call__(self, frames: Tensor) -> list[bytes]:
        """Encode (n, H, W, 3) uint8 RGB, in order with the current stream."""
        # CUDA's handle for the default stream is 0 or 1; nvImageCodec takes 0 for no stream
        stream = torch.cuda.current_stream(self._device).cuda_stream or 1
        images = self._codec.as_images(list(frames), cuda_stream=stream)
        files = self._encoder.encode(images, ".jpg", params=self._params, cuda_stream=stream)
        # nvImageCodec returns None for a frame that it cannot encode; older versions leave it out.
        if None in files or len(files) != len(images):
            made = sum(file is not None for file in files)
            raise RuntimeError(f"nvImageCodec encoded {made} of {len(images)} frames")
        return [bytes(file) for file in files]
