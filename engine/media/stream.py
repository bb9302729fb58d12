"""What a video stream is: its size, times, colours, and how its frames are to be shown."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from .frame_index import FrameIndex
from .frame_rate import allowed, constant_rate
from .packets import PacketReader

# Numbers that H.264 and all later codecs share (ITU-T H.273).
TRANSFERS_HDR = {16: "PQ, SMPTE ST 2084", 18: "HLG, ARIB STD-B67"}
PRIMARIES_WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}  # those that FFmpeg's scaler converts to RGB
UNSPECIFIED = 2


@dataclass(frozen=True)
class Orientation:
    """How a decoded picture becomes the one that is shown: first transposed, then flipped."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Show (H, W, 3) pixels as they should be: a view, (W, H, 3) where transposed."""
        if self.transpose:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True)
class VideoStream:
    """What a video stream is, as its container and its first frame say."""

    # Size as shown, pixels.
    height: int
    width: int
    # When each frame is shown, in units of `time_base` seconds on the container's clock, ascending.
    times: tuple[int, ...]
    time_base: Fraction
    # Exact frames a second. None where the times keep no rate, or there is one frame and no rate.
    fps: Fraction | None
    # Width of a pixel as shown, divided by its height.
    pixel_aspect: Fraction
    # None where frames are to be turned by another angle than 0, 90, 180 or 270 degrees.
    orientation: Orientation | None
    # Numbers of ITU-T H.273; 2 is unspecified.
    transfer: int
    primaries: int
    matrix: int
    # Bits of a component.
    bits: int
    interlaced: bool
    # Frames that are decoded, but not shown: an edit list hides them.
    hidden: int
    # Frames at the beginning that cannot be decoded and do not count, as of a recording that was
    # cut between keyframes.
    left_out: int

    @property
    def start(self) -> Fraction:
        """When the first frame is shown, seconds on the container's clock."""
        return self.times[0] * self.time_base

    @property
    def constant(self) -> bool:
        """Whether the frames keep a rate; a single one does."""
        return self.fps is not None or len(self.times) == 1


def describe(reader: PacketReader, index: FrameIndex, first: av.VideoFrame) -> VideoStream:
    """Say what a stream is, of which `first` is a decoded frame."""
    stream, context = reader.stream, reader.stream.codec_context
    orientation = _orientation(first)
    height, width = first.height, first.width
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if orientation and orientation.transpose:
        height, width, aspect = width, height, 1 / aspect
    claims = [stream.average_rate, stream.guessed_rate, stream.base_rate]
    if len(index.times) > 1:
        fps = constant_rate(index.times, stream.time_base, claims)
    else:
        fps = next((Fraction(rate) for rate in claims if rate and allowed(rate)), None)
    return VideoStream(
        height=height,
        width=width,
        times=tuple(index.times),
        time_base=stream.time_base,
        fps=fps,
        pixel_aspect=aspect,
        orientation=orientation,
        transfer=int(context.color_trc),
        primaries=int(context.color_primaries),
        matrix=int(first.colorspace),  # as the conversion to RGB takes it
        bits=first.format.components[0].bits,
        interlaced=first.interlaced_frame,
        hidden=sum(packet.hidden for packet in reader.packets),
        left_out=index.left_out,
    )


def _orientation(frame: av.VideoFrame) -> Orientation | None:
    """What the display matrix says: (x, y) is shown at (a x + c y, b x + d y)."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # other data that this PyAV has no name for: the angle is there all the same
        return {
            0: Orientation(),
            90: Orientation(transpose=True, flip_rows=True),
            180: Orientation(flip_rows=True, flip_columns=True),
            270: Orientation(transpose=True, flip_columns=True),
        }.get(frame.rotation % 360)
    if matrix is None:
        return Orientation()
    a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32)[:5])
    least = max(map(abs, (a, b, c, d))) / 100  # what is smaller is rounding
    if max(abs(b), abs(c)) <= least:
        return Orientation(flip_rows=d < 0, flip_columns=a < 0)
    if max(abs(a), abs(d)) <= least:
        return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    return None
