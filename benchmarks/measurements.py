"""Measurements of one renderer of `benchmarks.providers`: speed, latency, allocations, memory."""

import gc
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

import kernels
from benchmarks import timing
from benchmarks.providers import FPS, Renderer
from benchmarks.runner import Budget
from engine import Pipeline
from engine.device.stopwatch import Stopwatch

FIRST_CHUNK = 9  # frames of 0.4 s of speech, from which a live session can start
NETWORKS = ("audio encoder", "generator")  # the other stages are pre- and post-processing


def measure(make: Callable[[], Renderer], batch: int, *, cuda: bool, budget: Budget) -> dict:
    """Measure a renderer at a batch size.

    Args:
        make: makes the renderer.
        cuda: whether it renders on a GPU.
    """
    gc.collect()
    free = free_memory(cuda)
    renderer = make()
    pcm, frames = warm_up(renderer, batch, cuda, budget)
    row = {"generator": renderer.description, "frames": frames}
    row |= throughput(renderer, pcm, frames, cuda, budget.sample)
    if batch == 1:
        row["first frame, s"] = first_frames(renderer, budget.sample, cuda)
        row["frame, s"] = single_frames(renderer, pcm, budget.sample, cuda)
    if cuda:
        row |= counts(renderer, pcm, frames // batch)
        # including memory that PyTorch's allocator keeps: it was needed at some time
        used = max(0, free - torch.cuda.mem_get_info()[0])
        row["device memory, bytes"] = used + renderer.frame_bytes
    return row


def warm_up(renderer: Renderer, batch: int, cuda: bool, budget: Budget) -> tuple[Tensor, int]:
    """Render until everything is compiled and captured.

    Returns:
        PCM for a render of about `budget.sample` seconds, and its frames, whole batches.
    """
    least, most = budget.frames
    least = least if cuda else 1  # a GPU needs enough batches to capture all CUDA graphs
    frames = whole_batches(batch, least * batch)
    pcm = speech(frames)
    once = render(renderer, pcm, cuda)[0]
    if cuda or once < 10 * budget.sample:  # the first render is slower
        once = render(renderer, pcm, cuda)[0]
    frames = whole_batches(batch, max(frames, min(most, frames / once * budget.sample)))
    pcm = speech(frames)
    if cuda:  # the audio encoder's batch sizes depend on the length
        render(renderer, pcm, cuda)
    return pcm, frames


def throughput(renderer: Renderer, pcm: Tensor, frames: int, cuda: bool, seconds: float) -> dict:
    """Measure whole renders: time, frames per second, shares of the stages."""
    stopwatch = Stopwatch(renderer.clock)
    samples: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - begin < seconds and len(samples) < 50):
        samples.append(render(renderer, pcm, cuda, None if cuda else stopwatch))
    # On a GPU, stages are timed in separate renders, the second of which counts: timing changes
    # which parts of a batch share a CUDA graph.
    for _ in range(2 if cuda else 0):
        stopwatch = Stopwatch(renderer.clock)
        render(renderer, pcm, cuda, stopwatch)
    spent = stopwatch.seconds()
    total = sum(spent.values())
    hosts, devices = map(list, zip(*samples, strict=True))
    took = timing.summary(hosts, "host clock")
    return {
        "seconds": asdict(took),
        "seconds between events": asdict(timing.summary(devices, "events")) if cuda else None,
        "frames a second": {
            "median": frames / took.median, "p20": frames / took.p80, "p80": frames / took.p20,
        },
        "sessions at 25 fps": int(frames / took.median / FPS),
        "share of the stages": {name: part / total for name, part in spent.items()},
        "share of all but the networks": 1 - sum(spent[name] for name in NETWORKS) / total,
    }  # fmt: skip


