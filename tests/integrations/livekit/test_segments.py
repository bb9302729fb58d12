"""Speech of any rate and number of channels becomes that of a session."""

import numpy as np
import pytest
from livekit import rtc

from serve.livekit.segments import SpeechIn


def tone(rate: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def frame(samples: np.ndarray, rate: int) -> rtc.AudioFrame:
    """Make a frame of (n, C) samples."""
    data = np.rint(samples * 32767).astype(np.int16)
    return rtc.AudioFrame(data.tobytes(), rate, data.shape[1], len(data))


@pytest.mark.parametrize(("rate", "channels"), [(48000, 2), (16000, 1), (24000, 2)])
def test_other_formats(rate, channels):
    """In frames of 30 ms: the same tone, as long, without a seam. The mean of the channels counts."""
    level = np.array([1.5, 0.5] if channels == 2 else [1.0])
    said, speech = tone(rate, 1.2)[:, None] * level, SpeechIn(24000)
    parts = [frame(part, rate) for part in np.array_split(said, 40)]
    found = np.concatenate([*map(speech.push, parts), speech.end()])
    expected = tone(24000, 1.2)
    assert abs(len(found) - len(expected)) <= 1
    inner = slice(100, len(expected) - 100)
    assert np.abs(found[inner] - expected[inner]).max() < 2e-3


def test_segments_of_the_same_format():
    """The same samples; a segment without any has one, so that its end is seen."""
    speech = SpeechIn(24000)
    samples = np.arange(-300, 300, dtype=np.int16)
    assert not speech.open
    found = speech.push(rtc.AudioFrame(samples.tobytes(), 24000, 1, 600))
    assert found.dtype == np.int16 and np.array_equal(found, samples) and speech.open
    assert not len(speech.end()) and not speech.open
    assert not len(speech.push(rtc.AudioFrame(b"", 24000, 1, 0))) and speech.open
    assert np.array_equal(speech.end(), [0.0])


def test_nothing_is_left_of_an_interrupted_segment():
    """Not even in the resampler."""
    interrupted, fresh = SpeechIn(24000), SpeechIn(24000)
    interrupted.push(frame(tone(48000, 0.1)[:, None], 48000))
    interrupted.clear()
    assert not interrupted.open
    next_one = frame(tone(48000, 0.1)[:, None] / 2, 48000)
    parts = [[speech.push(next_one), speech.end()] for speech in (interrupted, fresh)]
    assert np.array_equal(*map(np.concatenate, parts))


def test_the_rate_changes_within_a_segment():
    speech, parts = SpeechIn(24000), []
    for rate in (48000, 24000, 16000):
        parts.append(speech.push(frame(tone(rate, 0.3)[:, None], rate)))
    found = np.concatenate([*parts, speech.end()])
    assert abs(len(found) - 3 * 7200) <= 3
    assert np.abs(found).max() == pytest.approx(0.5, abs=0.05)
