"""Frame rates: which are allowed, and which one the times of frames keep."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise

MIN_FPS, MAX_FPS = 1, 240


def allowed(fps: Fraction) -> bool:
    """Whether an avatar may have this frame rate, whoever gives it."""
    return MIN_FPS <= fps <= MAX_FPS


def constant_rate(
    times: Sequence[int], time_base: Fraction, claims: Iterable[Fraction | None] = ()
) -> Fraction | None:
    """Find the frame rate that frames shown at `times` keep.

    A rate is kept where every frame is within half a frame of its place, and follows the one
    before it by more than half a frame and less than one and a half. So times may jitter and be
    rounded to their time base, but a frame that is missing or doubled is not constant.

    Args:
        times: two or more, ascending, in units of `time_base` seconds.
        claims: rates that the file claims, most trusted first. Rounded times can fit several
            rates: a claim that fits them is taken before a whole rate, and that before a mean.

    Returns:
        Frames a second, or None where the times keep no rate.
    """
    count = len(times)
    # The least-squares line through the times gives the mean duration of a frame, in ticks.
    moment = sum((2 * i - count + 1) * time for i, time in enumerate(times))
    ticks = Fraction(6 * moment, count * (count * count - 1))
    steps = [after - before for before, after in pairwise(times)]
    jitter = _spread(times, ticks)
    if ticks <= 0 or jitter > ticks or not ticks / 2 < min(steps) <= max(steps) < ticks * 3 / 2:
        return None
    mean = 1 / (ticks * time_base)
    if min(steps) == max(steps) <= 2:
        return mean  # a time base of frames or fields is the rate itself, not a rounding of it
    nearest = min(_whole(mean), _television(mean), key=lambda rate: abs(rate - mean))
    for rate in (*claims, nearest):
        # 2 x jitter: at most as far off as the times themselves are; 1 for their rounding
        if rate and _is_usual(rate) and _spread(times, 1 / (rate * time_base)) <= 2 * jitter + 1:
            return rate
    return mean if min(steps) == max(steps) else mean.limit_denominator(1001)


def _spread(times: Sequence[int], ticks: Fraction) -> Fraction:
    """How far frames of `ticks` each are from their places: the latest less the earliest."""
    late = [time * ticks.denominator - i * ticks.numerator for i, time in enumerate(times)]
    return Fraction(max(late) - min(late), ticks.denominator)


def _whole(rate: Fraction) -> Fraction:
    return Fraction(max(round(rate), 1))


def _television(rate: Fraction) -> Fraction:
    """The nearest of 24000/1001, 30000/1001 and their like."""
    return Fraction(max(round(rate * Fraction(1001, 1000)), 1) * 1000, 1001)


def _is_usual(rate: Fraction) -> bool:
    return rate.denominator == 1 or rate == _television(rate)
