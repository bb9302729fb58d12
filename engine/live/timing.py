"""Which samples, mel rows and features a frame of an endless stream needs."""

from fractions import Fraction

import kernels
from kernels.spec import MEL_RATE, WIN_LENGTH

HOP, HALF_WINDOW = kernels.HOP_LENGTH, WIN_LENGTH // 2
HISTORY, LOOK_AHEAD = 9, 6  # frame i reads features i - 9 to i + 6: see kernels.feature_windows
CONTEXT = 3  # mel rows before a window's whose samples are cut off
# The mel of these samples has the window's rows from row CONTEXT on, bit for bit as the mel of the
# whole stream has them.
WINDOW_SAMPLES = HOP * (CONTEXT + kernels.MEL_WINDOW_ROWS + 1)


def frame_start(frame: int, rate: int, fps: Fraction) -> int:
    """Return the first sample of a frame: floor(rate frame / fps)."""
    return rate * frame * fps.denominator // fps.numerator


def first_row(feature: int, fps: Fraction) -> int:
    """Return the first mel row of a feature's window, as `kernels.mel_windows` does."""
    return int(MEL_RATE * max(feature, 0) / float(fps))


def rows_needed(frame: int, fps: Fraction) -> int:
    """Return how many mel rows of the stream a frame reads: those before this one."""
    return first_row(frame + LOOK_AHEAD, fps) + kernels.MEL_WINDOW_ROWS


def samples_needed(frame: int, fps: Fraction) -> int:
    """Return how many 16 kHz samples of the stream a frame depends on."""
    return HOP * (rows_needed(frame, fps) - 1) + HALF_WINDOW


def first_row_of(sample: int) -> int:
    """Return the first mel row that depends on a sample or a later one.

    Row t sees the pre-emphasized samples 200 t - 400 to 200 t + 400 (exclusive).
    """
    return max((sample - HALF_WINDOW) // HOP + 1, 0)


def first_feature_of(sample: int, fps: Fraction) -> int:
    """Return the first feature that depends on a sample or a later one."""
    row = first_row_of(sample)
    feature = max(int((row - kernels.MEL_WINDOW_ROWS) * float(fps) / MEL_RATE) - 1, 0)
    while first_row(feature, fps) + kernels.MEL_WINDOW_ROWS <= row:
        feature += 1
    return feature


def window_start(feature: int, fps: Fraction) -> int:
    """Return the first of the `WINDOW_SAMPLES` samples of a feature, negative for early ones."""
    return HOP * (first_row(feature, fps) - CONTEXT)
