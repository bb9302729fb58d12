"""How H.264 encoders are given frames: as yuv420p of BT.709 and limited range, in even sizes."""

from fractions import Fraction
from functools import cache
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

FILE = {"preset": "veryfast", "crf": "18"}  # of a render, which may take its time
LIVE = {"preset": "ultrafast", "tune": "zerolatency"}  # beside networks that run in real time
NVENC_LIVE = {
    "preset": "p1", "tune": "ull", "zerolatency": "1", "delay": "0", "bf": "0", "forced-idr": "1",
}  # fmt: skip

PixelFormat = Literal["rgb", "i420", "nv12"]


class H264Input:
    """Converts frames for one encoder. Odd sizes, which yuv420p cannot hold, repeat their last row
    or column.

    Args:
        height, width: of the frames.
        format: of the frames: RGB, or the planes of `kernels.composite`, which need no conversion.
    """

    def __init__(self, height: int, width: int, format: PixelFormat = "rgb"):
        self._format = format
        self._pad = (height % 2, width % 2)
        self._height, self._width = height + self._pad[0], width + self._pad[1]
        self._converter = VideoReformatter()

    def configure(self, codec: Any, fps: Fraction, *, threads: int) -> None:
        """Set what the encoder, a codec context, has to know of the frames.

        Args:
            threads: 0 for as many as x264 wants.
        """
        codec.height, codec.width = self._height, self._width
        codec.pix_fmt = "nv12" if self._format == "nv12" else "yuv420p"
        codec.framerate, codec.time_base = fps, 1 / fps
        codec.thread_count = threads
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited

    def convert(self, rgb: np.ndarray) -> av.VideoFrame:
        """Convert a frame, (H, W, 3) uint8 RGB or (H * 3 / 2, W) planes."""
        if self._format != "rgb":
            name = "nv12" if self._format == "nv12" else "yuv420p"
            return av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), name)
        if any(self._pad):
            rgb = np.pad(rgb, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        return self._converter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), "rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
        )


@cache
def has_nvenc() -> bool:
    """Whether there is a GPU that encodes H.264. (An H100 or H200 does not.)"""
    try:
        codec: Any = av.CodecContext.create("h264_nvenc", "w")
        H264Input(256, 256).configure(codec, Fraction(25), threads=1)
        codec.open()
    except (av.FFmpegError, ValueError):  # ValueError: FFmpeg was built without it
        return False
    return True
