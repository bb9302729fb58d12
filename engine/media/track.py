"""One audio track of a file: which one, what its channels are, and when its samples are heard."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from ..errors import InputError
from .files import open_media, reading

# Timestamps are rounded, to 1 ms in Matroska and Flash, and jitter where a clock wrote them. Less
# than a packet of Opus, which lasts 20 ms, is no gap.
ROUNDING = 0.002
JITTER = 0.015
# Seconds by which timestamps go back when they start anew, and by which they jump ahead where they
# may start at any time: in MPEG's streams. The second is FFmpeg's own bound.
BACK = 1
AHEAD = 10
MPEG = ("mpegts", "mpeg")
# FFmpeg's flag for formats without an index. Of these, only Ogg has timestamps: in the others, such
# as mp3, FFmpeg counts packets, and a tag between joined files is one.
GENERIC_INDEX = 0x100
MOST_SILENCE = 3600  # seconds for a whole file, so that broken timestamps do not fill the memory
PLANES = 8  # from that number on, PyAV reads beyond the planes of a planar frame, and crashes
SEARCHED = 1000  # packets, for the first frame that can be decoded: more than a group of pictures
STILL = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a track.

    Attributes:
        samples: (channels, n) float32.
        names: FFmpeg's name of each channel, () where they have none.
        rate: Hz, the same in all blocks of a track.
        first: the number of the first sample.
    """

    samples: np.ndarray
    names: tuple[str, ...]
    rate: int
    first: int


def read_track(
    path: str | os.PathLike,
    track: int | None = None,
    *,
    from_first_frame: bool = False,
    notes: list[str] | None = None,
) -> Iterator[Block]:
    """Decode an audio track on the clock of its file.

    In a film, sound and picture share a clock: sound that begins after the first frame has
    silence before it. Sound that begins earlier is kept, and its first sample is sample 0, unless
    `from_first_frame`. In a file without a film, sample 0 is the first one, whatever its time.

    Gaps in the timestamps become silence, and so do packets that cannot be decoded. Where
    timestamps overlap, no sample is dropped.

    Args:
        track: the audio track, from 0 on. By default the first one that is marked as the default,
            else the first.
        from_first_frame: drop what is heard before the first frame of a film, which then is at
            sample 0.
        notes: gets a line for each thing that a user should know, at the end of the track.

    Raises:
        InputError: no such file, nothing FFmpeg can read, no such track, or nothing in it that
            can be decoded.
    """
    with open_media(path) as container:
        stream = _choose(path, container, track)
        samples = _Samples(_channel_names(stream.codec_context))
        counted = bool(container.format.flags & GENERIC_INDEX) and container.format.name != "ogg"
        damage = _Damage(stream, counted)
        clock = _Clock(starts_anywhere=container.format.name in MPEG)
        begun = False
        with reading(path):
            for frame in damage.pass_over(_packets(container, stream)):
                time = damage.time(frame)
                yield from samples.prepare(frame)
                if not begun:
                    begun = True
                    sound, picture = damage.begin(time), _first_frame_time(path, container)
                    samples.skip(clock.begin(sound, picture, from_first_frame))
                yield from samples.silence(clock.gap(time, samples.seconds))
                yield from samples.add(frame)
            yield from samples.flush()
            if begun:
                yield from samples.silence(clock.gap(damage.end, samples.seconds))
    if notes is not None:
        notes += [f"{path}: {note}" for note in (*damage.notes(clock), *clock.notes())]


def _choose(path: str | os.PathLike, container: Any, track: int | None) -> Any:
    tracks = container.streams.audio
    if not tracks:
        held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise InputError(f"{path} has no audio stream (it holds {held})")
    if track is not None and not 0 <= track < len(tracks):
        named = ", ".join(f"{number}{_about(stream)}" for number, stream in enumerate(tracks))
        raise InputError(f"audio track is {track}. {path} has {len(tracks)}, from 0 on: {named}")
    if track is None:
        usable = [stream for stream in tracks if stream.codec_context] or tracks
        marked = [stream for stream in usable if stream.disposition & Disposition.default]
        chosen = (marked or usable)[0]
    else:
        chosen = tracks[track]
    if not chosen.codec_context:
        number = tracks.index(chosen)
        raise InputError(f"{path}: FFmpeg has no decoder for audio track {number}")
    return chosen


