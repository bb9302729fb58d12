"""Timestamps of which FFmpeg guesses some, as in MPEG program streams."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from engine import InputError
from engine.media.frame_index import index_frames
from engine.media.packets import Packet

FRAME = 3600  # 25 a second at 90 kHz


def reader(times: list[int], rate: Fraction | None = Fraction(25)) -> SimpleNamespace:
    """Return a program stream with these timestamps, whose frames are stored in display order."""
    packets = [Packet(time, time - FRAME, None, 99, not i % 12, False, False) for i, time in enumerate(times)]  # fmt: skip
    return SimpleNamespace(
        path="a.mpg",
        packets=packets,
        container="mpeg",
        stream=SimpleNamespace(average_rate=rate, time_base=Fraction(1, 90000)),
        failed=set(),
        decode=lambda first: ((i, None) for i in range(first, len(packets))),
    )


def guessed(count: int, early: dict[int, int]) -> list[int]:
    """Return timestamps as FFmpeg guesses them. `early` maps a frame to the error, in frames, of the
    guesses from it on."""
    off, times = 0, []
    for number in range(count):
        off = early.get(number, off)
        times.append(48600 + FRAME * (number + off))
    return times


@pytest.mark.parametrize(
    "early",
    [
        {23: 1, 39: 0},  # as FFmpeg guessed in a stream of 60 frames
        {40: -1, 50: 0, 70: -1, 75: 0, 90: -2, 95: 0},  # in one of 400
        {99: -1},
    ],
)
def test_times_between_those_that_the_stream_gives(early):
    times = guessed(100, early)
    assert len(set(times)) < 100
    assert index_frames(reader(times)).times == [48600 + FRAME * i for i in range(100)]


@pytest.mark.parametrize(
    ("early", "rate"),
    [
        ({20: 2, 50: 3, 60: 2}, Fraction(25)),  # two frames are missing
        ({20: -1, 60: -2}, Fraction(25)),
        ({20: 9, 50: 0}, Fraction(25)),
        ({23: 1, 39: 0}, None),
    ],
)
def test_times_that_no_rate_explains(early, rate):
    with pytest.raises(InputError, match="a.mpg has frames without timestamps"):
        index_frames(reader(guessed(100, early), rate))


def test_times_that_need_no_guess():
    """The stream's timestamps are used, even if they have no constant rate."""
    times = guessed(100, {20: 2})
    assert index_frames(reader(times)).times == times
