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
from .files import media_url, reading
from .frame_index import index_frames
from .packets import PacketReader
from .speech import audio_blocks, audio_frame
from .stream import Orientation, VideoStream, describe

# The encoder's threads work ahead: where cores are few, at the expense of whatever runs next.
SPARE_CORES = (os.cpu_count() or 1) > 4
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


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


class VideoWriter:
    """Writes an mp4: H.264 yuv420p (BT.709) with the speech as AAC.

    A context manager: the file gets its name when the block ends well, and no trace of it stays
    when it does not. Odd sizes, which yuv420p cannot hold, repeat their last row or column.

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
        self.path = Path(path)
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{path} does not end in .mp4")
        if self.path.is_dir():
            raise InputError(f"{path} is a folder")
        self._partial = self.path.with_name(f".{self.path.stem}.{os.getpid()}.partial.mp4")
        self._pad = (height % 2, width % 2)
        self._fps, self._pixel_aspect = Fraction(fps), Fraction(pixel_aspect)
        self._written = self.held = 0
        self._last: av.VideoFrame | None = None
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

    def _hold(self, until: float) -> None:
        """Repeat the last frame until it ends no more than a frame before `until`, in seconds."""
        until -= 1e-9  # a float
        while self._last is not None and (self._written + 1) / self._fps < until:
            self._encode(self._last)
            self.held += 1

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
            self._hold(until=self._heard)
            streams: Any = self._container.streams
            for stream in streams:
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
