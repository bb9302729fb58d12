"""Encode frames of live sessions as H.264 packets or JPEG files, in a pool of threads."""

import io
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from threading import Lock
from typing import Any, NamedTuple, Protocol

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Colorspace, VideoReformatter
from PIL import Image


class EncodedFrame(NamedTuple):
    """An encoded frame.

    Attributes:
        number: the frame's number, from 0.
        data: an H.264 access unit in Annex B format, with its parameter sets if it is a keyframe;
            or a JPEG file.
        keyframe: whether it can be decoded without the frames before it.
    """

    number: int
    data: bytes
    keyframe: bool


class FrameEncoder(Protocol):
    """Encodes frames one after another, for one thread at a time."""

    def encode(self, rgb: np.ndarray, *, keyframe: bool = False) -> EncodedFrame:
        """Encode a frame, (H, W, 3) uint8 RGB; with `keyframe`, as a keyframe."""
        ...


class H264Encoder:
    """Encodes H.264 without delay: a packet for every frame (x264 ultrafast, zerolatency).

    There is a keyframe at least once a second. An odd size is made even by repeating the last row
    or column.

    Args:
        fps: frames per second.
        crf: x264's quality, 0 (lossless) to 51.
    """

    def __init__(self, height: int, width: int, fps: Fraction, *, crf: int = 23):
        self._pad = (height % 2, width % 2)
        self._converter = VideoReformatter()
        codec: Any = av.CodecContext.create("libx264", "w")
        codec.height, codec.width = height + self._pad[0], width + self._pad[1]
        codec.pix_fmt, codec.framerate, codec.time_base = "yuv420p", fps, 1 / fps
        codec.gop_size, codec.thread_count = max(round(fps), 1), 1
        codec.colorspace = codec.color_primaries = codec.color_trc = 1  # BT.709
        codec.color_range = 1  # limited range
        codec.options = {
            "preset": "ultrafast",
            "tune": "zerolatency",
            "profile": "baseline",
            "crf": str(crf),
        }
        codec.open()
        self._codec, self._number = codec, 0

    def encode(self, rgb: np.ndarray, *, keyframe: bool = False) -> EncodedFrame:
        if any(self._pad):
            rgb = np.pad(rgb, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        frame = self._converter.reformat(
            av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), "rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
        )
        frame.pts, frame.time_base = self._number, self._codec.time_base
        frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        (packet,) = self._codec.encode(frame)
        self._number += 1
        return EncodedFrame(self._number - 1, bytes(packet), packet.is_keyframe)


class JpegEncoder:
    """Encodes JPEG files. Every frame is a keyframe.

    Args:
        quality: 1 to 100.
    """

    def __init__(self, *, quality: int = 85):
        self._quality, self._number = quality, 0

    def encode(self, rgb: np.ndarray, *, keyframe: bool = False) -> EncodedFrame:
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(rgb)).save(file, "jpeg", quality=self._quality)
        self._number += 1
        return EncodedFrame(self._number - 1, file.getvalue(), True)


class EncoderPool:
    """Threads that encode the frames of many sessions. FFmpeg and Pillow release the GIL.

    A context manager. At its end it waits for the submitted frames.

    Args:
        threads: number of threads; by default the number of cores.
    """

    def __init__(self, threads: int | None = None):
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "viseme-encode")

    def queue(self, encoder: FrameEncoder) -> "EncoderQueue":
        """Return a queue in which the frames of one encoder are encoded, in order."""
        return EncoderQueue(encoder, self._pool)

    def close(self) -> None:
        self._pool.shutdown()

    def __enter__(self) -> "EncoderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EncoderQueue:
    """Encodes the frames of one session in order, in the threads of a pool."""

    def __init__(self, encoder: FrameEncoder, pool: ThreadPoolExecutor):
        self._encoder, self._pool = encoder, pool
        self._tasks: deque[tuple[Future[EncodedFrame], Callable[[], EncodedFrame]]] = deque()
        self._lock, self._running = Lock(), False

    def submit(self, rgb: np.ndarray, *, keyframe: bool = False) -> Future[EncodedFrame]:
        """Encode a frame, (H, W, 3) uint8 RGB, which must not change until the future is done."""
        future: Future[EncodedFrame] = Future()
        with self._lock:
            self._tasks.append((future, lambda: self._encoder.encode(rgb, keyframe=keyframe)))
            start, self._running = not self._running, True
        if start:
            self._pool.submit(self._run)
        return future

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._tasks:
                    self._running = False
                    return
                future, task = self._tasks.popleft()
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)
