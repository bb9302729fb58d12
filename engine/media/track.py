"""Decode one audio track of a file: choose it, name its channels, and place its samples in time."""

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
from . import limits
from .files import open_media, reading

# Timestamps are rounded, to 1 ms in Matroska and Flash, and jitter if they come from a clock. A gap
# is longer than that; the shortest one, a lost packet of Opus, is 20 ms.
ROUNDING = 0.002
JITTER = 0.015
# A jump of timestamps by more than this many seconds is a restart, not a gap: backwards in any
# container, ahead only in MPEG streams, which may start at any time. FFmpeg uses the same bound
# ahead.
BACK = 1
AHEAD = 10
MPEG = ("mpegts", "mpeg")
# FFmpeg's flag for formats without an index. Of these, only Ogg has timestamps. In the others, such
# as mp3, FFmpeg counts packets, and also counts a tag between joined files as one.
GENERIC_INDEX = 0x100
# Seconds of silence to add in a whole file, so that broken timestamps cannot exhaust the memory.
MOST_SILENCE = 3600
# Channels from which on PyAV reads beyond the planes of a planar frame, and crashes.
PLANES = 8
# Packets in which to search for a frame that can be decoded: more than a group of pictures.
SEARCHED = 1000
STILL = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a track.

    Attributes:
        samples: (channels, n) float32.
        names: FFmpeg's name of each channel; () if they have none.
        rate: samples per second, the same in all blocks of a track.
        first: number of the first sample.
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
    zero: float | None = None,
    notes: list[str] | None = None,
) -> Iterator[Block]:
    """Decode an audio track, and place its samples by the file's timestamps.

    In a film, sound that begins after the first frame gets silence before it. If the sound begins
    earlier, its first sample is sample 0, unless `from_first_frame` is set. In a file without a
    film, the first sample is sample 0, whatever its timestamp.

    Gaps in the timestamps, and packets that cannot be decoded, become silence. If timestamps
    overlap, no sample is dropped.

    Args:
        track: number of the audio track, from 0; by default the first one that is marked as the
            default, else the first.
        from_first_frame: drop the sound before the first frame of a film, which then is at sample
            0.
        zero: the time of the first frame in seconds of the file, if it is known. Otherwise that of
            the first frame that can be decoded counts.
        notes: a list that gets warnings about damage and jumps at the end of the track.

    Raises:
        InputError: there is no such file or track, FFmpeg cannot read it, no packet can be decoded,
            or the rate is not one of `limits`.
    """
    with open_media(path) as container:
        stream = _choose(path, container, track)
        samples = _Samples(_channel_names(stream.codec_context))
        counted = bool(container.format.flags & GENERIC_INDEX) and container.format.name != "ogg"
        damage = _Damage(stream, counted)
        clock = _Clock(starts_anywhere=container.format.name in MPEG)
        begun = False
        with reading(path):
            for frame in damage.decode(_packets(container, stream)):
                _check_rate(path, frame.sample_rate)
                time = damage.time(frame)
                yield from samples.prepare(frame)
                if not begun:
                    begun = True
                    sound, picture = damage.begin(time), zero
                    if picture is None:
                        picture = _first_frame_time(path, container)
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
        raise InputError(f"{path} has no audio stream (it has {held})")
    if track is not None and not 0 <= track < len(tracks):
        named = ", ".join(f"{number}{_describe(stream)}" for number, stream in enumerate(tracks))
        raise InputError(f"audio track is {track}; {path} has {len(tracks)}, from 0: {named}")
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


def _describe(stream: Any) -> str:
    """Return a track's title, language and default mark in brackets; "" if it has none."""
    title = " ".join(stream.metadata.get("title", "").split())[:40]
    language = stream.metadata.get("language", "und")
    facts = [title and f'"{title}"', "" if language == "und" else language]
    facts.append("default" if stream.disposition & Disposition.default else "")
    return f" ({', '.join(filter(None, facts))})" if any(facts) else ""


def _check_rate(path: str | os.PathLike, rate: int) -> None:
    if not limits.MIN_SAMPLE_RATE <= rate <= limits.MAX_SAMPLE_RATE:
        raise InputError(
            f"{path} has a sample rate of {rate} Hz; "
            f"expected {limits.MIN_SAMPLE_RATE} to {limits.MAX_SAMPLE_RATE}"
        )


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    try:
        yield from container.demux(stream)
    except IndexError:
        # PyAV raises it after the last packet if a stream appeared in the middle, as text in FLV
        # may.
        return