def _about(stream: Any) -> str:
    """What a file says of a track, in brackets."""
    title = " ".join(stream.metadata.get("title", "").split())[:40]
    language = stream.metadata.get("language", "und")
    said = [title and f'"{title}"', "" if language == "und" else language]
    said.append("default" if stream.disposition & Disposition.default else "")
    return f" ({', '.join(filter(None, said))})" if any(said) else ""


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    try:
        yield from container.demux(stream)
    except IndexError:
        # PyAV raises it after the last packet if a stream came up in the middle, as text in FLV may
        return


def _first_frame_time(path: str | os.PathLike, container: Any) -> float | None:
    """When a film's picture begins, in seconds; None if there is no film, but a cover at most.

    A film that was cut begins with frames that cannot be decoded, which are not shown.
    """
    films = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not films:
        return None
    begin = films[0].start_time
    with open_media(path) as again, suppress(av.error.FFmpegError):  # this one is at its sound
        stream = again.streams[films[0].index]
        for packet in islice(again.demux(stream), SEARCHED if stream.codec_context else 0):
            with suppress(av.error.InvalidDataError):
                times = [frame.pts for frame in packet.decode() if frame.pts is not None]
                if times:
                    begin = min(times)
                    break
    return None if begin is None else float(begin * films[0].time_base)


def _channel_names(context: Any) -> tuple[str, ...]:
    """The names of a stream's channels, before anything is decoded.

    PyAV 18 frees a layout twice, which kills the process, if its order is not one of FFmpeg's own:
    C, L, R, for example. So the decoder gets to know no more than the number of channels then. What
    `layout` holds is freed once, by itself, because the decoder no longer points to it.
    """
    layout = context.layout
    names = _names(layout)
    # "3 channels (FC+FL+FR)", where others are called "stereo" or "5.1"
    if " " in layout.name and layout.nb_channels:
        context.layout = f"{layout.nb_channels} channels"
    return names


def _names(layout: av.AudioLayout) -> tuple[str, ...]:
    names = tuple(channel.name for channel in layout.channels)
    return () if "NONE" in names else names


class _Samples:
    """Makes numbered blocks of frames, in float32 and at the rate of the first one."""

    def __init__(self, stream_names: tuple[str, ...]):
        self._stream_names = stream_names
        self._format: tuple[str, str, int] | None = None
        self._converter: av.AudioResampler | None = None
        self._names: tuple[str, ...] = ()
        self._channels = 0
        self._rate = 0
        self._first = 0

    @property
    def seconds(self) -> float:
        """Where the next sample is."""
        return self._first / self._rate

    def skip(self, seconds: float) -> None:
        """Drop the first samples."""
        self._first = -round(seconds * self._rate)

    def prepare(self, frame: av.AudioFrame) -> Iterator[Block]:
        """Get ready for a frame: in joined files, its format and rate may be new."""
        now = frame.format.name, frame.layout.name, frame.sample_rate
        if now == self._format:
            return
        yield from self.flush()
        self._format, self._rate = now, self._rate or frame.sample_rate
        self._channels = frame.layout.nb_channels
        self._names = _names(frame.layout)
        if not self._names and len(self._stream_names) == self._channels:
            self._names = self._stream_names

    def add(self, frame: av.AudioFrame) -> Iterator[Block]:
        """Convert the frame that was prepared for."""
        if self._converter is None:
            kind = "fltp" if self._channels < PLANES else "flt"
            self._converter = av.AudioResampler(kind, None, self._rate)
        frame.pts = None
        yield from self._blocks(self._converter.resample(frame))

    def flush(self) -> Iterator[Block]:
        """Take the samples that a change of the rate holds back."""
        if self._converter is not None:
            yield from self._blocks(self._converter.resample(None))
            self._converter = None

    def silence(self, seconds: float) -> Iterator[Block]:
        """Add so much silence, a second at a time."""
        left = round(seconds * self._rate)
        if left:
            yield from self.flush()
        while left > 0:
            count = min(left, self._rate)
            yield from self._block(np.zeros((self._channels, count), np.float32))
            left -= count

    def _blocks(self, parts: Iterable[av.AudioFrame | None]) -> Iterator[Block]:
        for part in filter(None, parts):
            samples: Any = part.to_ndarray()
            if len(samples) != self._channels:  # packed
                samples = np.ascontiguousarray(samples.reshape(-1, self._channels).T)
            yield from self._block(samples)

    def _block(self, samples: np.ndarray) -> Iterator[Block]:
        first, self._first = self._first, self._first + samples.shape[1]
        samples = samples[:, max(-first, 0) :]
        if samples.size:
            yield Block(samples, self._names, self._rate, max(first, 0))


