"""Limit the renders that run at the same time."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from .avatar import Avatar
from .device.host_memory import available_bytes
from .device.memory import Shapes, memory_bytes
from .errors import InputError
from .forks import note_computing


class Admission:
    """Counts the renders of a pipeline that run, and refuses one more than `limit`.

    Args:
        limit: renders at a time; None for any number.
    """

    def __init__(self, limit: int | None):
        if limit is not None and limit < 1:
            raise InputError(f"max_renders is {limit}; expected at least 1")
        self.limit = limit
        self._running = 0
        # Reentrant: the garbage collector may close an abandoned render while this thread holds the
        # lock.
        self._lock = RLock()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count one render until the block ends.

        Raises:
            InputError: `limit` renders are running, or the process was forked, see `check_fork`.
        """
        note_computing()
        with self._lock:
            if self.limit is not None and self._running >= self.limit:
                raise InputError(
                    f"{self._running} renders are running, which is max_renders of this pipeline; "
                    "wait for one to end, or close one"
                )
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1


def renders_that_fit(buffers: Shapes, batch_size: int, avatar: Avatar) -> int | None:
    """Return how many renders on a CPU fit half of the available memory, at least 1.

    None if the system does not say how much is available.

    Args:
        buffers: of each render.
        batch_size: frames at once. Besides the batch that is being rendered, the caller has one,
            and one is read ahead.
        avatar: whose frames they are.
    """
    available = available_bytes()
    frames = 3 * batch_size * avatar.bytes_per_frame
    return None if available is None else max(1, available // 2 // (memory_bytes(buffers) + frames))
