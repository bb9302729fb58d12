"""The frame rate of timestamps, computed by hand, for timestamps as containers round them."""

import random
from fractions import Fraction

import pytest

from engine.media.frame_rate import allowed, constant_rate

MS = Fraction(1, 1000)  # Matroska, FLV
MPEG = Fraction(1, 90000)
MP4 = Fraction(1, 12800)
NTSC, FILM, NTSC60 = Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60000, 1001)


def rounded(rate: Fraction | int, time_base: Fraction, count: int = 500) -> list[int]:
    return [round(i / Fraction(rate) / time_base) for i in range(count)]


@pytest.mark.parametrize(
    "time_base", [MS, MPEG, MP4, Fraction(1, 600), Fraction(1, 44100)], ids=str
)
@pytest.mark.parametrize(
    "rate",
    [12, Fraction(25, 2), 15, FILM, 24, 25, NTSC, 30, 48, 50, NTSC60, 60, 100, Fraction(120000, 1001), 120, 240],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("count", [250, 2000])
def test_rounded_times_give_the_exact_rate(rate, time_base, count):
    times = rounded(rate, time_base, count)
    assert constant_rate(times, time_base) == rate
    assert constant_rate([time + 133200 for time in times], time_base) == rate
    # cut off instead of rounded
    times = [int(i / Fraction(rate) / time_base) for i in range(count)]
    assert constant_rate(times, time_base) == rate


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_a_claim_decides_where_a_few_rounded_times_fit_several_rates(count):
    for rate in (FILM, Fraction(24), NTSC, Fraction(30), NTSC60, Fraction(60)):
        times = rounded(rate, MS, count)
        assert constant_rate(times, MS, [None, rate]) == rate


@pytest.mark.parametrize(
    "claims",
    [
        [Fraction(640000, 25601)],  # over a last frame that is a tick longer
        [Fraction(22)],  # over a last frame that is longer by a second
        [Fraction(40, 37) * 25],  # over frames that an edit list hides
        [Fraction(50), Fraction(90000)],  # fields, ticks
        [None, NTSC, Fraction(0)],
    ],
)
def test_a_claim_that_the_times_contradict_is_not_taken(claims):
    assert constant_rate(rounded(25, MP4, 50), MP4, claims) == 25


def test_an_odd_rate_is_exact():
    """66 ms each: 15.15, not 15; 29.98 in a time base that has it, not 29.97."""
    assert constant_rate([66 * i for i in range(300)], MS) == Fraction(500, 33)
    assert constant_rate([7001 * i for i in range(300)], MPEG) == Fraction(90000, 7001)
    rate = Fraction(2998, 100)
    for step in (1, 2, 1000):
        times = [step * i for i in range(100)]
        assert constant_rate(times, 1 / rate / step, [NTSC, Fraction(30)]) == rate


@pytest.mark.parametrize("jitter", [0.05, 0.2])
def test_times_that_jitter(jitter):
    """Frames of a phone are some milliseconds early or late."""
    random.seed(0)
    times = [round((i + random.uniform(-jitter, jitter)) * 3000) for i in range(600)]
    assert constant_rate(times, MPEG) == 30


def test_a_clock_that_is_slow():
    """29.95 a second with a jitter of 1 ms: after 60 s, 30 would be three frames off."""
    random.seed(0)
    times = [round(i / 29.95 * 90000 + random.uniform(-90, 90)) for i in range(1800)]
    rate = constant_rate(times, MPEG)
    assert rate is not None and abs(float(rate) - 29.95) < 0.0005


@pytest.mark.parametrize("at", [1, 2, 25, 48])
@pytest.mark.parametrize("time_base", [MS, MPEG])
def test_one_frame_that_is_missing_or_doubled_is_not_constant(at, time_base):
    times = rounded(25, time_base, 50)
    assert constant_rate(times[:at] + times[at + 1 :], time_base, [Fraction(25)]) is None
    assert constant_rate(times[:at] + times[at - 1 :], time_base, [Fraction(25)]) is None
    doubled = [*times[:at], times[at] - 1, *times[at:]]  # two within a tick
    assert constant_rate(doubled, time_base, [Fraction(25)]) is None


def test_half_a_frame_late_is_too_late():
    times = [3600 * i for i in range(50)]
    for late, rate in ((1500, 25), (1900, None)):
        some = times[:20] + [time + late for time in times[20:]]
        assert (constant_rate(some, MPEG) is None) == (rate is None)


@pytest.mark.parametrize(
    "steps",
    [
        [512] * 50 + [1024] * 50 + [512] * 50,  # a phone in low light
        [400] * 100 + [500] * 100,  # another rate from the middle on: each step is near the mean
        [512, 512, 1024] * 20,  # every third frame left out
        [512] * 20 + [-5120] + [512] * 20,  # joined recordings
    ],
)
def test_variable_rates(steps):
    times = [sum(steps[:i]) for i in range(len(steps) + 1)]
    assert constant_rate(times, MP4, [Fraction(25), Fraction(20)]) is None


def test_rates_that_no_avatar_may_have_are_found_too():
    assert constant_rate(rounded(Fraction(1, 5), MS, 9), MS) == Fraction(1, 5)
    assert constant_rate(rounded(1000, MS, 99), MS) == 1000
    assert [allowed(Fraction(n)) for n in (0, 1, 240, 241)] == [False, True, True, False]
    assert not allowed(Fraction(1, 5))
