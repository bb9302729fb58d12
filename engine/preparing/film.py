"""Read a film as upright pictures with square pixels, at a constant rate."""

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from kernels import MAX_SIDE

from ..avatar.avatar import MAX_PIXELS
from ..avatar.frames import LONGEST_GROUP
from ..errors import InputError
from ..media import limits
from ..media.frame_index import TIMED
from ..media.frame_rate import MAX_FPS, MIN_FPS, allowed
from ..media.policy import check_damage, check_video
from ..media.stream import Orientation
from ..media.video import Video
from .color import SdrMapper, needs_mapping
from .selection import choose_frames, time_errors

SQUARE = 0.01  # pixels whose sides differ by less are taken for square
# A frame whose nearest picture is further away, in frames, shows another moment.
FARTHEST = 5
COPIED = {"mov,mp4,m4a,3gp,3g2,mj2": ".mp4", "matroska,webm": ".mkv"}  # container -> suffix


class Damaged(Exception):
    """A frame that was needed is damaged, which was not known before."""


class Picture(NamedTuple):
    """A frame of the avatar.

    Attributes:
        rgb: (H, W, 3) uint8.
        source: number of the film's frame.
        missing: the film has no picture near this time.
    """

    rgb: np.ndarray
    source: int
    missing: bool


class Film:
    """The pictures of a film, by the times of its frames.

    Args:
        path: the film.
        fps: pictures a second; None for those of the film.

    Attributes:
        video: the film's frames as they are.
        fps: pictures a second.
        height, width: size of the pictures.
        chosen: (N,) int64: for each picture the number of the film's frame.
        damaged: numbers of the film's frames that are damaged, as far as that is known.

    Raises:
        InputError: the film cannot be read, or `media.policy` refuses it; without `fps`, its rate
            is variable; its frames are too large; it is longer than `limits.MAX_SECONDS`.
    """

    def __init__(self, path: str | os.PathLike, fps: Fraction | None):
        self._state = _state(path)
        self.path, self.video = path, Video(path)
        stream = self.video.stream
        check_video(path, stream, "film")
        if fps is None:
            fps = stream.fps
            if fps is None or not allowed(fps):
                found = "is variable" if fps is None else f"is {float(fps):g}"
                raise InputError(
                    f"{path}: the frame rate {found}; --fps source takes constant rates of "
                    f"{MIN_FPS} to {MAX_FPS}. Leave it out for 25"
                )
        self.fps = fps
        self.damaged: frozenset[int] = frozenset()
        self._mapper = SdrMapper(stream) if needs_mapping(stream) else None
        self._scaler = VideoReformatter()
        self._set_size()
        self._check_length()
        self._choose()

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def suffix_to_copy(self) -> str | None:
        """The suffix of a copy of the file that serves as the avatar's frames; None if the frames
        have to be encoded."""
        video, stream = self.video, self.video.stream
        ends = [*video.keyframes, len(video)]
        right = (
            video.codec == "h264"
            and stream.bits == 8
            and stream.fps == self.fps
            and stream.orientation == Orientation()
            and self._scaled is None
            and self._mapper is None
            and not stream.left_out
            and not stream.interlaced
            and not self.damaged
            and max(b - a for a, b in pairwise(ends)) <= LONGEST_GROUP
        )
        return COPIED.get(video.container) if right else None

    @property
    def zero(self) -> float | None:
        """The time of the first frame in seconds of the file; None if only its decoder knows it."""
        if self.video.container not in TIMED:
            return None
        return float(self.video.stream.start)

    @property
    def doubled(self) -> int:
        """How many pictures repeat the one before."""
        return int((np.diff(self.chosen) == 0).sum())

    @property
    def left_out(self) -> int:
        """How many of the film's frames are not used."""
        return len(self.video) - len(np.unique(self.chosen))

    def pictures(self) -> Iterator[Picture]:
        """Decode the film once, and return its pictures in order.

        Raises:
            Damaged: a frame is damaged; call `leave_out_damage` and begin again.
            InputError: the film cannot be read.
        """
        missing = self._missing()
        place, rgb = 0, None
        for number, frame in self.video.frames():
            if place == len(self.chosen):
                return
            if self.chosen[place] < number:  # the decoder has left it out
                raise Damaged
            if self.chosen[place] > number:
                continue
            if number not in self.damaged and self.video.is_damaged(number, frame):
                raise Damaged
            rgb = self._rgb(frame)
            while place < len(self.chosen) and self.chosen[place] == number:
                yield Picture(rgb, number, bool(missing[place]))
                place += 1
        if place < len(self.chosen):
            raise Damaged

    def check_unchanged(self) -> None:
        """Raise InputError if the file is not the one that was opened, which is read repeatedly."""
        if _state(self.path) != self._state:
            raise InputError(f"{self.path} changed while it was in use")

    def leave_out_damage(self) -> None:
        """Find all damaged frames, warn of them, and choose others in their place.

        Raises:
            InputError: no frame is left.
        """
        known = self.damaged
        self.damaged = frozenset(self.video.damaged_frames())
        if self.damaged == known or len(self.damaged) == len(self.video):
            raise InputError(f"{self.path} is damaged; too few of its frames can be decoded")
        check_damage(self.path, self.damaged, len(self.video), "film")
        self._choose()

    def _check_length(self) -> None:
        times = self.video.stream.times
        seconds = float((times[-1] - times[0]) * self.video.stream.time_base)
        if seconds > limits.MAX_SECONDS:
            raise InputError(
                f"{self.path} is {seconds:.0f} s long, by the times of its frames; expected at "
                f"most {limits.MAX_SECONDS}. Use a part of it"
            )

    def _choose(self) -> None:
        stream = self.video.stream
        self.chosen = choose_frames(
            stream.times, stream.time_base, stream.fps, self.fps, self.damaged
        )

    def _missing(self) -> np.ndarray:
        stream = self.video.stream
        errors = time_errors(self.chosen, stream.times, stream.time_base, self.fps)
        return errors * float(self.fps) > FARTHEST + 0.01  # for rounding errors

    def _set_size(self) -> None:
        stream = self.video.stream
        self.height, self.width = stream.height, stream.width
        self._scaled: tuple[int, int] | None = None
        aspect = stream.pixel_aspect
        if abs(aspect - 1) > SQUARE:
            # The shorter side grows, so that no detail is lost.
            if aspect > 1:
                self.width = round(self.width * aspect)
            else:
                self.height = round(self.height / aspect)
            turned = stream.orientation is not None and stream.orientation.transpose
            size = self.width, self.height
            self._scaled = size[::-1] if turned else size
        if self.height * self.width > MAX_PIXELS or max(self.height, self.width) > MAX_SIDE:
            raise InputError(
                f"{self.path} has frames of {self.width} x {self.height}; expected at most "
                f"{MAX_SIDE} pixels a side, and {MAX_PIXELS} in all. Make it smaller, for "
                "example: ffmpeg -i IN -vf scale=1920:-2 OUT.mp4"
            )

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        if self._mapper is not None:
            frame = self._mapper(frame)
        if self._scaled is not None:
            width, height = self._scaled
            frame = self._scaler.reformat(frame, width=width, height=height, format="rgb24")
        return self.video.pixels(frame)


def _state(path: str | os.PathLike) -> tuple[int, ...] | None:
    """Return what changes if a file is replaced or written to."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null byte
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
