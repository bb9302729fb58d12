"""The newest features of a speech, at a fixed address, so that CUDA graphs can read them."""

from collections.abc import Iterator

from torch import Tensor

import kernels

# The last feature counts twice, and a frame hears zeros after it.
AFTER_THE_END = kernels.FEATURES_PER_FRAME // 2


class FeatureRing:
    """Features in a ring, for `kernels.ring_feature_windows`: feature f is in row f mod R.

    That stage knows no end of a speech. So the last feature is followed by a copy of it and by
    zeros, which makes its windows those of `kernels.feature_windows`.

    Args:
        ring: (R, 512). R is at least the features from the first one that is still read to the last
            one that is appended, and `AFTER_THE_END`.
        first: number of the first feature that is appended.
        count: features of the speech.

    Attributes:
        stop: number of the feature that is appended next.
    """

    def __init__(self, ring: Tensor, *, first: int, count: int):
        self._ring, self._count, self.stop = ring, count, first

    def append(self, features: Tensor) -> None:
        """Append (n, 512) features of any dtype."""
        self._write(self.stop, features)
        self.stop += len(features)
        if self.stop == self._count:
            self._write(self.stop, features[-1:])
            for rows in self._rows(self.stop + 1, AFTER_THE_END - 1):
                rows.zero_()

    def _write(self, first: int, features: Tensor) -> None:
        for rows in self._rows(first, len(features)):
            rows.copy_(features[: len(rows)])
            features = features[len(rows) :]

    def _rows(self, first: int, count: int) -> Iterator[Tensor]:
        """Yield the rows of `count` features, in one piece or two."""
        begin = first % len(self._ring)
        here = self._ring[begin : begin + count]
        yield here
        if len(here) < count:
            yield self._ring[: count - len(here)]
