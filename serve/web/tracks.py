"""What a player is sent: pictures as they were encoded, sound as Opus, both with the session's
time."""

import asyncio
from collections import deque
from fractions import Fraction

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError

VIDEO_RATE, AUDIO_RATE = 90_000, 48_000  # of RTP timestamps
OPUS_SAMPLES = 960  # of a packet, 20 ms
OPUS_BITRATE = 64_000
MOST_PICTURES = 5  # that may wait to be sent; each is sent at once unless the network is gone
MOST_SOUNDS = 12  # packets


class PacketTrack(MediaStreamTrack):
    """A track of encoded packets, which aiortc sends as they are.

    Args:
        kind: "audio" or "video".
        rate: of its time stamps, Hz.
    """

    def __init__(self, kind: str, rate: int):
        super().__init__()
        self.kind = kind
        self._time_base = Fraction(1, rate)
        self._packets: deque[av.Packet] = deque()
        self._there = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Packets that were not sent yet. Not `len`: aiortc would take an empty track for none."""
        return len(self._packets)

    def put(self, data: bytes, timestamp: int) -> None:
        packet = av.Packet(data)
        packet.pts, packet.time_base = timestamp, self._time_base
        self._packets.append(packet)
        self._there.set()

    def clear(self) -> None:
        """Forget what was not sent."""
        self._packets.clear()

    def drop_first(self) -> None:
        self._packets.popleft()

    async def recv(self) -> av.Packet:
        while not self._packets:
            if self.readyState != "live":
                raise MediaStreamError
            self._there.clear()
            await self._there.wait()
        return self._packets.popleft()

    def stop(self) -> None:
        super().stop()
        self.clear()
        self._there.set()


class OpusStream:
    """Encodes the sound of a session as Opus packets.

    Args:
        sample_rate, channels: of the sound.
    """

    def __init__(self, sample_rate: int, channels: int):
        self._rate = sample_rate
        self._layout = "mono" if channels == 1 else "stereo"
        self._resampler: av.AudioResampler | None = None
        if sample_rate != AUDIO_RATE:
            self._resampler = av.AudioResampler(format="fltp", layout=self._layout, rate=AUDIO_RATE)
        self._waiting = np.empty((channels, 0), np.float32)
        self._position: int | None = None  # of the first sample that waits
        self._taken = 0  # samples, for the resampler
        encoder = av.AudioCodecContext.create("libopus", "w")
        encoder.sample_rate, encoder.format, encoder.layout = AUDIO_RATE, "flt", self._layout
        encoder.bit_rate = OPUS_BITRATE * channels
        encoder.options = {"application": "audio", "frame_duration": "20"}
        self._encoder = encoder

    def encode(self, sound: np.ndarray, first: int) -> list[tuple[int, bytes]]:
        """Encode what comes next.

        Args:
            sound: (C, n) float32.
            first: number of its first sample since the session's beginning. It matters for the
                first sound only, since sound has no gaps.

        Returns:
            Packets of 20 ms, as far as they are there: each with the time of its first sample,
            counted at 48 kHz. The encoder's own delay of 6.5 ms is taken into account.
        """
        if self._position is None:
            self._position = round(first * AUDIO_RATE / self._rate)
        if self._resampler is not None:
            sound = self._resampled(self._resampler, sound)
        waiting = np.concatenate([self._waiting, sound], axis=1)
        packets: list[tuple[int, bytes]] = []
        begin = 0
        while waiting.shape[1] - begin >= OPUS_SAMPLES:
            part = waiting[:, begin : begin + OPUS_SAMPLES].clip(-1, 1)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(part.T).reshape(1, -1), "flt", self._layout
            )
            frame.sample_rate, frame.pts = AUDIO_RATE, self._position
            frame.time_base = Fraction(1, AUDIO_RATE)
            for packet in self._encoder.encode(frame):
                assert packet.pts is not None
                packets.append((packet.pts, bytes(packet)))
            begin += OPUS_SAMPLES
            self._position += OPUS_SAMPLES
        self._waiting = waiting[:, begin:].copy()
        return packets

    def _resampled(self, resampler: av.AudioResampler, sound: np.ndarray) -> np.ndarray:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), "fltp", self._layout)
        frame.sample_rate, frame.pts = self._rate, self._taken
        frame.time_base = Fraction(1, self._rate)
        self._taken += sound.shape[1]
        parts = [made.to_ndarray() for made in resampler.resample(frame)]
        return np.concatenate([sound[:, :0], *parts], axis=1)
