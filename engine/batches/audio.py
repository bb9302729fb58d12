"""The features that the frames of a request read, and the mel windows of these."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import kernels
from kernels.spec import MEL_RATE, WIN_LENGTH

ROWS, HALF = kernels.MEL_WINDOW_ROWS, kernels.FEATURES_PER_FRAME // 2
# Window k begins at mel row int(3.2 k), so windows k + 5 as windows k, 16 rows later.
CYCLE, CYCLE_ROWS = 5, 16


class FeatureRows(NamedTuple):
    """The features that the frames of a request read.

    Attributes:
        first, stop: these features of its speech have to be computed.
        rows: (count, 16) int64, for each frame the rows of its features, where row 0 is zeros and
            row 1 + f is feature `first` + f.
    """

    first: int
    stop: int
    rows: np.ndarray


def feature_count(samples: int) -> int:
    """Return how many features speech has, of windows that lie in it as a whole."""
    rows = kernels.mel_rows(samples)
    return max((rows - ROWS) * kernels.FPS // MEL_RATE, 0)


def feature_rows(samples: int, count: int, context: int) -> FeatureRows:
    """Return the features that frames `context` to `context` + `count` (exclusive) of speech read.

    With P = f[0], f[0], f[1], ..., f[m-1], f[m-1], frame i reads rows i - 8 to i + 7 of P, and
    zeros outside.
    """
    m = feature_count(samples)
    context = min(context, m + 3 * HALF)  # all of its frames hear zeros
    place = context + np.arange(count)[:, None] + np.arange(-HALF, HALF)
    inside = (place >= 0) & (place < m + 2) & (m > 0)
    if not inside.any():
        return FeatureRows(0, 0, np.zeros((count, 2 * HALF), np.int64))
    feature = np.clip(place - 1, 0, m - 1)
    first, stop = int(feature[inside].min()), int(feature[inside].max()) + 1
    return FeatureRows(first, stop, np.where(inside, feature - first + 1, 0))


def mel_windows(
    speech: np.ndarray, first: int, stop: int, upload: Callable[[Tensor], list[Tensor]]
) -> Tensor:
    """Return the mel windows of features `first` to `stop` (exclusive).

    The mel is computed of the samples that they need only, with the same bits on a CPU as of all.

    Args:
        speech: (S,) float32.
        upload: returns copies on the device.

    Returns:
        (stop - first, 1, 80, 16) float32 on the device.
    """
    # A whole cycle earlier, because pre-emphasis and the first windows miss what is cut off.
    skipped = max(first // CYCLE - 1, 0)
    last_row = (stop - 1) * CYCLE_ROWS // CYCLE + ROWS - 1
    begin = skipped * CYCLE_ROWS * kernels.HOP_LENGTH
    end = last_row * kernels.HOP_LENGTH + WIN_LENGTH // 2
    (pcm,) = upload(torch.from_numpy(speech[begin:end].copy()))
    return kernels.mel_windows(
        kernels.log_mel(pcm), start=first - skipped * CYCLE, count=stop - first
    )
