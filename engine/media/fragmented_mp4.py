"""Make an mp4 that is whole at any time: it has fragments of about a second."""

from fractions import Fraction
from typing import Any

import av
import numpy as np

from .mp4 import AAC_RATES
from .speech import audio_frame

# The header comes with the first fragment, because only then the encoders' delays are known.
OPTIONS = {"movflags": "frag_keyframe+delay_moov+default_base_moof"}


class FragmentedMp4:
    """Puts H.264 packets, as they are, and sound, as AAC, into the boxes of an mp4.

    A fragment ends before each keyframe. What is returned is to be appended to a file; it ends at
    the end of a box, so that the file can be played if nothing follows.

    Args:
        height, width: of the frames in pixels; an encoder has made odd ones even.
        fps: frame i is displayed at exactly i / fps seconds.
        rate, channels: of the sound.
    """

    def __init__(self, height: int, width: int, fps: Fraction, *, rate: int, channels: int):
        self._made, self._samples = _Made(), 0
        self._container = av.open(self._made, "w", format="mp4", options=OPTIONS)
        self._video: Any = self._container.add_mux_stream(
            "h264", rate=fps, width=width + width % 2, height=height + height % 2
        )
        self._time_base = self._video.time_base = 1 / Fraction(fps)
        self._rate = rate
        aac_rate = next((r for r in AAC_RATES if r >= rate), AAC_RATES[-1])
        self._audio: Any = self._container.add_stream("aac", rate=aac_rate)
        self._audio.layout = "mono" if channels == 1 else "stereo"
        self._audio.bit_rate = 96000 * channels

    def write(self, number: int, picture: bytes, *, keyframe: bool, sound: np.ndarray) -> bytes:
        """Append a frame with its sound.

        Args:
            number: of the frame. The first one is 0, and is a keyframe.
            picture: an access unit in Annex B format; empty for a frame that was skipped, in whose
                time the one before it is displayed on.
            sound: (channels, n) float32 that follows what was appended before.

        Returns:
            Whole boxes, if there are any.
        """
        if picture:
            packet: Any = av.Packet(picture)
            packet.stream, packet.time_base = self._video, self._time_base
            packet.pts = packet.dts = number
            packet.duration, packet.is_keyframe = 1, keyframe
            self._container.mux(packet)
        if sound.shape[1]:
            frame = audio_frame(sound, self._rate, self._samples)
            self._samples += sound.shape[1]
            self._container.mux(self._audio.encode(frame))
        return self._made.boxes()

    def finish(self) -> bytes:
        """Return what is left of the file. Nothing can be appended after it."""
        self._container.mux(self._audio.encode(None))
        self._container.close()
        return self._made.boxes()


class _Made:
    """A file to FFmpeg, which cannot seek in it."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def boxes(self) -> bytes:
        """Take the whole boxes that were written. A fragment is whole with its samples (mdat)."""
        end = position = 0
        while position + 8 <= len(self._data):
            size = int.from_bytes(self._data[position : position + 4], "big")
            kind = bytes(self._data[position + 4 : position + 8])
            position += size
            if size < 8 or position > len(self._data):
                break
            if kind not in (b"ftyp", b"moov", b"moof"):
                end = position
        taken = bytes(self._data[:end])
        del self._data[:end]
        return taken
