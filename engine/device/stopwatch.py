"""Where the time of a render goes."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Adds up the seconds of named stages. One render, one stopwatch.

    On a GPU the seconds are the device's own, between events on the current stream, and are only
    collected when `seconds` is asked for: timing does not make the host wait.
    """

    def __init__(self, device: torch.device):
        self._device, self._cuda = device, device.type == "cuda"
        self._host: dict[str, float] = defaultdict(float)
        self._events: dict[str, deque] = defaultdict(deque)

    @contextmanager
    def stage(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Time the block. `host`: its work is the host's, even where the device is a GPU."""
        self._host[name] += 0.0  # in its place
        if self._cuda and not host:
            stream = torch.cuda.current_stream(self._device)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record(stream)
            yield
            end.record(stream)
            self._events[name].append((begin, end))
            self._collect(name)
            return
        begin = time.perf_counter()
        yield
        self._host[name] += time.perf_counter() - begin

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage so far, in the order they first ran."""
        for name, pairs in self._events.items():
            for _, end in pairs:
                end.synchronize()
            self._collect(name)
        return dict(self._host)

    def _collect(self, name: str) -> None:
        """Add up what has passed, so that a long render keeps only a few events."""
        pairs = self._events[name]
        while pairs and pairs[0][1].query():
            begin, end = pairs.popleft()
            self._host[name] += begin.elapsed_time(end) / 1000
