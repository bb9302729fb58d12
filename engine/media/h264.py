"""Prepare frames for H.264 encoders: yuv420p, BT.709 in limited range, even sizes."""

from fractions import Fraction
from functools import cache
from typing import Any, Literal

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

FILE = {"preset": "veryfast", "crf": "18"}  # for renders: slower, and smaller files
LIVE = {"preset": "ultrafast", "tune": "zerolatency"}  # for live sessions, which need the cores
NVENC_LIVE = {
    "preset": "p1", "tune": "ull", "zerolatency": "1", "delay": "0", "bf": "0", "forced-idr": "1",
}  # fmt: skip

BUFFER_SECONDS = 0.5  # in which a limited stream keeps its bitrate

PixelFormat = Literal["rgb", "i420", "nv12"]


class H264Input:
    """Converts frames for one encoder.

    An odd size, which yuv420p does not allow, is made even by repeating the last row or column.

    Args:
        height, width: size of the frames in pixels.
        format: format of the frames: RGB, or the planes of `kernels.composite`, which need no
            conversion.
    """

    def __init__(self, height: int, width: int, format: PixelFormat = "rgb"):
        self._format = format
        self._pad = (height % 2, width % 2)
        self._height, self._width = height + self._pad[0], width + self._pad[1]
        self._converter = VideoReformatter()

    def configure(self, codec: Any, fps: Fraction, *, threads: int) -> None:
        """Set the size, the rate and the color properties of an encoder's codec context.

        Args:
            threads: number of threads; with 0, the encoder chooses.
        """
        codec.height, codec.width = self._height, self._width
        codec.pix_fmt = "nv12" if self._format == "nv12" else "yuv420p"
        codec.framerate, codec.time_base = fps, 1 / fps
        codec.thread_count = threads
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited range

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


def rate_control(codec: str, crf: int, bitrate: int | None) -> dict[str, str]:
    """Return a live encoder's options for a quality and, unless None, bits a second at most."""
    nvenc = codec == "h264_nvenc"
    if bitrate is None:
        return {"rc": "constqp", "qp": str(crf)} if nvenc else {"crf": str(crf)}
    most = {"maxrate": str(bitrate), "bufsize": str(int(bitrate * BUFFER_SECONDS))}
    return most | ({"rc": "vbr", "cq": str(crf)} if nvenc else {"crf": str(crf)})


@cache
def has_nvenc() -> bool:
    """Return whether a GPU can encode H.264. (An H100 or H200 cannot.)"""
    try:
        codec: Any = av.CodecContext.create("h264_nvenc", "w")
        H264Input(256, 256).configure(codec, Fraction(25), threads=1)
        codec.open()
    except (av.FFmpegError, ValueError):  # ValueError: not in this FFmpeg
        return False
    return True
