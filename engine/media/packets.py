"""The packets of a video stream: what each holds, and reading and decoding from any of them."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import av
from av.stream import Disposition

from ..errors import InputError
from .files import open_media, reading

SEARCHED = 100  # packets that are looked at after a seek, to find out where it went


class Packet(NamedTuple):
    """What a container says of a packet, without its data."""

    pts: int | None  # when its frame is shown, in the stream's time base
    dts: int | None  # when it is to be decoded
    position: int | None  # its byte in the file
    size: int  # bytes
    key: bool  # decoding can begin with it
    hidden: bool  # its frame is decoded, but not shown
    damaged: bool  # the container says so: cut short, or bytes are missing


class PacketReader:
    """The packets of a file's first video stream that is not a cover, numbered as they lie in it.

    Containers seek to a time, and some only to about there. Here every seek is checked: the packet
    that comes after it is looked up among those that were found when the file was opened, and
    where that fails the file is read from its beginning.

    Attributes:
        packets: all of them.
        stream: PyAV's; its codec context tells size and colours.
        failed: numbers of the packets that could not be decoded so far.

    Raises:
        InputError: no such file, nothing FFmpeg can read, no video stream.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._open()
        self.failed: set[int] = set()
        with reading(path):
            self.packets = [
                Packet(
                    pts=packet.pts,
                    dts=packet.dts,
                    position=packet.pos,
                    size=packet.size,
                    key=packet.is_keyframe,
                    hidden=packet.is_discard or self._is_invisible(packet),
                    damaged=packet.is_corrupt,
                )
                for packet in self._container.demux(self.stream)
                if packet.size
            ]
        places = [(packet.position, packet.size, packet.pts) for packet in self.packets]
        counts = Counter(places)
        self._numbers = {
            place: number
            for number, place in enumerate(places)
            if counts[place] == 1 and place[0] is not None
        }

    @property
    def container(self) -> str:
        """FFmpeg's name of the format: several, with commas, where one reader is for all."""
        return self._container.format.name

    @property
    def codec(self) -> str:
        return self.stream.codec_context.name

    def read(self, first: int) -> Iterator[av.Packet]:
        """Read the packets from number `first` on. One iterator at a time.

        A packet's `pts` is its number, which a decoder hands on to the frame that it makes of it.
        The last packet is empty: it makes the decoder give out what it holds back.

        Raises:
            InputError: the file cannot be read, or is no longer the one that was opened.
        """
        with reading(self.path):
            number, packets = self._seek(first)
            for packet in packets:
                if not packet.size:
                    yield packet
                    continue
                if number >= len(self.packets) or packet.size != self.packets[number].size:
                    raise InputError(f"{self.path} changed while it was in use")
                if number >= first:
                    packet.pts = number
                    yield packet
                number += 1

    def decode(self, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from packet `first` on.

        Returns:
            An iterator over frames in the order they are shown, each with the number of its packet
            before it. Packets that cannot be decoded are passed over, and added to `failed`.
        """
        for packet in self.read(first):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                last = len(self.packets) - 1
                self.failed.add(last if packet.pts is None or not packet.size else packet.pts)
                continue
            for frame in frames:
                number: Any = frame.pts  # None if a packet held more than one frame
                yield number, frame

    def _open(self) -> None:
        self._container = open_media(self.path)
        streams = [
            stream
            for stream in self._container.streams.video
            if not stream.disposition & Disposition.attached_pic
        ]
        if not streams:
            raise InputError(f"{self.path} has no video stream")
        self.stream: Any = streams[0]
        if self.stream.codec_context is None:
            raise InputError(f"{self.path} has a video stream of a codec that FFmpeg does not know")
        # With threads, damage is not always reported, and takes frames away that are whole.
        self.stream.thread_type = "NONE"

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _seek(self, first: int) -> tuple[int, Iterator[av.Packet]]:
        """The number of a packet that is not after `first`, and the packets from it on."""
        wanted = self.packets[first]
        times = [time for time in (wanted.pts, wanted.dts) if time is not None]
        if times:
            try:
                # The earlier of the two: some containers seek by the one, some by the other.
                self._container.seek(min(times), stream=self.stream)
                packets = self._container.demux(self.stream)
                for _, packet in zip(range(SEARCHED), packets, strict=False):
                    place = packet.pos, packet.size, packet.pts
                    number = self._numbers.get(place)
                    if number is not None and number <= first:
                        return number, _with(packet, packets)
                    if number is not None:
                        break
            except av.error.FFmpegError:
                pass  # what cannot be read will show again from the beginning
        self._reopen()
        return 0, self._container.demux(self.stream)

    def _is_invisible(self, packet: av.Packet) -> bool:
        """Whether it is a VP8 frame that only others are predicted from (RFC 6386, 9.1)."""
        return bool(packet.size) and self.codec == "vp8" and not memoryview(packet)[0] & 0x10


def _with(first: av.Packet, others: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from others
