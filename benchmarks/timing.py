"""Timing of short work on a GPU or a CPU: medians with their spread."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
import torch

Calls = Sequence[Callable[[], object]]  # the same work on different inputs, against warm caches


@dataclass(frozen=True)
class Timing:
    """Seconds per call."""

    median: float
    p20: float
    p80: float
    samples: int
    method: str


def percentiles(samples: list[float]) -> dict[str, float]:
    """Return the median, the 20th and the 80th percentile."""
    p20, median, p80 = np.percentile(samples, (20, 50, 80)).tolist()
    return {"median": median, "p20": p20, "p80": p80}


def summary(samples: list[float], method: str) -> Timing:
    """Summarize the seconds of some calls."""
    return Timing(**percentiles(samples), samples=len(samples), method=method)


def time_cuda_graph(calls: Calls, seconds: float) -> Timing:
    """Time the GPU alone: capture the calls in a CUDA graph and replay it between events."""
    rough = time_wall_clock(calls, seconds / 10).median
    # Enough launches per graph to make the gap between two replays negligible.
    calls = list(islice(cycle(calls), max(len(calls), min(128, math.ceil(1e-3 / rough)))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def replay(count: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / count

    replay(1)
    return _sample(replay, replay(2), seconds, "CUDA graph", len(calls))


def time_wall_clock(calls: Calls, seconds: float) -> Timing:
    """Time by the host's clock, launches included, until the GPU (if any) has finished."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    following = cycle(calls)

    def run(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            next(following)()
        finish()
        return (time.perf_counter() - begin) / count

    run(1)  # compiles and allocates
    return _sample(run, min(run(len(calls)), run(1)), seconds, "host clock")


def _sample(
    run: Callable[[int], float], once: float, seconds: float, method: str, calls: int = 1
) -> Timing:
    """Take 3 to 50 samples of at least 2 ms each; `run(count)` returns the seconds of one run."""
    count = math.ceil(2e-3 / once)
    number = max(3, min(50, int(seconds / (once * count))))
    return summary([run(count) / calls for _ in range(number)], method)


def copy_bandwidth(device: torch.device, size: int, seconds: float) -> float:
    """Measure a copy of `size` bytes on the device: bytes per second, read plus written."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _time(device, lambda: target.copy_(source), seconds)


def matmul_rate(device: torch.device, size: int, seconds: float) -> float:
    """Measure a square matrix product: FLOP per second, float16 on a GPU and float32 on a CPU."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _time(device, lambda: torch.mm(a, b, out=out), seconds)


def _time(device: torch.device, call: Callable[[], object], seconds: float) -> float:
    method = time_cuda_graph if device.type == "cuda" else time_wall_clock
    return method([call], seconds).median


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after that many seconds. For the main thread only."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
