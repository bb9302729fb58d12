"""Measure the time of each stage of a render."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


class Stopwatch:
    """Adds up the seconds of named stages. Use one for each render.

    On a GPU the seconds are measured on the device, between events on the current stream. They are
    read when `seconds` is called, so timing does not make the host wait. Every stage is also an
    NVTX range in a profiler.

    Attributes:
        measures: whether times are measured; False for `Stopwatch.off`.
    """

    def __init__(self, device: torch.device):
        self.measures = True
        self._device, self._cuda = device, device.type == "cuda"
        self._host: dict[str, float] = defaultdict(float)
        self._events: dict[str, deque[tuple[torch.cuda.Event, torch.cuda.Event]]]
        self._events = defaultdict(deque)

    @classmethod
    def off(cls, device: torch.device) -> "Stopwatch":
        """Return a stopwatch that measures nothing. Its stages are still NVTX ranges on a GPU."""
        stopwatch = cls(device)
        stopwatch.measures = False
        return stopwatch

    @contextmanager
    def stage(self, name: str, *, host: bool = False) -> Iterator[None]:
        """Time the block.

        Args:
            host: the work is done by the host, even if the device is a GPU.
        """
        on_gpu = self._cuda and not host
        with torch.cuda.nvtx.range(name) if on_gpu else nullcontext():
            if not self.measures:
                yield
                return
            self._host[name] += 0.0  # sets the order in `seconds`
            if on_gpu:
                stream = torch.cuda.current_stream(self._device)
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record(stream)
                yield
                end.record(stream)
                self._events[name].append((begin, end))
                self._collect(name)
                return
            started = time.perf_counter()
            yield
            self._host[name] += time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage so far, in the order in which they first ran."""
        for name, pairs in self._events.items():
            for _, end in pairs:
                end.synchronize()
            self._collect(name)
        return dict(self._host)

    def _collect(self, name: str) -> None:
        """Add up finished pairs of events, so that a long render keeps only a few."""
        pairs = self._events[name]
        while pairs and pairs[0][1].query():
            begin, end = pairs.popleft()
            self._host[name] += begin.elapsed_time(end) / 1000
