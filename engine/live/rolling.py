"""Arrays of an endless stream, of which only a stretch is kept."""

import numpy as np


class Rolling:
    """Rows of an endless sequence that is zero until written. Positions count from its beginning.

    Only rows from `base` on exist. Writing beyond the end extends it; `forget` drops rows from the
    front. Memory stays within twice the largest stretch that was ever kept.

    Args:
        row: shape of a row.
        fill: value of rows that were not written.

    Attributes:
        base: position of the first row that is kept.
        end: position after the last row that was written.
    """

    def __init__(self, row: tuple[int, ...] = (), *, fill: float = 0.0):
        self.base = self.end = 0
        self._fill = fill
        self._data = np.full((64, *row), fill, np.float32)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Copy rows `start` to `stop`; those not written, and those before 0, are `fill`.

        Raises:
            IndexError: rows that were forgotten.
        """
        if max(start, 0) < self.base:
            raise IndexError(f"row {start} was forgotten; rows from {self.base} on are kept")
        rows = np.full((stop - start, *self._data.shape[1:]), self._fill, np.float32)
        first, last = max(start, 0), min(stop, self.end)
        if first < last:
            rows[first - start : last - start] = self._data[first - self.base : last - self.base]
        return rows

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows from position `start` on, which is not before `base`."""
        stop = start + len(rows)
        if start < self.base:
            raise IndexError(f"row {start} was forgotten; rows from {self.base} on are kept")
        if stop - self.base > len(self._data):
            grown = np.full((2 * (stop - self.base), *self._data.shape[1:]), self._fill, np.float32)
            grown[: self.end - self.base] = self._data[: self.end - self.base]
            self._data = grown
        self._data[start - self.base : stop - self.base] = rows
        self.end = max(self.end, stop)

    def cut(self, stop: int) -> None:
        """Forget what was written from position `stop` on."""
        if stop < self.end:
            stop = max(stop, self.base)
            self._data[stop - self.base : self.end - self.base] = self._fill
            self.end = stop

    def forget(self, before: int) -> None:
        """Drop rows before this position, in steps that make dropping cheap."""
        if before - self.base < len(self._data) // 2:
            return
        kept = max(self.end - before, 0)
        if kept:
            self._data[:kept] = self._data[before - self.base : self.end - self.base]
        self._data[kept:] = self._fill
        self.base, self.end = before, max(self.end, before)
