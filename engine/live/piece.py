"""What a live session hands out."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import Tensor

from .stream import BoundFrame


@dataclass(slots=True)
class Piece:
    """A frame with the sound that belongs to it.

    Attributes:
        number: counts the session's frames from 0, without gaps.
        frames: (1, H, W, 3) uint8 RGB, or the shape of the format that `Live` was given. Its length
            is 0 if the picture was skipped: it would have been too late, or was not taken in time.
        sound: (C, n) float32, the frame's samples at the session's own rate.
        fps: frames a second.
        speaking: whether the frame plays samples of an utterance.
        end: whether it plays the last samples of an utterance.
        spoken: how many samples of `sound`, from its beginning, are an utterance's.
    """

    number: int
    frames: Tensor
    sound: np.ndarray
    fps: Fraction
    speaking: bool
    end: bool
    spoken: int = 0

    @property
    def time(self) -> Fraction:
        """Seconds from the session's beginning to the frame's, exactly number / fps."""
        return self.number / self.fps


@dataclass
class Counts:
    """What happened in a session so far.

    Attributes:
        frames: frames handed out.
        late: frames made after the time at which they were due.
        skipped: frames whose picture was skipped.
        underruns: how often an utterance ran dry before its end.
        interruptions: how often speech was interrupted.
    """

    frames: int = 0
    late: int = 0
    skipped: int = 0
    underruns: int = 0
    interruptions: int = 0


def piece_of(bound: BoundFrame, frames: Tensor, fps: Fraction) -> Piece:
    """Make the piece of a bound frame."""
    return Piece(bound.number, frames, bound.sound, fps, bound.speaking, bound.end, bound.spoken)
