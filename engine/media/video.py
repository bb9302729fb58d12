"""Video files in and out, through FFmpeg's libraries (PyAV)."""

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

# The encoder's threads work ahead: where cores are few, at the expense of whatever runs next.
SPARE_CORES = (os.cpu_count() or 1) > 4


class Video:
    """A video file as a stream of frames, numbered in the order they are shown.

    Nothing is judged here: `policy.judge` says whether a video can be taken as it is.

    Attributes:
        stream: what the video is: size as shown, times, rate, colours.
        height, width: pixels, as shown. fps: frames a second; None where they keep no rate.
        keyframes: numbers, ascending, of the frames where decoding can start.

    Raises:
        InputError: no such file, nothing FFmpeg can read, no video stream, no frames.
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
        """Decode from the last keyframe that gives frame `start` on.

        Returns:
            An iterator over numbers, ascending, and frames as decoded: as stored, not yet as shown.
            Frames too damaged to be decoded are left out. One iterator at a time.

        Raises:
            InputError: the file cannot be read, or its frames have several sizes.
        """
        origin = self._index.start_for(start)
        with reading(self.path):
            for packet, frame in self._reader.decode(origin.packet):
                number = self._index.numbers.get(packet)
                # Frames shown before a keyframe, but decoded after it, lack what is before it.
                if number is None or number < origin.frame:
                    continue
                if (frame.height, frame.width) != self._stored:
                    height, width = self._stored
                    raise InputError(
                        f"{self.path}: frame {number} is {frame.width} x {frame.height}, others "
                        f"are {width} x {height}; all frames must have one size"
                    )
                if frame.rotation != self._rotation:
                    raise InputError(
                        f"{self.path}: frame {number} is to be shown turned by {frame.rotation} "
                        f"degrees, others by {self._rotation}; all must be shown alike"
                    )
                frame.pts = self._index.times[number]
                yield number, frame

    def pixels(self, frame: av.VideoFrame) -> np.ndarray:
        """Convert a frame to (H, W, 3) uint8 RGB as shown: a view of FFmpeg's own memory."""
        with reading(self.path):
            plane: Any = self._converter.reformat(frame, format="rgb24").planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)
        stored = rows[:, : 3 * frame.width].reshape(frame.height, frame.width, 3)
        return self._orientation.apply(stored)

    def is_damaged(self, number: int, frame: av.VideoFrame) -> bool:
        """Whether a frame is known to be broken itself.

        Decoders of H.264 and of MPEG's older codecs find most faults; those of HEVC, VP8, VP9 and
        AV1 find few, as hardly any bits are without a meaning there.
        """
        return frame.is_corrupt or self._reader.packets[self._index.packets[number]].damaged

    def damaged_frames(self) -> list[int]:
        """Decode all frames, and return the numbers of those that are broken or lost, and of those
        that are decoded after them up to the next keyframe, which may be predicted from them.

        The file is opened again for it: an iterator over `frames` goes on where it was.
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
    """Writes an mp4 of rendered frames with the speech as its sound; see `Mp4Writer`.

    Args:
        path: ends in .mp4; its folder exists.
        fps: frame i is shown at exactly i / fps seconds.
        pixel_aspect: width of a pixel, divided by its height, that players are to show.
        speech: a file whose sound becomes the video's, at its own rate, in mono or stereo; None
            for a silent video.
        audio_track: which audio track of the file, as in `read_speech`.

    Attributes:
        held: how many times the last frame was repeated at the end, so that the picture ends no
            more than a frame before the sound. The frames of a render cover the speech up to its
            last mel window, of 0.2 s, and four frames more: 0.16 s of the window at 25 frames a
            second, but 0.03 s at 120.

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
        self._heard, self.held = 0.0, 0  # seconds of sound written, frames
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

    def _hold(self, until: float) -> None:
        """Repeat the last frame until it ends no more than a frame before `until`, in seconds."""
        until -= 1e-9  # a float
        while self._written > 0 and (self._written + 1) / self._fps < until:
            self.write_frame(None)
            self.held += 1

    def _flush(self) -> None:
        self._write_speech(until=float("inf"))
        self._hold(until=self._heard)
        super()._flush()
