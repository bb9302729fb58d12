"""The newest features of many endless streams, on the device that computes them."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import kernels

from ..device.host_copy import copy_to_device
from .features import Window
from .timing import CONTEXT, WINDOW_SAMPLES

SILENT_SLOT, SILENT_FRAME = 0, kernels.FEATURES_PER_FRAME  # its features are all those of silence


class FeatureRings:
    """A ring of features for each of many streams: feature f of a stream is in row f mod R.

    Ring 0 holds the feature of silence only. One thread at a time computes and reads; any may open
    and close.

    Args:
        features: (slots, R, 512) to keep them in.
        windows: (most, 1, 80, 16) float32, which `encode` reads.
        encode: encodes the first n of `windows` to (n, 512) features, which are read before the
            next call.

    Attributes:
        features: as given.
    """

    def __init__(
        self,
        features: Tensor,
        windows: Tensor,
        encode: Callable[[int], Tensor],
    ):
        self.features, self._flat = features, features.flatten(0, 1)
        self._windows, self._encode = windows, encode
        most, device = len(windows), features.device
        self._pcm = torch.zeros(most, WINDOW_SAMPLES, device=device)
        self._mel = torch.empty(
            most, kernels.mel_rows(WINDOW_SAMPLES), kernels.MEL_BANDS, device=device
        )
        self._rows = torch.empty(most, dtype=torch.int64, device=device)
        self._free = list(range(len(features) - 1, SILENT_SLOT, -1))
        self.silence = self._encoded(1)[0].clone()  # of the zeros in `_pcm`
        features[SILENT_SLOT] = self.silence

    def open(self) -> int | None:
        """Return the number of a free ring; None if there is none."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def close(self, slot: int) -> None:
        """Free a ring."""
        self._free.append(slot)

    def compute(self, windows: list[Window]) -> None:
        """Compute features and put them into the rings."""
        most = len(self._rows)
        silent = [window.row for window in windows if window.samples is None]
        for first in range(0, len(silent), most):
            rows = torch.tensor(silent[first : first + most])
            self._flat[copy_to_device(rows, self._rows)] = self.silence
        heard = [(row, samples) for row, samples in windows if samples is not None]
        for first in range(0, len(heard), most):
            part = heard[first : first + most]
            samples = np.stack([samples for _, samples in part])
            copy_to_device(torch.from_numpy(samples), self._pcm)
            rows = copy_to_device(torch.tensor([row for row, _ in part]), self._rows)
            self._flat.index_copy_(0, rows, self._encoded(len(part)))

    def _encoded(self, n: int) -> Tensor:
        """Return the features, (n, 512), of the first n of `_pcm`."""
        mel = kernels.log_mel(self._pcm[:n], out=self._mel[:n])
        rows = mel[:, CONTEXT : CONTEXT + kernels.MEL_WINDOW_ROWS]
        self._windows[:n, 0].copy_(rows.transpose(1, 2))
        return self._encode(n).to(self.features.dtype)
