"""The index of a video stream: the packet of each frame, and where decoding can start."""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import InputError
from .packets import PacketReader

# Containers that store a timestamp for every frame. For others, FFmpeg guesses some of them.
TIMED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"}
MAKE_MP4 = "make an mp4 of it, for example: ffmpeg -i IN OUT.mp4"


@dataclass(frozen=True)
class Start:
    """A packet where decoding can start. All frames from number `frame` on are then exact."""

    frame: int
    packet: int


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a stream, numbered in display order."""

    packets: list[int]  # frame -> number of its packet
    numbers: dict[int, int]  # number of a displayed packet -> frame
    times: list[int]  # frame -> presentation time in the stream's time base, ascending
    starts: list[Start]  # ascending; the first one is for frame 0
    left_out: int = 0  # packets at the beginning whose reference frames are missing

    def start_for(self, number: int) -> Start:
        """Return the last start from which frame `number` can be decoded."""
        return self.starts[bisect_right(self.starts, number, key=lambda start: start.frame) - 1]

    def group_end(self, number: int) -> int:
        """Return the end (exclusive) of the group of frames that has the same start as `number`."""
        after = bisect_right(self.starts, number, key=lambda start: start.frame)
        return self.starts[after].frame if after < len(self.starts) else len(self.times)


def index_frames(reader: PacketReader) -> FrameIndex:
    """Find out which packets are frames, and their display order.

    If the container has a timestamp for every frame, nothing is decoded. Otherwise, or if the
    stream begins with frames that cannot be decoded, the whole stream is decoded once, and the
    decoder's output gives the frames and their order.

    Raises:
        InputError: there are no frames, or the timestamps are missing and the order cannot be found
            by decoding.
    """
    packets = reader.packets
    shown = [number for number, packet in enumerate(packets) if not packet.hidden]
    if not shown:
        raise InputError(f"{reader.path} has a video stream of 0 frames")
    left_out = 0
    if _has_all_times(reader, shown):
        at: dict[int, Any] = {number: packets[number].pts for number in shown}
        order = sorted(shown, key=at.__getitem__)
        times = [at[number] for number in order]
    else:
        order = _decoded_order(reader)
        times = _times(reader, order)
        # The frames that an open group of pictures loses come between its keyframe and the next
        # frame that can be decoded.
        second = sorted(order)[:2][-1]
        left_out = len({number for number in shown if number < second} - set(order))
    numbers = {packet: number for number, packet in enumerate(order)}
    return FrameIndex(order, numbers, times, _starts(reader, numbers), left_out)


def _has_all_times(reader: PacketReader, shown: list[int]) -> bool:
    packets = reader.packets
    times: list[Any] = [packets[number].pts for number in shown]
    return (
        reader.container in TIMED
        and None not in times
        and len(set(times)) == len(times)
        and packets[0].key
        and packets[0].pts is not None
        and packets[0].pts <= min(times)
    )


def _decoded_order(reader: PacketReader) -> list[int]:
    order = [number for number, _ in reader.decode(0)]
    if not order:
        raise InputError(f"{reader.path} has a video stream of which no frame can be decoded")
    if None in order or len(set(order)) < len(order):
        raise InputError(f"{reader.path} has packets of more than one frame; {MAKE_MP4}")
    # Packets that fail before the first decoded frame are left out, because their keyframe is
    # missing.
    first = min(order)
    lost = {number for number in reader.failed if number > first} - set(order)
    if lost:
        raise InputError(
            f"{reader.path} is damaged: {len(lost)} of its frames cannot be decoded, and have no "
            f"timestamps; {MAKE_MP4}"
        )
    return order


def _times(reader: PacketReader, order: list[int]) -> list[int]:
    packets = reader.packets
    guessed = []
    for kind in ("pts", "dts"):  # both have the same differences
        times = [getattr(packets[number], kind) for number in order]
        if None not in times:
            if len(set(times)) == len(times):
                return sorted(times)
            guessed.append(sorted(times))
    # An MPEG program stream has timestamps for some frames, and a frame rate. FFmpeg guesses the
    # others. A guess may be some frames early or late, and two frames may get the same time.
    rate = reader.stream.average_rate
    for times in guessed:
        even = _even_times(times, 1 / (rate * reader.stream.time_base)) if rate else None
        if even is not None:
            return even
    if len(order) == 1:
        return [0]
    raise InputError(f"{reader.path} has frames without timestamps; {MAKE_MP4}")


def _even_times(times: list[int], ticks: Fraction) -> list[int] | None:
    """Return times that are `ticks` apart. None if one would move by more than three frames, or the
    last one by more than one."""
    even = [times[0] + round(number * ticks) for number in range(len(times))]
    off = [abs(time - guess) for time, guess in zip(even, times, strict=True)]
    return even if max(off) <= 3 * ticks + 1 and off[-1] <= ticks + 1 else None


def _starts(reader: PacketReader, numbers: dict[int, int]) -> list[Start]:
    starts = [Start(0, 0)]
    latest = 0  # largest number of the frames before this packet
    for number, packet in enumerate(reader.packets):
        frame = numbers.get(number)
        if frame is None:
            continue
        if packet.key and frame > latest:
            starts.append(Start(frame, number))
        latest = max(latest, frame)
    return starts
