"""Frame rates: which are allowed, and how to find the rate from the times of frames."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise

MIN_FPS, MAX_FPS = 1, 240


def allowed(fps: Fraction) -> bool:
    """Return whether an avatar may have this frame rate."""
    return MIN_FPS <= fps <= MAX_FPS


def constant_rate(
    times: Sequence[int], time_base: Fraction, claims: Iterable[Fraction | None] = ()
) -> Fraction | None:
    """Find the constant frame rate of frames with these times.

    The rate is constant if every frame is within half a frame of its place, and comes more than
    half a frame and less than one and a half after the frame before it. So jitter and rounding to
    the time base are allowed, but missing and doubled frames are not.

    Args:
        times: two or more, ascending, in units of `time_base` seconds.
        claims: rates that the file states, the most reliable first. Rounded times can fit several
            rates. A stated rate that fits is preferred to a whole number, and that to the mean.

    Returns:
        Frames per second; None if the rate is not constant.
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
        return mean  # with a time base of one frame or field, the mean is exact
    nearest = min(_whole(mean), _television(mean), key=lambda rate: abs(rate - mean))
    for rate in (*claims, nearest):
        # 2 x jitter: no further off than the times themselves; 1 is for rounding
        if rate and _is_usual(rate) and _spread(times, 1 / (rate * time_base)) <= 2 * jitter + 1:
            return rate
    return mean if min(steps) == max(steps) else mean.limit_denominator(1001)


def _spread(times: Sequence[int], ticks: Fraction) -> Fraction:
    """Return by how much the deviations from frames of `ticks` each differ: largest minus
    smallest."""
    late = [time * ticks.denominator - i * ticks.numerator for i, time in enumerate(times)]
    return Fraction(max(late) - min(late), ticks.denominator)


def _whole(rate: Fraction) -> Fraction:
    return Fraction(max(round(rate), 1))


def _television(rate: Fraction) -> Fraction:
    """Return the nearest of 24000/1001, 30000/1001 and the like."""
    return Fraction(max(round(rate * Fraction(1001, 1000)), 1) * 1000, 1001)


def _is_usual(rate: Fraction) -> bool:
    return rate.denominator == 1 or rate == _television(rate)
