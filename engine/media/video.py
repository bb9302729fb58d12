"""Read and write video files, through FFmpeg's libraries (PyAV)."""

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
from .files import media_url, reading
from .frame_index import index_frames
from .packets import PacketReader
from .speech import audio_blocks, audio_frame
from .stream import Orientation, VideoStream, describe

# The encoder's threads work ahead of the render; with few cores, they would slow it down.
SPARE_CORES = (os.cpu_count() or 1) > 4
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


class Video:
    """The frames of a video file, numbered in display order.

    `policy.check_video` refuses videos that cannot be used as an avatar's frames.

    Attributes:
        stream: the video's properties: size, times, rate, colors.
        height, width: size in pixels, after rotation.
        fps: frames per second; None if the rate is variable.
        keyframes: ascending numbers of the frames where decoding can start.

    Raises:
        InputError: there is no such file, FFmpeg cannot read it, or it has no frames.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._converter = VideoReformatter()
        self._reader = PacketReader(path)
        self._index = index_frames(self._reader)
        _, first = next(self._reader.decode(0), (0, None))
        if first is None:
            raise InputError(f"{path} has a video stream of which no frame can be decoded")
        self.stream: VideoStream = describe(self._reader, self._index, first)
        self.height, self.width, self.fps = self.stream.height, self.stream.width, self.stream.fps
        self.keyframes = [start.frame for start in self._index.starts]
        self._orientation = self.stream.orientation or Orientation()
        self._stored = first.height, first.width
        self._rotation = first.rotation

    def __len__(self) -> int:
        return len(self._index.times)

    def frames(self, start: int = 0) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from the last keyframe from which frame `start` can be decoded.

        Returns:
            An iterator over (number, frame), by ascending numbers; use one at a time. Frames are as
            stored: `pixels` applies the rotation. Frames too damaged to be decoded are left out.

        Raises:
            InputError: the file cannot be read, or its frames differ in size or rotation.
        """
        origin = self._index.start_for(start)
        with reading(self.path):
            for packet, frame in self._reader.decode(origin.packet):
                number = self._index.numbers.get(packet)
                # Frames displayed before a keyframe but decoded after it lack their reference
                # frames.
                if number is None or number < origin.frame:
                    continue
                if (frame.height, frame.width) != self._stored:
                    height, width = self._stored
                    raise InputError(
                        f"{self.path}: frame {number} is {frame.width} x {frame.height}; "
                        f"expected {width} x {height}, as the others"
                    )
                if frame.rotation != self._rotation:
                    raise InputError(
                        f"{self.path}: frame {number} has a rotation of {frame.rotation} degrees; "
                        f"expected {self._rotation}, as the others"
                    )
                frame.pts = self._index.times[number]
                yield number, frame

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame to (H, W, 3) uint8 RGB, rotated: a view of FFmpeg's own memory."""
        with reading(self.path):
            plane: Any = self._converter.reformat(frame, format="rgb24").planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
        stored = rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        return self._orientation.apply(stored)

    def is_damaged(self, number: int, frame: av.VideoFrame) -> bool:
        """Return whether the decoder or the container reports that the frame itself is damaged.

        Decoders of H.264 and of older MPEG codecs find most errors. Those of HEVC, VP8, VP9 and AV1
        find few, because in these codecs almost any bit sequence is valid.
        """
        return frame.is_corrupt or self._reader.packets[self._index.packets[number]].damaged

    def damaged_frames(self) -> list[int]:
        """Decode all frames, and return the numbers of the damaged ones.

        These are the frames that are damaged or lost, and all frames decoded after them up to the
        next keyframe, because they may be predicted from them. The file is opened a second time, so
        that an iterator over `frames` keeps its position.
        """
        scan = Video(self.path)
        sound = {number for number, frame in scan.frames() if not scan.is_damaged(number, frame)}
        damaged: set[int] = set()
        packets = self._index.packets
        for first in self.keyframes:
            group = range(first, self._index.group_end(first))
            broken = min((packets[n] for n in group if n not in sound), default=None)
            if broken is not None:
                damaged |= {number for number in group if packets[number] >= broken}
        return sorted(damaged)


class VideoWriter:
    """Writes an mp4: H.264 yuv420p (BT.709) with the speech as AAC.

    A context manager. The file gets its name when the block ends without an exception; otherwise
    nothing of it stays. An odd size, which yuv420p does not allow, is made even by repeating the
    last row or column.

    Args:
        path: a name that ends in .mp4, in a folder that exists.
        fps: frame i is displayed at exactly i / fps seconds.
        pixel_aspect: displayed width of a pixel divided by its height.
        speech: a file whose sound is added, at its own rate, in mono or stereo; None for a silent
            video.
        audio_track: number of the file's audio track, as in `read_speech`.

    Attributes:
        repeated: how many times the last frame was repeated at the end, so that the picture ends at
            most one frame before the sound. A render has four frames after the start of its last
            mel window, which is 0.2 s long: they cover 0.16 s of it at 25 frames a second, but only
            0.03 s at 120.

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
        pixel_aspect: Fraction = Fraction(1),
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
        self._fps, self._pixel_aspect = Fraction(fps), Fraction(pixel_aspect)
        self._written = self.repeated = 0
        self._last: av.VideoFrame | None = None
        self._converter = VideoReformatter()
        try:
            # Created here, because FFmpeg would raise the error only at the first frame.
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
        context.color_range = 1  # limited range
        if self._pixel_aspect != 1:
            context.sample_aspect_ratio = self._pixel_aspect
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
            self._encode(frame)
        self._write_audio(until=float(self._written / self._fps))

    def _encode(self, frame: av.VideoFrame) -> None:
        frame.pts, frame.time_base = self._written, 1 / self._fps
        self._container.mux(self._video.encode(frame))
        self._last = frame
        self._written += 1

    def _repeat_last(self, until: float) -> None:
        """Repeat the last frame until the picture ends at most one frame before `until` seconds."""
        until -= 1e-9  # for rounding errors
        while self._last is not None and (self._written + 1) / self._fps < until:
            self._encode(self._last)
            self.repeated += 1

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
            self._repeat_last(until=self._heard)
            streams: Any = self._container.streams
            for stream in streams:
                self._container.mux(stream.encode(None))
            self._container.close()
            self._partial.replace(self.path)
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        with suppress(Exception):  # writing the trailer may fail if there was no frame
            self._container.close()
        self._partial.unlink(missing_ok=True)
