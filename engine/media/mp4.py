"""Write frames and sound to an mp4, through FFmpeg's libraries (PyAV)."""

import os
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np

from ..errors import InputError
from ..files import whole
from .files import media_url
from .h264 import H264Input
from .speech import audio_frame

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


class Mp4Writer:
    """Writes an mp4: H.264 yuv420p (BT.709), and AAC if there is sound.

    A context manager. The file gets its name when the block ends without an exception; otherwise
    nothing of it stays. An odd size, which yuv420p does not allow, is made even by repeating the
    last row or column.

    Args:
        path: a name that ends in .mp4, in a folder that exists.
        height, width: size of the frames in pixels.
        fps: frame i is displayed at exactly i / fps seconds.
        x264: options of the encoder.
        threads: number of the encoder's threads; with 0, it chooses.
        pixel_aspect: displayed width of a pixel divided by its height.
        sound: the number of channels, 1 or 2, and the rate in Hz; None for a silent video.

    Raises:
        InputError: the path cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        height: int,
        width: int,
        fps: Fraction,
        x264: Mapping[str, str],
        threads: int,
        pixel_aspect: Fraction = Fraction(1),
        sound: tuple[int, int] | None = None,
    ):
        self.path, self._fps = Path(path), Fraction(fps)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{path} does not end in .mp4")
        if self.path.is_dir():
            raise InputError(f"{path} is a folder")
        self._input, self._written = H264Input(height, width), 0
        self._last: av.VideoFrame | None = None
        with ExitStack() as stack:
            try:
                partial = stack.enter_context(whole(self.path))
            except OSError as error:
                raise InputError(f"{path} cannot be written: {error.strerror}") from error
            self._container = av.open(
                media_url(partial), "w", format="mp4", options={"movflags": "+faststart"}
            )
            stack.push(self._close)
            self._video: Any = self._container.add_stream(
                "libx264", rate=self._fps, options=dict(x264)
            )
            self._input.configure(self._video.codec_context, self._fps, threads=threads)
            self._video.time_base = 1 / self._fps
            if pixel_aspect != 1:
                self._video.codec_context.sample_aspect_ratio = Fraction(pixel_aspect)
            if sound is not None:
                channels, self._rate = sound
                rate = next((r for r in AAC_RATES if r >= self._rate), AAC_RATES[-1])
                self._audio: Any = self._container.add_stream("aac", rate=rate)
                self._audio.layout = "mono" if channels == 1 else "stereo"
                self._audio.bit_rate = 96000 * channels
            stack.push(self._finish)
            self._stack = stack.pop_all()

    def write_frame(self, rgb: np.ndarray | None) -> None:
        """Append a frame, (H, W, 3) uint8 RGB, or with None repeat the last one, if there is
        one."""
        if rgb is not None:
            self._last = self._input.convert(rgb)
        if self._last is not None:
            self._last.pts, self._last.time_base = self._written, 1 / self._fps
            self._container.mux(self._video.encode(self._last))
        self._written += 1

    def write_sound(self, samples: np.ndarray, first: int) -> None:
        """Append sound, (channels, n) float32, whose first sample has this number."""
        self._container.mux(self._audio.encode(audio_frame(samples, self._rate, first)))

    def _flush(self) -> None:
        """Write the packets that the encoders hold back."""
        streams: Any = self._container.streams
        for stream in streams:
            self._container.mux(stream.encode(None))

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()

    def _close(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error, writing the trailer may fail if there was no frame.
        with nullcontext() if kind is None else suppress(Exception):
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)
