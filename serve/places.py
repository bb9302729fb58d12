"""How many live sessions there are, of gRPC and HTTP together."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import Busy


class Places:
    """Places for live sessions.

    Args:
        most: sessions at a time.
    """

    def __init__(self, most: int):
        self.most = most
        self._taken: Counter[str] = Counter()  # of each avatar

    @contextmanager
    def one(self, avatar: str) -> Iterator[None]:
        """Take a place for a session of an avatar, whose name may be anything.

        Raises:
            Busy: all are taken.
        """
        there = self._taken.total()
        if there >= self.most:
            raise Busy(f"{there} sessions are open; expected fewer than {self.most}")
        self._taken[avatar] += 1
        try:
            yield
        finally:
            self._taken[avatar] -= 1
            if not self._taken[avatar]:
                del self._taken[avatar]

    def sessions(self) -> dict[str, int]:
        """Return how many sessions of each avatar are open."""
        return dict(self._taken)

    def of(self, avatar: str) -> int:
        """Return how many sessions of an avatar are open."""
        return self._taken[avatar]
