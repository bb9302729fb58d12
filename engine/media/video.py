"""Video files in and out, through FFmpeg's libraries (PyAV)."""

import os
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from ..errors import InputError
from .files import media_url, open_media, reading
from .speech import audio_blocks, audio_frame

# FFmpeg's threads work ahead: where cores are few, at the expense of whatever runs next.
SPARE_CORES = (os.cpu_count() or 1) > 4
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


class Video:
    """A video file as a stream of frames from any keyframe on.

    Attributes:
        height, width: pixels. fps: frames a second. keyframes: numbers, ascending, of the frames
        where decoding can start.

    Raises:
        InputError: no such file, nothing FFmpeg can read, no video stream, no frames.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._converter = VideoReformatter()
        self._container = open_media(path)
        if not self._container.streams.video:
            raise InputError(f"{path} has no video stream")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO" if SPARE_CORES else "NONE"
        self.height, self.width = self._stream.height, self._stream.width
        rate = self._stream.average_rate
        self.fps = Fraction(rate) if rate else None

        # Packets tell the times of all frames without decoding any.
        with reading(path):
            packets = [
                (packet.pts, packet.is_keyframe)
                for packet in self._container.demux(self._stream)
                if packet.size and not packet.is_discard
            ]
        if any(pts is None for pts, _ in packets):
            raise InputError(f"{path} does not say when its frames are shown: make an mp4 of it")
        packets.sort()
        self._times = [pts for pts, _ in packets]
        self._number = {pts: number for number, pts in enumerate(self._times)}
        self.keyframes = [number for number, (_, key) in enumerate(packets) if key]
        if not packets or not self.keyframes:
            raise InputError(f"{path} has a video stream of 0 frames")

    def __len__(self) -> int:
        return len(self._times)

    def frames(self, start: int = 0) -> Iterator[tuple[int, av.VideoFrame]]:
        """Numbered frames from keyframe `start` on, as decoded; one iterator at a time.

        Raises:
            InputError: the file is damaged.
        """
        with reading(self.path):
            self._container.seek(self._times[start], stream=self._stream)
            for frame in self._container.decode(self._stream):
                number = self._number.get(frame.pts)
                if number is None:
                    continue
                if (frame.height, frame.width) != (self.height, self.width):
                    raise InputError(
                        f"{self.path}: frame {number} is {frame.width} x {frame.height}, others "
                        f"are {self.width} x {self.height}: all frames must have one size"
                    )
                if frame.rotation % 360:
                    raise InputError(
                        f"{self.path} is to be turned by {frame.rotation} degrees when shown: "
                        "write it upright"
                    )
                yield number, frame

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a frame: FFmpeg's own memory, which may pad the rows."""
        with reading(self.path):
            plane = self._converter.reformat(frame, format="rgb24").planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(self.height, plane.line_size)
        return rows[:, : 3 * self.width].reshape(self.height, self.width, 3)


class VideoWriter:
    """Writes an mp4: H.264 yuv420p (BT.709) with the speech as AAC.

    A context manager: the file gets its name when the block ends well, and no trace of it stays
    when it does not. Odd sizes, which yuv420p cannot hold, repeat their last row or column.

    Args:
        path: ends in .mp4; its folder exists.
        fps: frame i is shown at exactly i / fps seconds.
        speech: a file whose sound becomes the video's, at its own rate, in mono or stereo; None
            for a silent video.
        audio_track: which audio track of the file, as in `read_speech`.

    Raises:
        InputError: the path cannot be written, or the speech cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        height: int,
        width: int,
        fps: Fraction,
        speech: str | os.PathLike | None = None,
        audio_track: int | None = None,
    ):
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{path} does not end in .mp4")
        if self.path.is_dir():
            raise InputError(f"{path} is a folder")
        self._partial = self.path.with_name(f".{self.path.stem}.{os.getpid()}.partial.mp4")
        self._pad = (height % 2, width % 2)
        self._fps, self._written = Fraction(fps), 0
        self._converter = VideoReformatter()
        try:
            # Opened by hand first: FFmpeg would only say so at the first frame.
            self._partial.touch()
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
        try:
            self._open(height, width, speech, audio_track)
        except BaseException:
            self._discard()
            raise

    def _open(
        self, height: int, width: int, speech: str | os.PathLike | None, audio_track: int | None
    ) -> None:
        self._container = av.open(
            media_url(self._partial), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._video: Any = self._container.add_stream(
            "libx264", rate=self._fps, options={"crf": "18", "preset": "veryfast"}
        )
        self._video.height, self._video.width = height + self._pad[0], width + self._pad[1]
        self._video.pix_fmt = "yuv420p"
        self._video.time_base = 1 / self._fps
        self._video.thread_count = 0 if SPARE_CORES else 1
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited
        self._blocks = iter(()) if speech is None else audio_blocks(speech, track=audio_track)
        self._block = next(self._blocks, None)
        self._heard = 0.0  # seconds of audio written
        if self._block is not None:
            channels, rate, _ = self._block
            self._audio: Any = self._container.add_stream(
                "aac", rate=next((r for r in AAC_RATES if r >= rate), AAC_RATES[-1])
            )
            self._audio.layout = "mono" if channels.shape[0] == 1 else "stereo"
            self._audio.bit_rate = 96000 * channels.shape[0]

    def write(self, frames: np.ndarray) -> None:
        """Append frames, (n, H, W, 3) uint8 RGB, and the audio up to their end."""
        for rgb in frames:
            if any(self._pad):
                rgb = np.pad(rgb, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
            frame = self._converter.reformat(
                av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb), "rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
            )
            frame.pts, frame.time_base = self._written, 1 / self._fps
            self._container.mux(self._video.encode(frame))
            self._written += 1
        self._write_audio(until=float(self._written / self._fps))

    def _write_audio(self, until: float) -> None:
        while self._block is not None and self._heard < until:
            channels, rate, first = self._block
            self._container.mux(self._audio.encode(audio_frame(channels, rate, first)))
            self._heard = (first + channels.shape[1]) / rate
            self._block = next(self._blocks, None)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._write_audio(until=float("inf"))
            for stream in self._container.streams:
                self._container.mux(stream.encode(None))
            self._container.close()
            self._partial.replace(self.path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        with suppress(Exception):  # an encoder that never got a frame may refuse its trailer
            self._container.close()
        self._partial.unlink(missing_ok=True)
