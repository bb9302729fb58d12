"""The newest rows of a sequence, in a tensor of fixed size."""

import torch
from torch import Tensor


class NewestRows:
    """Rows are numbered from the beginning of the sequence, and appended at its end.

    Args:
        room: rows that fit. It must be at least the number that is appended at once plus twice the
            number that is kept then, or else the length of the whole sequence.
        width: numbers in a row.
        first: number of the first row.

    Attributes:
        first, stop: numbers of the rows that are there, `stop` exclusive.
    """

    def __init__(
        self, room: int, width: int, dtype: torch.dtype, device: torch.device, *, first: int = 0
    ):
        self._data = torch.empty(room, width, dtype=dtype, device=device)
        self.first = self.stop = first

    def append(self, rows: Tensor, keep: int) -> None:
        """Append (n, width) rows. Those before number `keep` may be dropped.

        Raises:
            ValueError: there is no room for them.
        """
        used, room = self.stop - self.first, len(self._data)
        if used + len(rows) > room:
            dropped = max(min(keep, self.stop) - self.first, 0)
            kept = used - dropped
            if kept > dropped or kept + len(rows) > room:
                raise ValueError(f"{len(rows)} rows more than {kept} do not fit {room}")
            self._data[:kept] = self._data[dropped:used]
            self.first, used = self.first + dropped, kept
        self._data[used : used + len(rows)] = rows
        self.stop += len(rows)

    def rows(self) -> Tensor:
        """Return a view of the rows from `first` to `stop`, valid until rows are appended."""
        return self._data[: self.stop - self.first]
