"""Write sound to files of many kinds, also with faulty timestamps, and find its bursts."""

from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BURST = 0.04  # seconds
# FFmpeg 8.1 writes the encoder's delay into Matroska; older versions do not.
MATROSKA_SAYS = av.library_versions["libavformat"] >= (62, 12)


def bursts(times: Collection[float], seconds: float, rate: int, level: float = 0.5) -> np.ndarray:
    """Return tones of 900 Hz at `level`, 40 ms long, at each of the times, over a soft hum of 200
    Hz."""
    t = np.arange(round(seconds * rate)) / rate
    sound = 0.02 * np.sin(2 * np.pi * 200 * t)
    for time in times:
        now = (t >= time) & (t < time + BURST)
        sound[now] += level * np.sin(2 * np.pi * 900 * (t[now] - time))
    return sound


def heard_at(pcm: np.ndarray, rate: int = 16000) -> np.ndarray:
    """Return when the bursts begin, in seconds, to about 1 ms: where half of the peak is
    exceeded."""
    loud = np.flatnonzero(np.abs(pcm) > np.abs(pcm).max() / 2)
    return loud[np.diff(loud, prepend=-rate) > 2 * BURST * rate] / rate


def write_sound(
    path: Path,
    *tracks: np.ndarray,
    rate: int = 48000,
    codec: str = "aac",
    layout: str | None = None,
    picture: str | None = None,
    frames: int = 50,
    picture_at: float = 0,
    cut: int = 0,
    at: float = 0,
    times: Callable[[float], float | None] = lambda time: time,
    spoilt: Callable[[float], bool] = lambda time: False,
    about: Collection[dict] = (),
    default: int | None = None,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Write audio tracks, (n,) or (channels, n) float, at timestamps that the caller chooses.

    Args:
        picture: the codec of a video of so many `frames` at 25 a second, from `picture_at` on.
            Every 25th is a keyframe.
        cut: how many frames are left out at the beginning of the video.
        at: when the sound begins, in seconds.
        times: from the time of a packet to the one that is written, None to lose the packet.
        spoilt: whether the packet of a time is made to be undecodable.
        about: the metadata of each track.
        default: the track that is marked as the default.
        options, muxer: of the encoder and of the container.
    """
    packets = []
    with av.open(str(path), "w", options=muxer or {}) as container:
        if picture:
            packets += _pictures(container, picture, frames, picture_at)[cut:]
        for number, samples in enumerate(tracks):
            samples = np.atleast_2d(samples)
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.layout = layout or {1: "mono", 2: "stereo"}[len(samples)]
            if codec in ("aac", "libmp3lame", "mp2", "wmav1", "wmav2", "ac3", "eac3"):
                stream.bit_rate = 96000 * len(samples)
            if default is not None:
                stream.disposition = int(number == default)
            stream.metadata.update(dict(enumerate(about)).get(number, {}))
            for packet in _encoded(stream, samples, rate, round(at * rate)):
                before = float((packet.pts or 0) * packet.time_base)
                now = times(before)
                if now is None:
                    continue
                if spoilt(before):
                    packet = _spoilt(packet)
                packet.pts = packet.dts = packet.pts + round((now - before) / packet.time_base)
                packets.append(packet)
        if picture or len(tracks) > 1:
            packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            container.mux(packet)
    return path


def _encoded(stream, samples: np.ndarray, rate: int, first: int) -> list[av.Packet]:
    packets = []
    for begin in range(0, samples.shape[1], 1024):  # PCM makes a packet of each
        packed = np.ascontiguousarray(samples[:, begin : begin + 1024].T, np.float32)
        frame = av.AudioFrame.from_ndarray(packed.reshape(1, -1), "flt", stream.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + begin
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def _spoilt(packet: av.Packet) -> av.Packet:
    """Return the packet with bytes that no decoder accepts."""
    made = av.Packet(b"\xff\x00" * (packet.size // 2 + 1))
    for name in ("pts", "dts", "time_base", "duration", "stream"):
        setattr(made, name, getattr(packet, name))
    return made


def _pictures(container, codec: str, frames: int, begin: float) -> list[av.Packet]:
    options = {"g": "25", "sc_threshold": "0"} | ({"bf": "0"} if codec == "libx264" else {})
    stream = container.add_stream(codec, rate=25, options=options)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    packets = []
    for number in range(frames):
        image = np.full((48, 64, 3), 20 * number % 250, np.uint8)
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame.pts, frame.time_base = number + round(25 * begin), Fraction(1, 25)
        packets += stream.encode(frame)
    return packets + stream.encode(None)
