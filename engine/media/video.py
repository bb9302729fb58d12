"""Read and write video files, through FFmpeg's libraries (PyAV)."""

import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import InputError
from . import h264
from .files import reading
from .frame_index import index_frames
from .mp4 import Mp4Writer
from .packets import PacketReader
from .speech import audio_blocks
from .stream import Orientation, VideoStream, describe

# The encoder's threads work ahead of the render; with few cores, they would slow it down.
SPARE_CORES = (os.cpu_count() or 1) > 4


class Video:
    """The frames of a video file, numbered in display order.

    `policy.check_video` refuses videos that cannot be used as an avatar's frames.

    Attributes:
        stream: the video's properties: size, times, rate, colors.
        height, width: size in pixels, after rotation.
        fps: frames per second; None if the rate is variable.
        keyframes: ascending numbers of the frames where decoding can start.
        codec: FFmpeg's name of the codec.
        container: FFmpeg's name of the format, see `PacketReader`.

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
        self.codec, self.container = self._reader.codec, self._reader.container

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


class VideoWriter(Mp4Writer):
    """Writes an mp4 of rendered frames with the speech as its sound, see `Mp4Writer`.

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
        self._blocks = iter(()) if speech is None else audio_blocks(speech, track=audio_track)
        self._block = next(self._blocks, None)
        self._heard = 0.0  # seconds of sound written
        self.repeated = 0
        super().__init__(
            path,
            height=height,
            width=width,
            fps=fps,
            x264=h264.FILE,
            threads=0 if SPARE_CORES else 1,
            pixel_aspect=pixel_aspect,
            sound=None if self._block is None else (len(self._block[0]), self._block[1]),
        )

    def write(self, frames: np.ndarray) -> None:
        """Append frames, (n, H, W, 3) uint8 RGB, and the speech up to their end."""
        for rgb in frames:
            self.write_frame(rgb)
        self._write_speech(until=float(self._written / self._fps))

    def _write_speech(self, until: float) -> None:
        while self._block is not None and self._heard < until:
            samples, rate, first = self._block
            self.write_sound(samples, first)
            self._heard = (first + samples.shape[1]) / rate
            self._block = next(self._blocks, None)

    def _repeat_last(self, until: float) -> None:
        """Repeat the last frame until the picture ends at most one frame before `until` seconds."""
        until -= 1e-9  # for rounding errors
        while self._written > 0 and (self._written + 1) / self._fps < until:
            self.write_frame(None)
            self.repeated += 1

    def _flush(self) -> None:
        self._write_speech(until=float("inf"))
        self._repeat_last(until=self._heard)
        super()._flush()