class _Clock:
    """Says where there is a gap in the timestamps. Times are those of the file, in seconds."""

    def __init__(self, starts_anywhere: bool):
        self._starts_anywhere = starts_anywhere
        self._zero: float | None = None  # the time of sample 0
        self._silence = 0.0
        self._jumps: list[tuple[float, float]] = []

    def begin(self, sound: float | None, picture: float | None, from_first_frame: bool) -> float:
        """Begin with a film's first frame or with the sound, and return how much of it to drop."""
        if sound is None:
            return 0.0
        picture = sound if picture is None else picture
        self._zero = picture if from_first_frame else min(sound, picture)
        return max(self._zero - sound, 0.0)

    def position(self, time: float) -> float:
        """Where a time is in the samples, in seconds."""
        return time - (self._zero or 0)

    def gap(self, time: float | None, written: float) -> float:
        """Return the seconds of silence between the end of what was written and `time`.

        Deviations are measured from the beginning, not from frame to frame. Otherwise those of
        rounding would add up, and jitter would be filled again and again.
        """
        if time is None:
            return 0.0
        if self._zero is None:
            self._zero = time - written
        gap = time - self._zero - written
        if gap < -BACK:
            self._zero += gap
        if gap <= (JITTER if written > 0 else ROUNDING):
            return 0.0
        if (self._starts_anywhere and gap > AHEAD) or self._silence + gap > MOST_SILENCE:
            self._jumps.append((written, gap))
            self._zero += gap
            return 0.0
        self._silence += gap
        return gap

    def notes(self) -> Iterator[str]:
        """Say where timestamps jump by more than a gap can have."""
        if self._jumps:
            where, gap = self._jumps[0]
            more = f", the first of {len(self._jumps)}" if len(self._jumps) > 1 else ""
            yield (
                f"its timestamps jump by {gap:.1f} s at {where:.2f} s{more}. "
                "They are taken to start anew there, with no silence between"
            )


class _Damage:
    """Packets of a stream that cannot be decoded.

    Args:
        counted: take the times from what was decoded before, not from timestamps.
    """

    def __init__(self, stream: Any, counted: bool):
        self._tick = float(stream.time_base)
        self._start = stream.start_time  # what an encoder put before that is not heard
        self._counted = 0.0 if counted else None
        self._damaged = 0
        self._first: float | None = None
        self._decoded = False
        self._before: float | None = None  # when the first one begins, if no frame came earlier
        self.end: float | None = None  # when the last one ends, if no frame comes later

    def pass_over(self, packets: Iterable[Any]) -> Iterator[av.AudioFrame]:
        """Decode what can be decoded.

        Raises:
            FFmpegError: nothing can.
        """
        error = None
        for packet in packets:
            try:
                frames = packet.decode()
            except av.error.MemoryError:
                raise
            except av.error.FFmpegError as damage:
                if packet.size and bytes(packet)[:3] != b"ID3":
                    error = damage
                    self._add(packet)
                continue
            for frame in frames:
                self._decoded, self.end = True, None
                yield frame
                if self._counted is not None:
                    self._counted += frame.samples / frame.sample_rate
        if error and not self._decoded:
            raise error

    def _add(self, packet: Any) -> None:
        self._damaged += 1
        begin, seconds = self.time(packet), (packet.duration or 0) * self._tick
        if begin is None:
            return
        self._first = begin if self._first is None else self._first
        if not self._decoded and self._before is None:
            start = begin if self._start is None else self._start * self._tick
            self._before = max(begin, start) if self._counted is None else begin
        self.end = begin + seconds
        if self._counted is not None:
            self._counted = self.end

    def time(self, of: Any) -> float | None:
        """Return when a frame or a packet is heard, in seconds of the file."""
        if self._counted is not None:
            return self._counted
        return None if of.pts is None else of.pts * self._tick

    def begin(self, time: float | None) -> float | None:
        """Return when the sound begins whose first frame is heard at `time`."""
        return time if time is None or self._before is None else min(time, self._before)

    def notes(self, clock: _Clock) -> Iterator[str]:
        """Say how many packets are damaged."""
        if not self._damaged:
            return
        begin = "" if self._first is None else f", the first at {clock.position(self._first):.2f} s"
        packets = "1 packet" if self._damaged == 1 else f"{self._damaged} packets"
        yield f"{packets} of its sound cannot be decoded{begin}. There is silence instead"
