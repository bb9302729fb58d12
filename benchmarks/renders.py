"""How a system of `benchmarks.systems` is measured: its speed, its latency, what it takes."""

import statistics
import time
import warnings

import torch
from torch import Tensor

import kernels
from benchmarks import stages
from benchmarks.systems import FPS, System
from engine.device.stopwatch import Stopwatch

CHUNK = 9  # frames, of 0.4 s of speech: what a live session has when it starts
GENERATOR_FLOP = 9.77e9  # a frame
# Bytes a frame in float16: every convolution reads its input and writes its output once; or every
# inverted residual keeps its expanded channels on chip.
GENERATOR_BYTES = {"layer by layer": 358e6, "fused blocks": 69e6}


def speech(frames: int) -> Tensor:
    """Noise that renders to so many frames, 4 or more."""
    samples = kernels.MIN_SAMPLES
    while kernels.frame_count(kernels.mel_window_count(kernels.mel_rows(samples), FPS)) < frames:
        samples += kernels.HOP_LENGTH
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(samples, generator=generator) * 0.1).clamp_(-1, 1)


def whole(batch: int, frames: float) -> int:
    """At least so many frames, in whole batches; the shortest speech has 4."""
    return -(-max(int(frames), 4) // batch) * batch


def render(
    system: System, pcm: Tensor, cuda: bool, stopwatch: Stopwatch | None = None
) -> tuple[float, float]:
    """Seconds of a whole render: of the host until all is finished, and between device events."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
    _finish(cuda)
    begin = time.perf_counter()
    if cuda:
        events[0].record()
    for _ in system.render(pcm, stopwatch):
        pass
    if cuda:
        events[1].record()
    _finish(cuda)
    host = time.perf_counter() - begin
    return host, events[0].elapsed_time(events[1]) / 1000 if cuda else host


def first_frames(system: System, seconds: float, cuda: bool) -> dict:
    """From PCM of 0.4 s to its first finished frame."""
    pcm = speech(CHUNK)
    samples: list[float] = []
    begin = time.perf_counter()
    while len(samples) < 5 or (time.perf_counter() - begin < seconds and len(samples) < 200):
        _finish(cuda)
        called = time.perf_counter()
        frames = system.render(pcm, None)
        next(frames)
        _finish(cuda)
        samples.append(time.perf_counter() - called)
        frames.close()  # type: ignore[attr-defined]
    return _latency(samples[1:])


def single_frames(system: System, pcm: Tensor, seconds: float, cuda: bool) -> dict:
    """From frame to frame of a render whose frames are waited for one by one."""
    samples: list[float] = []
    begin = time.perf_counter()
    while not samples or (time.perf_counter() - begin < seconds and len(samples) < 1000):
        before = None
        for number, _ in enumerate(system.render(pcm, None)):
            _finish(cuda)
            now = time.perf_counter()
            if before is not None and number > 1:
                samples.append(now - before)
            before = now
    return _latency(samples)


def _latency(samples: list[float]) -> dict:
    hundredths = statistics.quantiles(samples, n=100, method="inclusive")
    return {"median": statistics.median(samples), "p99": hundredths[98], "samples": len(samples)}


def counts(system: System, pcm: Tensor, batches: int) -> dict:
    """What PyTorch allocates on the device, and how often the host waits in it: a batch, from the
    second on."""
    marks = {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number, _ in enumerate(system.render(pcm, None)):
                if number in (1, batches - 1):
                    waits = sum("synchronizing" in str(warning.message) for warning in caught)
                    allocated = torch.cuda.memory_stats()["allocation.all.allocated"]
                    marks[number] = torch.tensor([allocated, waits])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    allocations, waits = ((marks[batches - 1] - marks[1]) / (batches - 2)).tolist()
    return {"allocations a batch": allocations, "synchronisations a batch": waits}


def _finish(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def free_memory(cuda: bool) -> int:
    if not cuda:
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


# --- what the device allows ----------------------------------------------------------------------


def floors(width: int, height: int, copy: float, arithmetic: float) -> dict[str, float]:
    """Seconds a frame that cannot be gone below, float16: of the generator, whichever of its bytes
    and its arithmetic takes longer, and of the bytes that `face_input` and `composite` move."""
    around = 0
    for stage in (stages.face_input(1, height, width), stages.composite(1, height, width)):
        around += stage.bytes(stage.inputs(torch.device("cpu")))
    return {
        name: max(moved / copy, GENERATOR_FLOP / arithmetic) + around / copy
        for name, moved in GENERATOR_BYTES.items()
    }
