"""How x264 is given frames: as yuv420p of BT.709 and limited range, in even sizes."""

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

FILE = {"preset": "veryfast", "crf": "18"}  # of a render, which may take its time
LIVE = {"preset": "ultrafast", "tune": "zerolatency"}  # beside networks that run in real time


class H264Input:
    """Converts frames for one encoder. Odd sizes, which yuv420p cannot hold, repeat their last row
    or column.

    Args:
        height, width: of the frames.
    """

    def __init__(self, height: int, width: int):
        self._pad = (height % 2, width % 2)
        self._height, self._width = height + self._pad[0], width + self._pad[1]
        self._converter = VideoReformatter()

    def configure(self, codec: Any, fps: Fraction, *, threads: int) -> None:
        """Set what the encoder, a codec context, has to know of the frames.

        Args:
            threads: 0 for as many as x264 wants.
        """
        codec.height, codec.width = self._height, self._width
        codec.pix_fmt, codec.framerate, codec.time_base = "yuv420p", fps, 1 / fps
        codec.thread_count = threads
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited

    def convert(self, rgb: np.ndarray) -> av.VideoFrame:
        """Convert a frame, (H, W, 3) uint8 RGB."""
        if any(self._pad):
            rgb = np.pad(rgb, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        return self._converter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), "rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
        )
