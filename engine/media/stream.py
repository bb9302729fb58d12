"""The properties of a video stream: size, times, colors, orientation."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer

from .frame_index import FrameIndex
from .frame_rate import allowed, constant_rate
from .packets import PacketReader

# Code points of ITU-T H.273, which all codecs share.
TRANSFERS_HDR = {16: "PQ, SMPTE ST 2084", 18: "HLG, ARIB STD-B67"}
PRIMARIES_WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}  # FFmpeg's scaler converts these to RGB
UNSPECIFIED = 2


@dataclass(frozen=True)
class Orientation:
    """How to turn a decoded picture upright: first transpose it, then flip it."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return (H, W, 3) pixels upright, as a view: (W, H, 3) if transposed."""
        if self.transpose:
            pixels = pixels.transpose(1, 0, 2)
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@dataclass(frozen=True)
class VideoStream:
    """The properties of a video stream, from its container and its first frame."""

    # Size in pixels, after rotation.
    height: int
    width: int
    # Presentation time of each frame in units of `time_base` seconds, ascending.
    times: tuple[int, ...]
    time_base: Fraction
    # Frames per second, exact. None if the rate is variable, or unknown for a single frame.
    fps: Fraction | None
    # Displayed width of a pixel divided by its height.
    pixel_aspect: Fraction
    # None if the rotation is not 0, 90, 180 or 270 degrees.
    orientation: Orientation | None
    # Code points of ITU-T H.273; 2 means unspecified.
    transfer: int
    primaries: int
    matrix: int
    # Bits per component.
    bits: int
    interlaced: bool
    # Frames that are decoded, but not displayed, because an edit list hides them.
    hidden: int
    # Frames at the beginning that are left out because they cannot be decoded, as in a recording
    # that was cut between keyframes.
    left_out: int

    @property
    def start(self) -> Fraction:
        """Presentation time of the first frame, in seconds."""
        return self.times[0] * self.time_base

    @property
    def constant(self) -> bool:
        """Whether the frame rate is constant; that of a single frame is."""
        return self.fps is not None or len(self.times) == 1


def describe(reader: PacketReader, index: FrameIndex, first: av.VideoFrame) -> VideoStream:
    """Return the properties of a stream; `first` is a decoded frame of it."""
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
        matrix=int(first.colorspace),  # the one that the conversion to RGB uses
        bits=first.format.components[0].bits,
        interlaced=first.interlaced_frame,
        hidden=sum(packet.hidden for packet in reader.packets),
        left_out=index.left_out,
    )


def _orientation(frame: av.VideoFrame) -> Orientation | None:
    """Return the orientation of the display matrix: (x, y) is displayed at (a x + c y, b x + d
    y)."""
    try:
        # Not `frame.side_data`: the frame would refer to it and it to the frame, which keeps all
        # pictures of the decoder in memory until the garbage collector comes.
        container = SideDataContainer(frame)  # type: ignore[call-arg]  # its types lack it
        matrix: Any = container.get("DISPLAYMATRIX")
    except ValueError:  # other side data that this PyAV has no name for; the angle is still known
        return {
            0: Orientation(),
            90: Orientation(transpose=True, flip_rows=True),
            180: Orientation(flip_rows=True, flip_columns=True),
            270: Orientation(transpose=True, flip_columns=True),
        }.get(frame.rotation % 360)
    if matrix is None:
        return Orientation()
    a, b, _, c, d = (int(number) for number in np.frombuffer(matrix, np.int32)[:5])
    least = max(map(abs, (a, b, c, d))) / 100  # smaller values are rounding errors
    if max(abs(b), abs(c)) <= least:
        return Orientation(flip_rows=d < 0, flip_columns=a < 0)
    if max(abs(a), abs(d)) <= least:
        return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    return None