def _first_frame_time(path: str | os.PathLike, container: Any) -> float | None:
    """Return when a film's first frame is displayed, in seconds; None if there is no film.

    The first frames of a film that was cut may be undecodable; they do not count.
    """
    films = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not films:
        return None
    begin = films[0].start_time
    with open_media(path) as again, suppress(av.error.FFmpegError):  # `container` is in use
        stream = again.streams[films[0].index]
        for packet in islice(again.demux(stream), SEARCHED if stream.codec_context else 0):
            with suppress(av.error.InvalidDataError):
                times = [frame.pts for frame in packet.decode() if frame.pts is not None]
                if times:
                    begin = min(times)
                    break
    return None if begin is None else float(begin * films[0].time_base)


def _channel_names(context: Any) -> tuple[str, ...]:
    """Return the names of a stream's channels, before anything is decoded.

    PyAV 18 frees a layout twice, which kills the process, if its order is not one of FFmpeg's own,
    for example C, L, R. In that case the decoder is given only the number of channels. `layout`
    then is freed once, because the decoder no longer points to it.
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
    """Converts audio frames to numbered blocks of float32, at the rate of the first frame."""

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
        """Time of the next sample."""
        return self._first / self._rate

    def skip(self, seconds: float) -> None:
        """Drop the first samples."""
        self._first = -round(seconds * self._rate)

    def prepare(self, frame: av.AudioFrame) -> Iterator[Block]:
        """Prepare for a frame, whose format and rate may differ from the last one's in joined
        files."""
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
        """Convert the frame that `prepare` got."""
        if self._converter is None:
            kind = "fltp" if self._channels < PLANES else "flt"
            self._converter = av.AudioResampler(kind, None, self._rate)
        frame.pts = None
        yield from self._blocks(self._converter.resample(frame))

    def flush(self) -> Iterator[Block]:
        """Return the samples that the resampler holds back."""
        if self._converter is not None:
            yield from self._blocks(self._converter.resample(None))
            self._converter = None

    def silence(self, seconds: float) -> Iterator[Block]:
        """Add silence, in blocks of a second."""
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
    """Finds gaps in the timestamps. Times are those of the file, in seconds."""

    def __init__(self, starts_anywhere: bool):
        self._starts_anywhere = starts_anywhere
        self._zero: float | None = None  # the time of sample 0
        self._silence = 0.0
        self._jumps: list[tuple[float, float]] = []

    def begin(self, sound: float | None, picture: float | None, from_first_frame: bool) -> float:
        """Set the time of sample 0, and return how many seconds of sound to drop before it."""
        if sound is None:
            return 0.0
        picture = sound if picture is None else picture
        self._zero = picture if from_first_frame else min(sound, picture)
        return max(self._zero - sound, 0.0)

    def position(self, time: float) -> float:
        """Convert a time of the file to seconds from sample 0."""
        return time - (self._zero or 0)

    def gap(self, time: float | None, written: float) -> float:
        """Return the seconds of silence between the end of the samples so far and `time`.

        Deviations are measured from the beginning, not from frame to frame. Otherwise rounding
        errors would add up, and every jitter would add silence.
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
        """Yield a warning about timestamps that jump by more than a gap."""
        if self._jumps:
            where, gap = self._jumps[0]
            more = f" (the first of {len(self._jumps)} jumps)" if len(self._jumps) > 1 else ""
            yield (
                f"its timestamps jump by {gap:.1f} s at {where:.2f} s{more}; "
                "the jump is taken for a restart, and no silence is added"
            )


class _Damage:
    """Decodes a stream, and keeps account of the packets that cannot be decoded.

    Args:
        counted: compute times from the samples decoded before, instead of from timestamps.
    """

    def __init__(self, stream: Any, counted: bool):
        self._tick = float(stream.time_base)
        self._start = stream.start_time  # the encoder's priming samples before it are not played
        self._counted = 0.0 if counted else None
        self._damaged = 0
        self._first: float | None = None
        self._decoded = False
        # Begin of the first damaged packet, if it comes before all frames.
        self._before: float | None = None
        # End of the last damaged packet, if it comes after all frames.
        self.end: float | None = None

    def decode(self, packets: Iterable[Any]) -> Iterator[av.AudioFrame]:
        """Decode the packets, and skip damaged ones.

        Raises:
            FFmpegError: no packet can be decoded.
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
        """Return the time of a frame or a packet, in seconds of the file."""
        if self._counted is not None:
            return self._counted
        return None if of.pts is None else of.pts * self._tick

    def begin(self, time: float | None) -> float | None:
        """Return when the sound begins, given the time of the first decoded frame."""
        return time if time is None or self._before is None else min(time, self._before)

    def notes(self, clock: _Clock) -> Iterator[str]:
        """Yield a warning about damaged packets."""
        if not self._damaged:
            return
        begin = "" if self._first is None else f", the first at {clock.position(self._first):.2f} s"
        packets = "1 packet" if self._damaged == 1 else f"{self._damaged} packets"
        yield f"{packets} of its sound cannot be decoded{begin}; replaced by silence"
