"""Make videos for tests: any codec in any container, with tags and faults."""

import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

CASES = Path(__file__).parents[1] / "cases"
QUIET = {"libx265": {"x265-params": "log-level=none"}}


def moving(count: int = 60, height: int = 48, width: int = 64) -> np.ndarray:
    """Return coarse noise that moves and grows brighter, (count, height, width, 3) uint8."""
    noise = np.random.default_rng(0).integers(0, 180, (height // 8, width // 8, 3))
    frames = [np.roll(noise, i, axis=1) + i for i in range(count)]
    return np.stack([np.kron(frame, np.ones((8, 8, 1))) for frame in frames]).astype(np.uint8)


def encode(
    path: Path,
    frames: Iterable[np.ndarray | av.VideoFrame],
    codec: str = "libx264",
    *,
    pix_fmt: str = "yuv420p",
    rate: Fraction | int = 25,
    times: Iterable[int] | None = None,
    time_base: Fraction | None = None,
    container: str | None = None,
    options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    movflags: str | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Encode frames, in RGB or in the stored format, at a constant rate or at `times`."""
    try:
        av.Codec(codec, "w")
    except ValueError:
        pytest.skip(f"this FFmpeg has no {codec}")
    frames = list(frames)
    time_base = time_base or 1 / Fraction(rate)
    height, width = (
        frames[0].shape[:2] if isinstance(frames[0], np.ndarray) else (frames[0].height, frames[0].width)
    )  # fmt: skip
    muxer = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", format=container, options=muxer) as output:
        output.metadata.update(metadata or {})
        settings = {**QUIET.get(codec, {}), **(options or {})}
        stream = output.add_stream(codec, rate=rate, options=settings)
        stream.height, stream.width, stream.pix_fmt = height, width, pix_fmt
        context = stream.codec_context
        context.time_base = time_base
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        if "g" in settings:
            context.gop_size = int(settings["g"])
        if "bf" in settings:
            context.max_b_frames = int(settings["bf"])
        for time, frame in zip(times or range(len(frames)), frames, strict=True):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = time, time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def planes(pix_fmt: str, height: int, width: int, values: tuple[int, int, int]) -> av.VideoFrame:
    """Return a stored frame of one color, 4:2:0 with 8 or 10 bits."""
    frame = av.VideoFrame(width, height, pix_fmt)
    kind = np.uint16 if "10" in pix_fmt else np.uint8
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // kind().itemsize, value, kind).tobytes())
    return frame


def plain_decode(path: Path) -> list[np.ndarray]:
    """Decode all frames from the beginning with PyAV, as RGB, and skip broken packets."""
    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for packet in container.demux(video=0):
            try:
                decoded = packet.decode()
            except av.error.InvalidDataError:
                continue
            frames += [frame.to_ndarray(format="rgb24") for frame in decoded]
    return frames


def packets_of(path: Path) -> Iterator[av.Packet]:
    with av.open(str(path)) as container:
        yield from (packet for packet in container.demux(video=0) if packet.size)


def change_packet(path: Path, number: int, change) -> None:
    """Change the bytes of a packet in the file."""
    packet = bytes(next(p for i, p in enumerate(packets_of(path)) if i == number))
    data = path.read_bytes()
    assert data.count(packet) == 1
    changed = change(bytearray(packet))
    assert len(changed) == len(packet)
    path.write_bytes(data.replace(packet, changed))


def copy_packets(source: Path, target: Path, first: int = 0) -> Path:
    """Copy the packets from number `first` on to another container."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(container.demux(video=0)):
            if packet.size and number >= first:
                packet.stream = stream
                output.mux(packet)
    return target


def set_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    """Write a display matrix into an mp4 with one track: (x, y) is shown at (ax + cy, bx + dy)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    assert data[at] == 0  # version 0: 40 bytes before the matrix
    fixed = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)]
    data[at + 40 : at + 76] = struct.pack(">9i", *fixed, 1 << 30)
    path.write_bytes(data)
    return path


def hide_first(path: Path, count: int, rate: int = 25) -> Path:
    """Hide the first frames of an mp4 by its edit list, as `ffmpeg -ss -c copy` does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 8
    entries, duration, media_time = struct.unpack_from(">IIi", data, at)
    assert entries == 1
    timescale = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)[0]
    of_movie = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)[0]
    hidden = Fraction(count, rate)
    struct.pack_into(
        ">Ii", data, at + 4, int(duration - hidden * of_movie), int(media_time + hidden * timescale)
    )
    path.write_bytes(data)
    return path
