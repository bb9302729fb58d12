"""Speech that can be seen in the pictures of a flashing avatar."""

import asyncio

import numpy as np
from livekit import rtc

RATE = 24000
FRAME = RATE // 25


def run(coroutine):
    """Run a test, which may take a minute."""
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def flashes(pattern: str, rate: int = RATE) -> np.ndarray:
    """Speech of 40 ms for each character: loud for "x", else quiet, but never silent."""
    count = rate // 25
    random = np.random.default_rng(len(pattern))
    level = np.repeat([8000 if c == "x" else 40 for c in pattern], count)
    return (level * random.choice([-1, 1], len(level))).astype(np.int16)


def frames_of(samples: np.ndarray, rate: int = RATE, count: int = 1000) -> list[rtc.AudioFrame]:
    """Cut sound into frames that are no multiple of the pictures'."""
    parts = [samples[n : n + count] for n in range(0, len(samples), count)]
    return [rtc.AudioFrame(part.tobytes(), rate, 1, len(part)) for part in parts]
