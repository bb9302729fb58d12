"""Which packet of a video stream is which frame, and where decoding can start for it."""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import InputError
from .packets import PacketReader

# Containers that say of each frame when it is shown. Others leave some of the times to FFmpeg,
# which guesses.
TIMED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "flv"}
MAKE_MP4 = "make an mp4 of it, for example: ffmpeg -i IN OUT.mp4"


@dataclass(frozen=True)
class Start:
    """Where decoding can start: all frames from number `frame` on come out right."""

    frame: int
    packet: int


@dataclass(frozen=True)
class FrameIndex:
    """The frames of a stream, numbered in the order they are shown."""

    packets: list[int]  # of each frame, the number of its packet
    numbers: dict[int, int]  # of each packet that is shown, the number of its frame
    times: list[int]  # when each is shown, in the stream's time base, ascending
    starts: list[Start]  # ascending; the first one gives frame 0
    left_out: int = 0  # packets at the beginning without what they are predicted from

    def start_for(self, number: int) -> Start:
        """The last start that gives frame `number`."""
        return self.starts[bisect_right(self.starts, number, key=lambda start: start.frame) - 1]

    def group_end(self, number: int) -> int:
        """The frame after the last one that starts where frame `number` does."""
        after = bisect_right(self.starts, number, key=lambda start: start.frame)
        return self.starts[after].frame if after < len(self.starts) else len(self.times)


def index_frames(reader: PacketReader) -> FrameIndex:
    """Find out which packets are frames and in what order they are shown.

    Where the container says so of each, nothing is decoded. Where it does not, or where frames
    come before anything that they could be decoded from, all is decoded once: what comes out then
    is what there is.

    Raises:
        InputError: no frames, or a file that is damaged, or without times, and does not say either
            where they belong.
    """
    packets = reader.packets
    shown = [number for number, packet in enumerate(packets) if not packet.hidden]
    if not shown:
        raise InputError(f"{reader.path} has a video stream of 0 frames")
    left_out = 0
    if _says_when(reader, shown):
        at: dict[int, Any] = {number: packets[number].pts for number in shown}
        order = sorted(shown, key=at.__getitem__)
        times = [at[number] for number in order]
    else:
        order = _decoded_order(reader)
        times = _times(reader, order)
        # Those of an open group come between its keyframe and the next frame that can be decoded.
        second = sorted(order)[:2][-1]
        left_out = len({number for number in shown if number < second} - set(order))
    numbers = {packet: number for number, packet in enumerate(order)}
    return FrameIndex(order, numbers, times, _starts(reader, numbers), left_out)


def _says_when(reader: PacketReader, shown: list[int]) -> bool:
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
    # What fails before the first frame that comes out has no beginning, and is left out.
    first = min(order)
    lost = {number for number in reader.failed if number > first} - set(order)
    if lost:
        raise InputError(
            f"{reader.path} is damaged: {len(lost)} of its frames cannot be decoded, and it does "
            f"not say where they belong; {MAKE_MP4}"
        )
    return order


def _times(reader: PacketReader, order: list[int]) -> list[int]:
    packets = reader.packets
    guessed = []
    for kind in ("pts", "dts"):  # these are as far apart as those
        times = [getattr(packets[number], kind) for number in order]
        if None not in times:
            if len(set(times)) == len(times):
                return sorted(times)
            guessed.append(sorted(times))
    # An MPEG program stream gives the times of some frames and the rate of all. FFmpeg's guesses
    # between these may be some frames early or late, so that two frames have the same time.
    rate = reader.stream.average_rate
    for times in guessed:
        even = _even_times(times, 1 / (rate * reader.stream.time_base)) if rate else None
        if even is not None:
            return even
    if len(order) == 1:
        return [0]
    raise InputError(f"{reader.path} does not say when each of its frames is shown; {MAKE_MP4}")


def _even_times(times: list[int], ticks: Fraction) -> list[int] | None:
    """Times that are `ticks` apart, if none of them is more than three frames from what it was,
    and the last one no more than one."""
    even = [times[0] + round(number * ticks) for number in range(len(times))]
    off = [abs(time - guess) for time, guess in zip(even, times, strict=True)]
    return even if max(off) <= 3 * ticks + 1 and off[-1] <= ticks + 1 else None


def _starts(reader: PacketReader, numbers: dict[int, int]) -> list[Start]:
    starts = [Start(0, 0)]
    latest = 0  # of the frames that come before in the file
    for number, packet in enumerate(reader.packets):
        frame = numbers.get(number)
        if frame is None:
            continue
        if packet.key and frame > latest:
            starts.append(Start(frame, number))
        latest = max(latest, frame)
    return starts
