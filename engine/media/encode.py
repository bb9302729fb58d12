"""Encode frames of live sessions as H.264 packets or JPEG files, in a pool of threads."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol

import av
import numpy as np
from av.video.frame import PictureType

from ..errors import InputError
from .h264 import LIVE, NVENC_LIVE, H264Input, PixelFormat, has_nvenc, rate_control
from .jpeg import encode_jpeg

H264Codec = Literal["libx264", "h264_nvenc"]


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
        """Encode a frame, (H, W, 3) uint8 RGB or planes; with `keyframe`, as a keyframe."""
        ...


class H264Encoder:
    """Encodes H.264 without delay: a packet for every frame.

    There is a keyframe at least once a second. An odd size is made even by repeating the last row
    or column.

    Args:
        fps: frames per second.
        crf: quality, 0 (the best) to 51.
        bitrate: bits a second at most; what is too much for it gets a lower quality. None for no
            limit.
        format: format of the frames.
        codec: "libx264" (ultrafast, zerolatency) or "h264_nvenc" (a GPU's own encoder). By default
            NVENC if a GPU has it and accepts another stream, else x264.

    Attributes:
        codec: the one in use.
        bitrate: may be set at any time, in any thread. The next frame is then a keyframe.

    Raises:
        InputError: the codec cannot be opened.
    """

    def __init__(
        self,
        height: int,
        width: int,
        fps: Fraction,
        *,
        crf: int = 23,
        bitrate: int | None = None,
        format: PixelFormat = "rgb",
        codec: H264Codec | None = None,
    ):
        self._input, self._number = H264Input(height, width, format), 0
        self._fps, self._crf, self.bitrate = fps, crf, bitrate
        self._shape = (height, width, 3) if format == "rgb" else (height * 3 // 2, width)
        found = None
        if codec == "h264_nvenc" or (codec is None and has_nvenc()):
            found = self._open("h264_nvenc", bitrate)
        self.codec: H264Codec = "h264_nvenc" if found else "libx264"
        if found is None and codec != "h264_nvenc":
            found = self._open("libx264", bitrate)
        if found is None:
            raise InputError(f"FFmpeg cannot open {codec or 'libx264'} for {width} x {height}")
        self._codec = found

    def _open(self, name: H264Codec, bitrate: int | None) -> Any:
        """Return a codec context; None if it cannot be opened."""
        try:
            codec: Any = av.CodecContext.create(name, "w")
            self._input.configure(codec, self._fps, threads=1)
            codec.gop_size = max(round(self._fps), 1)
            codec.bit_rate = 0  # else NVENC takes FFmpeg's default for a limit
            options = NVENC_LIVE if name == "h264_nvenc" else LIVE
            codec.options = {
                **options, **rate_control(name, self._crf, bitrate), "profile": "baseline"
            }  # fmt: skip
            codec.open()
        except (av.FFmpegError, ValueError):  # ValueError: FFmpeg was built without it
            return None
        self._opened_bitrate = bitrate
        return codec

    def _follow(self, bitrate: int | None) -> None:
        """Open the codec anew if it has another bitrate: FFmpeg has no way to tell an open one."""
        if bitrate != self._opened_bitrate:
            codec = self._open(self.codec, bitrate)
            if codec is None:
                raise InputError(f"FFmpeg cannot open {self.codec} for {bitrate} bits a second")
            self._codec = codec

    def encode(self, rgb: np.ndarray, *, keyframe: bool = False) -> EncodedFrame:
        if rgb.shape != self._shape:  # which FFmpeg would scale
            raise InputError(f"the frame has the shape {rgb.shape}; expected {self._shape}")
        self._follow(self.bitrate)
        frame = self._input.convert(rgb)
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
        self._number += 1
        return EncodedFrame(self._number - 1, encode_jpeg(rgb, self._quality, "4:2:0"), True)


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
    """Encodes the frames of one session in order, in the threads of a pool, in turn with others.

    A frame whose future is cancelled before its turn is left out.
    """

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
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(task())
                except BaseException as error:
                    future.set_exception(error)
            with suppress(RuntimeError):  # the pool is closing: the rest is encoded here
                self._pool.submit(self._run)  # after the frames of others
                return