def speech(frames: int) -> Tensor:
    """Make noise that renders to that many frames, at least 4."""
    samples = kernels.MIN_SAMPLES
    while kernels.frame_count(kernels.mel_window_count(kernels.mel_rows(samples), FPS)) < frames:
        samples += kernels.HOP_LENGTH
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(samples, generator=generator) * 0.1).clamp_(-1, 1)


def whole_batches(batch: int, frames: float) -> int:
    """Round up to whole batches, and to the shortest render, which has 4 frames."""
    return -(-max(int(frames), 4) // batch) * batch


def render(
    renderer: Renderer, pcm: Tensor, cuda: bool, stopwatch: Stopwatch | None = None
) -> tuple[float, float]:
    """Time a whole render in seconds: by the host's clock, and between events on the device."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
    _synchronize(cuda)
    begin = time.perf_counter()
    if cuda:
        events[0].record()
    for _ in renderer.render(pcm, stopwatch):
        pass
    if cuda:
        events[1].record()
    _synchronize(cuda)
    host = time.perf_counter() - begin
    return host, events[0].elapsed_time(events[1]) / 1000 if cuda else host


def first_frames(renderer: Renderer, seconds: float, cuda: bool) -> dict:
    """Measure the latency from 0.4 s of PCM to the first finished frame."""
    pcm = speech(FIRST_CHUNK)
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < 5 or (time.perf_counter() - begin < seconds and len(samples) < 200):
        _synchronize(cuda)
        called = time.perf_counter()
        frames = renderer.render(pcm, None)
        next(frames)
        _synchronize(cuda)
        samples.append(time.perf_counter() - called)
        frames.close()
    return _latency(samples[1:])


def single_frames(renderer: Renderer, pcm: Tensor, seconds: float, cuda: bool) -> dict:
    """Measure the time from frame to frame when the host waits for each one."""
    samples: list[float] = []
    begin = time.perf_counter()
    while not samples or (time.perf_counter() - begin < seconds and len(samples) < 1000):
        before = 0.0
        for number, _ in enumerate(renderer.render(pcm, None)):
            _synchronize(cuda)
            now = time.perf_counter()
            if number > 1:
                samples.append(now - before)
            before = now
    return _latency(samples)


def generator_alone(pipeline: Pipeline, total: int) -> Callable[[], int]:
    """Return a call of the generator on `total` frames, in batches of the pipeline's size.

    Random inputs take turns. The call returns `total`; on a GPU the work may not be finished then.
    """
    n, network, device = pipeline.batch_size, pipeline.generator, pipeline.device
    pictures = [torch.rand(n, 6, 320, 320, dtype=network.dtype, device=device) for _ in range(3)]
    audio = [torch.randn(n, 32, 16, 16, dtype=network.dtype, device=device) for _ in range(3)]
    out = torch.empty(n, 3, 320, 320, dtype=network.dtype, device=device)

    def generate() -> int:
        for number, first in enumerate(range(0, total, n)):
            some = min(n, total - first)
            network(pictures[number % 3][:some], audio[number % 3][:some], out=out[:some])
        return total

    return generate


def _latency(samples: list[float]) -> dict:
    hundredths = statistics.quantiles(samples, n=100, method="inclusive")
    return {"median": statistics.median(samples), "p99": hundredths[98], "samples": len(samples)}


def counts(renderer: Renderer, pcm: Tensor, batches: int) -> dict:
    """Count PyTorch's allocations on the device and synchronisations, per batch from the second."""
    marks = {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number, _ in enumerate(renderer.render(pcm, None)):
                if number in (1, batches - 1):
                    waits = sum("synchronizing" in str(warning.message) for warning in caught)
                    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
                    marks[number] = torch.tensor([allocated, waits])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    allocations, waits = ((marks[batches - 1] - marks[1]) / (batches - 2)).tolist()
    return {"allocations a batch": allocations, "synchronisations a batch": waits}


def free_memory(cuda: bool) -> int:
    """Return the free bytes of the GPU, without those that PyTorch's allocator keeps."""
    if not cuda:
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def _synchronize(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()
