"""Where the time of a render goes."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of named stages. One render, one stopwatch.

    On a GPU the seconds are the device's own, between events on the current stream, and are only
    collected when `seconds` is asked for: timing does not make the host wait.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._host: dict[str, float] = defaultdict(float)
        self._events: dict[str, list] = defaultdict(list)

    @contextmanager
    def stage(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Time the block. `host`: its work is the host's, even where the device is a GPU."""
        if self._cuda and not host:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events[name].append((begin, end))
            return
        begin = time.perf_counter()
        yield
        self._host[name] += time.perf_counter() - begin

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, in the order they first ran."""
        for name, pairs in self._events.items():
            for begin, end in pairs:
                end.synchronize()
                self._host[name] += begin.elapsed_time(end) / 1000
            pairs.clear()
        return dict(self._host)
