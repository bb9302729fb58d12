"""The packets of a video stream: list them, and read or decode from any of them."""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import av
from av.stream import Disposition

from ..errors import InputError
from . import limits
from .files import open_media, reading

SEARCHED = 100  # packets to read after a seek until a known one is found


class Packet(NamedTuple):
    """The container's description of a packet, without its data."""

    pts: int | None  # presentation time of its frame, in the stream's time base
    dts: int | None  # decoding time
    position: int | None  # byte offset in the file
    size: int  # bytes
    key: bool  # decoding can begin with it
    hidden: bool  # its frame is decoded, but not displayed
    damaged: bool  # marked by the container: truncated, or bytes are missing


class PacketReader:
    """The packets of a file's first video stream that is not cover art, numbered in file order.

    Containers seek to a time, some of them only roughly. Therefore every seek is checked: the
    packet after it is looked up in the list that was made when the file was opened. If it is not
    found, the file is read from the beginning.

    Attributes:
        packets: all of them.
        stream: PyAV's stream; its codec context has size and colors.
        failed: numbers of the packets that could not be decoded so far.

    Raises:
        InputError: there is no such file, FFmpeg cannot read it, it has no video stream, or its
            frames are too many or too large (see `limits`).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._unread: Any = None
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
                for packet in islice(self._demux(), limits.MAX_PACKETS + 1)
                if packet.size
            ]
        if len(self.packets) > limits.MAX_PACKETS:
            raise InputError(
                f"{path} has more than {limits.MAX_PACKETS} frames; split it into shorter files"
            )
        places = [(packet.position, packet.size, packet.pts) for packet in self.packets]
        counts = Counter(places)
        self._numbers = {
            place: number
            for number, place in enumerate(places)
            if counts[place] == 1 and place[0] is not None
        }

    def __del__(self) -> None:
        # PyAV's objects refer to each other. Until the container is closed, or the garbage
        # collector comes, they keep the decoder with all pictures that it ever held at once.
        if hasattr(self, "_container"):
            if self._unread is not None:
                self._unread.close()
            self._container.close()

    @property
    def container(self) -> str:
        """FFmpeg's name of the format; several names with commas if they share a demuxer."""
        return self._container.format.name

    @property
    def codec(self) -> str:
        return self.stream.codec_context.name

    def read(self, first: int) -> Iterator[av.Packet]:
        """Read the packets from number `first` on. A new iterator ends the one before.

        A packet's `pts` is set to its number, because a decoder copies it to the frame. The last
        packet is empty, which makes the decoder return the frames that it holds back.

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
            An iterator over (number of the packet, frame) in display order. Packets that cannot be
            decoded are skipped and added to `failed`.

        Raises:
            InputError: as `read`, or a frame is larger than `limits.MAX_PIXELS`.
        """
        for packet in self.read(first):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                last = len(self.packets) - 1
                self.failed.add(last if packet.pts is None or not packet.size else packet.pts)
                continue
            except av.error.FFmpegError as error:  # of a frame that is too large, among others
                raise InputError(
                    f"{self.path}: a frame cannot be decoded ({error.strerror}); "
                    f"expected at most {limits.MAX_PIXELS} pixels"
                ) from error
            for frame in frames:
                self._check_size(frame.width, frame.height)
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
        # With threads, the decoder does not report all damage, and drops undamaged frames.
        self.stream.thread_type = "NONE"
        context = self.stream.codec_context
        self._check_size(context.width, context.height)
        self._unread = None

    def _check_size(self, width: int, height: int) -> None:
        if width * height > limits.MAX_PIXELS:
            raise InputError(
                f"{self.path} has frames of {width} x {height}; "
                f"expected at most {limits.MAX_PIXELS} pixels"
            )

    def _demux(self) -> Iterator[av.Packet]:
        self._unread = self._container.demux(self.stream)
        return self._unread

    def _reopen(self) -> None:
        self._container.close()
        self._open()

    def _seek(self, first: int) -> tuple[int, Iterator[av.Packet]]:
        """Seek to packet `first` or one before it. Return its number, and the packets from it
        on."""
        if self._unread is not None:
            self._unread.close()  # the time limit of its next packet would also hold for the seek
        wanted = self.packets[first]
        times = [time for time in (wanted.pts, wanted.dts) if time is not None]
        if times:
            try:
                # The earlier of the two, because some containers seek by pts and others by dts.
                self._container.seek(min(times), stream=self.stream)
                packets = self._demux()
                for _, packet in zip(range(SEARCHED), packets, strict=False):
                    place = packet.pos, packet.size, packet.pts
                    number = self._numbers.get(place)
                    if number is not None and number <= first:
                        return number, _with(packet, packets)
                    if number is not None:
                        break
            except av.error.FFmpegError:
                pass  # reading from the beginning raises the error again
        self._reopen()
        return 0, self._demux()

    def _is_invisible(self, packet: av.Packet) -> bool:
        """Return whether it is a VP8 frame that is only a reference for others (RFC 6386, 9.1)."""
        return bool(packet.size) and self.codec == "vp8" and not memoryview(packet)[0] & 0x10


def _with(first: av.Packet, others: Iterator[av.Packet]) -> Iterator[av.Packet]:
    yield first
    yield from others
