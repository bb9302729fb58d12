"""Threads that encode the frames of all avatars."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor


class EncodingThreads:
    """A pool that is there as long as somebody uses it. Any thread may open and close it."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._pool: ThreadPoolExecutor | None = None

    def open(self) -> ThreadPoolExecutor:
        """Return the pool, with a thread for each core. Each call needs one of `close`."""
        with self._lock:
            self._users += 1
            if self._pool is None:
                self._pool = ThreadPoolExecutor(os.cpu_count() or 1, "viseme-encode")
            return self._pool

    def close(self) -> None:
        """End the threads, if nobody else uses them."""
        with self._lock:
            self._users -= 1
            pool = None
            if self._users == 0:
                pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()
