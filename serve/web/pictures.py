"""The pictures of a session, each encoded once for all who watch."""

import asyncio
from fractions import Fraction

import numpy as np

from engine.media.encode import EncoderPool, EncoderQueue, H264Encoder

KEYFRAME_SECONDS = 0.3  # between two keyframes that somebody asked for


class Pictures:
    """Encodes the pictures of a session as H.264. For the event loop.

    Args:
        bitrate: bits a second at most.
    """

    def __init__(self, pool: EncoderPool, height: int, width: int, fps: Fraction, *, bitrate: int):
        self._pool, self._size, self._fps, self.bitrate = pool, (height, width), fps, bitrate
        self._queue: EncoderQueue | None = None
        self._encoder: H264Encoder | None = None
        self._keyframe_wanted = False
        self._since_keyframe = 0  # pictures

    def request_keyframe(self) -> None:
        """Make the next picture a keyframe, or one soon, if there was one just now."""
        self._keyframe_wanted = True

    async def encode(self, rgb: np.ndarray) -> tuple[bytes, bool]:
        """Return an access unit, and whether it is a keyframe."""
        if self._queue is None:
            self._encoder = await asyncio.to_thread(
                H264Encoder, *self._size, self._fps, bitrate=self.bitrate
            )
            self._queue = self._pool.queue(self._encoder)
        assert self._encoder is not None
        self._encoder.bitrate = self.bitrate
        forced = self._keyframe_wanted and self._since_keyframe >= KEYFRAME_SECONDS * self._fps
        encoded = await asyncio.wrap_future(self._queue.submit(rgb, keyframe=forced))
        self._since_keyframe += 1
        if encoded.keyframe:
            self._keyframe_wanted, self._since_keyframe = False, 0
        return encoded.data, encoded.keyframe
