"""How long short pieces of work take, on a GPU or a CPU: medians with their spread."""

import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice

import torch

Calls = Sequence[Callable[[], object]]  # the same work on different inputs, for caches not to help


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    p20: float
    p80: float
    samples: int
    method: str


def replayed(calls: Calls, seconds: float) -> Timing:
    """The GPU's own time: the calls, captured in one CUDA graph, are replayed between events."""
    rough = hosted(calls, seconds / 10).median
    # so many launches in a graph that the pause between two replays does not count
    calls = list(islice(cycle(calls), max(len(calls), min(128, math.ceil(1e-3 / rough)))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def replays(count: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / count

    replays(1)
    once = replays(2)
    count = math.ceil(2e-3 / once)
    samples = [replays(count) / len(calls) for _ in range(_samples(seconds, once * count))]
    return summary(samples, "CUDA graph")


def hosted(calls: Calls, seconds: float) -> Timing:
    """The host's clock, until the GPU (where there is one) has finished too."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None

    def run(count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            next(turn)()
        finish()
        return (time.perf_counter() - begin) / count

    turn = cycle(calls)
    run(1)  # what the first call sets up
    once = min(run(len(calls)), run(1))
    count = math.ceil(2e-3 / once)
    samples = [run(count) for _ in range(_samples(seconds, once * count))]
    return summary(samples, "host clock")


def copy_bandwidth(device: torch.device, size: int, seconds: float) -> float:
    """Bytes a second, read plus written, of copying `size` bytes on the device."""
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    measure = replayed if device.type == "cuda" else hosted
    return 2 * size / measure([lambda: target.copy_(source)], seconds).median


def matmul_rate(device: torch.device, size: int, seconds: float) -> float:
    """FLOP a second of a square matrix product, float16 on a GPU and float32 on a CPU."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    measure = replayed if device.type == "cuda" else hosted
    return 2 * size**3 / measure([lambda: torch.mm(a, b, out=out)], seconds).median


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once it has taken that long. For the main thread."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _samples(seconds: float, once: float) -> int:
    return max(3, min(50, int(seconds / once)))


def summary(samples: list[float], method: str) -> Timing:
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    return Timing(statistics.median(samples), fifths[0], fifths[-1], len(samples), method)
