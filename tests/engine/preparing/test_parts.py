"""Which frames are chosen, which repeat another, and how lips and sound are compared."""

import wave
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import correlate

from engine.preparing import sound
from engine.preparing.lips import FEWEST, compare_lips
from engine.preparing.measures import find_repeated
from engine.preparing.selection import choose_frames, time_errors
from engine.preparing.sound import sample_of

MS = Fraction(1, 1000)


@given(
    steps=st.lists(st.integers(1, 400), min_size=1, max_size=80),
    fps=st.sampled_from([Fraction(25), Fraction(24), Fraction(30000, 1001), Fraction(60)]),
    spoilt=st.sets(st.integers(0, 79), max_size=20),
)
def test_the_nearest_frame_is_chosen(steps, fps, spoilt):
    times = [1234, *(1234 + np.cumsum(steps)).tolist()]
    unusable = frozenset(n for n in spoilt if n < len(times) - 1)
    chosen = choose_frames(times, MS, None, fps, unusable)
    seconds = np.array([(time - 1234) / 1000 for time in times])
    length = seconds[-1] + np.median(np.diff(seconds))
    assert len(chosen) and (
        abs(len(chosen) - length * float(fps)) <= 0.5 + 1e-6 or len(chosen) == 1
    )
    usable = [n for n in range(len(times)) if n not in unusable]
    for number, frame in enumerate(chosen):
        apart = abs(seconds[frame] - number / float(fps))
        assert frame in usable and apart <= min(abs(seconds[usable] - number / float(fps))) + 1e-6
    assert (np.diff(chosen) >= 0).all()


def test_of_two_frames_that_are_equally_near_the_earlier_one_is_chosen():
    """Whatever the rounding errors of their times: each is shown twice."""
    times = list(range(0, 80 * 500, 80))
    chosen = choose_frames(times, MS, Fraction(25, 2), Fraction(25))
    assert chosen.tolist() == np.arange(500).repeat(2).tolist()


@given(jitter=st.lists(st.integers(-15, 15), min_size=2, max_size=60))
def test_frames_of_the_right_rate_stay(jitter):
    """Whatever the jitter of their timestamps."""
    times = sorted(40 * i + 20 + late for i, late in enumerate(jitter))
    chosen = choose_frames(times, MS, Fraction(25), Fraction(25))
    assert chosen.tolist() == list(range(len(times)))


def test_damaged_frames_are_replaced():
    times = list(range(0, 400, 40))
    chosen = choose_frames(times, MS, Fraction(25), Fraction(25), frozenset({3, 4, 5, 6}))
    assert chosen.tolist() == [0, 1, 2, 2, 2, 7, 7, 7, 8, 9]
    errors = time_errors(chosen, times, MS, Fraction(25))
    assert np.allclose(errors, [0, 0, 0, 0.04, 0.08, 0.08, 0.04, 0, 0, 0])
    with pytest.raises(ValueError, match="2 of 2 frames are unusable"):
        choose_frames([0, 40], MS, Fraction(25), Fraction(25), frozenset({0, 1}))


def test_frames_have_all_samples():
    fps = Fraction(30000, 1001)
    assert [sample_of(n, fps) for n in range(4)] == [0, 534, 1068, 1602]
    assert sample_of(30000, fps) == 1001 * 16000


def test_speech_is_as_long_as_the_frames_that_are_kept(tmp_path, monkeypatch):
    """At a rate whose frames have 533 or 534 samples, also if all with 533 are cut out."""
    fps = Fraction(30000, 1001)
    first = np.array([sample_of(number, fps) for number in range(301)])
    samples = np.arange(first[-1]) % 30000 / 32767
    monkeypatch.setattr(sound, "_pieces", lambda *_: np.array_split(samples, 7))
    kept = np.diff(first) == 534
    sound.write_speech(tmp_path / "aud.wav", "film", None, zero=None, fps=fps, kept=kept)
    with wave.open(str(tmp_path / "aud.wav")) as file:
        written = np.frombuffer(file.readframes(first[-1]), "<i2")
    assert len(written) == sample_of(kept.sum(), fps) < 534 * kept.sum()
    number = kept.sum() - 1  # the last one begins where its picture does
    begin, there = sample_of(number, fps), first[:-1][kept][number] % 30000
    assert written[begin] == there


def test_repeated_frames():
    moving = np.array([9, 8, 12, 7, 9, 10, 8, 9, 11, 9], float)
    both = np.stack([moving, moving], axis=1)
    assert not find_repeated(both).any()
    both[4] = 2
    both[7, 0] = 1  # above the nose only
    assert np.flatnonzero(find_repeated(both)).tolist() == [4]
    both[4:6] = 2  # twice
    assert np.flatnonzero(find_repeated(both)).tolist() == [4, 5]
    still = np.full((6, 2), 2.0)  # a codec's noise, of a person at rest
    assert not find_repeated(still).any()
    assert find_repeated(np.zeros((5, 2))).all()  # a photograph


def speaking(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the openness of lips, and the loudness of what they say."""
    random = np.random.default_rng(seed)
    syllables = np.convolve(random.uniform(0, 1, count), np.ones(5) / 5, mode="same") ** 2
    loudness = 20 * np.log10(syllables + 0.01) + random.normal(0, 3, count)
    return 0.3 * syllables + random.normal(0, 0.01, count), loudness


@pytest.mark.parametrize("fps", [25, 30])
@pytest.mark.parametrize("lag", [-14, -8, -1, 0, 1, 3, 14])
def test_lags_are_found(lag, fps):
    lips, sound = speaking(400)
    found = compare_lips(lips, np.roll(sound, lag), fps)
    assert found.lag == lag and found.correlation > 0.5
    lips[100:180] = np.nan  # a gap
    assert compare_lips(lips, np.roll(sound, lag), fps).lag == lag


def test_the_correlation_is_that_of_scipy():
    """Without gaps, and far from the edges."""
    lips, sound = speaking(2000)
    window = np.ones(25) / 25  # 12 on both sides
    one, two = (x - np.convolve(x, window, mode="same") for x in (lips, sound))
    one, two = one[50:-50], two[50:-50]
    both = correlate(two - two.mean(), one - one.mean(), mode="full")
    scale = len(one) * one.std() * two.std()
    expected = both[len(one) - 1 - 15 : len(one) + 15] / scale
    found = compare_lips(lips, sound, 25)
    assert found.lag == int(expected.argmax()) - 15
    assert abs(found.correlation - expected.max()) < 0.02
    # and exactly that of NumPy, at the edges too
    around = [np.s_[max(i - 12, 0) : i + 13] for i in range(2000)]
    one, two = (x - [x[part].mean() for part in around] for x in (lips, sound))
    assert found.lag == 0 and abs(found.correlation - np.corrcoef(one, two)[0, 1]) < 1e-9


def test_nothing_in_common():
    lips, sound = speaking(1500)
    assert compare_lips(lips, speaking(1500, seed=9)[1], 25).correlation < 0.15
    assert compare_lips(lips[: FEWEST - 1], sound[: FEWEST - 1], 25) is None
    assert compare_lips(lips[:10], sound[:10], 25) is None
    seen = np.full(1500, np.nan)
    seen[700:750] = lips[700:750]
    assert compare_lips(seen, sound, 25).lag == 0
    seen[749] = np.nan
    assert compare_lips(seen, sound, 25) is None
    assert compare_lips(np.full(400, 0.2), sound[:400], 25) is None
    assert compare_lips(np.full(400, np.nan), sound[:400], 25) is None
    assert compare_lips(lips, np.full(1500, -60.0), 25) is None
