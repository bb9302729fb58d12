"""`python -m benchmarks.kernels`: every stage next to its alternatives, and to the memory's speed.

On a GPU: the Triton kernels against the same stage in PyTorch, eager and compiled, against
libraries that do the same, and against OpenCV and librosa in threads over the frames on the CPU.
What moves bytes is compared with a plain copy measured in the same run. Without a GPU what can be
measured is: the stages on the CPU against OpenCV, librosa and the libraries.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from os import cpu_count
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from benchmarks import report, stages, timing
from benchmarks.report_kernels import ALONE, plot, table
from benchmarks.stages import OURS, Inputs, Stage
from engine.command import program

CACHES = 4  # the inputs of a measurement are together so many times as large as the L2 cache
MAX_SETS = 64
COMPILED = "torch.compile"
PACKAGES = ("torch", "triton", "torchaudio", "torchvision", "cvcuda", "librosa", "cv2", "numpy")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long it may take."""

    batches: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # height and width of frames
    main: int  # the batch at which everything is compared
    speech: float  # seconds
    copied: int  # bytes, for the copy bandwidth
    sample: float  # seconds for the samples of one measurement
    compiling: float  # seconds that torch.compile may take for a stage
    total: float  # seconds after which no measurement begins


GPU = Plan((1, 8, 25, 40, 100), ((1280, 720), (1920, 1080)), 25, 10.0, 1 << 30, 0.1, 25.0, 115.0)
CPU = Plan((1, 8, 25), ((1280, 720), (1920, 1080)), 25, 10.0, 1 << 28, 0.3, 0.0, 600.0)
QUICK = Plan((1, 2), ((320, 180),), 2, 1.0, 1 << 22, 0.01, 20.0, 60.0)


@dataclass(frozen=True)
class Job:
    """One side of one stage."""

    stage: Stage
    side: str
    prepare: Callable[[], list[Inputs]]
    run: Callable[[Inputs], object]
    measure: Callable[[timing.Calls, float], timing.Timing]
    compare: bool = True  # its result with ours
    limit: float = 60.0  # seconds


def jobs(plan: Plan, device: torch.device) -> Iterator[Job]:
    """What matters most comes first: the time may run out."""
    all_stages = list(_stages(plan))
    main = [stage for stage in all_stages if stage.batch == plan.main]
    for stage in all_stages:
        prepare = partial(_sets, stage, device)
        if device.type == "cuda":
            yield Job(stage, ALONE, prepare, stage.ours, timing.replayed, compare=False)
        yield Job(stage, OURS, prepare, stage.ours, timing.hosted, compare=False)
        if device.type == "cuda":
            yield Job(stage, "reference", prepare, stage.reference, timing.hosted)
    for stage in main:
        for name, side in stage.libraries.items():
            yield Job(stage, name, partial(_sets, stage, device), side, timing.hosted)
    pools = {n: ThreadPoolExecutor(n) for n in sorted({1, 8, cpu_count() or 1})}
    for stage in main:
        for workers, pool in pools.items() if stage.cpu else ():
            name = f"CPU, {workers} worker" + "s" * (workers > 1)
            run = partial(_in_threads, pool) if workers > 1 else _in_turn
            prepare = partial(_cpu_items, stage)
            yield Job(stage, name, prepare, run, timing.hosted, compare=False)
    if device.type == "cuda":
        for stage in sorted(main, key=lambda stage: stage.size is None):  # log_mel takes longest
            if stage.size in (None, plan.sizes[0]):
                prepare = partial(_sets, stage, device)
                side = torch.compile(stage.reference)
                yield Job(stage, COMPILED, prepare, side, timing.hosted, limit=plan.compiling)


def _stages(plan: Plan) -> Iterator[Stage]:
    for batch in plan.batches:
        yield stages.log_mel(batch, plan.speech)
        yield stages.mel_windows(batch)
        yield stages.feature_windows(batch)
        for size in plan.sizes:
            yield stages.face_input(batch, *size)
            yield stages.composite(batch, *size)
            yield stages.resize(batch, *size)
            yield stages.convert_color(batch, *size)
    for size in plan.sizes:
        yield stages.composite(plan.main, *size, "nv12")
        yield stages.convert_color(plan.main, *size, "nv12")


@lru_cache(maxsize=1)  # the sides of a stage come one after another
def _sets(stage: Stage, device: torch.device) -> list[Inputs]:
    """Inputs so many that none is still in a cache when its turn comes again."""
    torch.manual_seed(1)
    first = stage.inputs(device)
    if device.type == "cpu":
        return [first, stage.inputs(device)]
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    count = -(-CACHES * cache // stage.bytes(first))
    return [first, *(stage.inputs(device) for _ in range(max(2, min(MAX_SETS, count)) - 1))]


def _cpu_items(stage: Stage) -> list[list[Callable[[], object]]]:
    return [stage.cpu(inputs) for inputs in _sets(stage, torch.device("cpu"))]


def _in_turn(items: list[Callable[[], object]]) -> None:
    for item in items:
        item()


def _in_threads(pool: ThreadPoolExecutor, items: list[Callable[[], object]]) -> None:
    """As servers spread a batch: each frame goes to whichever thread is free."""
    for _ in pool.map(lambda item: item(), items):
        pass


def measure(job: Job, seconds: float) -> dict:
    """One side's timing, as it stands in the results."""
    sets = job.prepare()
    with timing.limit(job.limit):
        if job.compare:
            _same_work(job, sets[0])
        calls = [partial(job.run, inputs) for inputs in sets]
        took = asdict(job.measure(calls, seconds))
    moved = job.stage.bytes(sets[0]) if isinstance(sets[0], Inputs) else None
    return {**took, "bytes": moved, "sets of inputs": len(sets)}


def _same_work(job: Job, inputs: Inputs) -> None:
    """What a side gives may differ from ours by rounding, not by more."""
    results = []
    for run in (job.run, job.stage.ours):
        inputs.out.fill_(77)  # what is not written must not look right
        results.append(run(inputs).clone())
    result, ours = results
    if result.shape != ours.shape:
        raise ValueError(f"gives {(*result.shape,)}, {OURS} gives {(*ours.shape,)}")
    pairs = zip(result, ours, strict=True)  # item by item, for memory
    apart = torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs]).mean().item()
    apart /= 255 if ours.dtype == torch.uint8 else 1
    if not apart < 0.01:
        raise ValueError(f"gives something else: {apart:.1%} apart on average")


def main() -> int:
    options = report.options("benchmarks.kernels", __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = QUICK if options.quick else GPU if device.type == "cuda" else CPU
    deadline = time.monotonic() + plan.total
    torch._logging.set_logs(all=logging.ERROR)  # of what torch.compile cannot fuse
    cv2.setNumThreads(1)  # the threads over the frames are the parallelism
    bandwidth = partial(timing.copy_bandwidth, device, plan.copied, plan.sample)
    measured, left_out = [], []
    results = {
        "command": report.command("benchmarks.kernels"),
        "machine": report.machine(device.type, *PACKAGES),
        "device": device.type,
        "compared at batch": plan.main,
        "copy, bytes a second": [bandwidth()],  # at the begin, and at the end
        "measured": measured,
        "left out": left_out,
    }
    if device.type == "cpu":
        for side in ("the Triton kernels", "reference, torch.compile and libraries on a GPU"):
            left_out.append({"stage": "all", "side": side, "reason": "no CUDA GPU"})
    folder = Path(options.out)
    for job in tqdm(list(jobs(plan, device)), desc="stages", disable=None):
        if job.side == COMPILED:  # it may hang in ways that nothing here ends
            report.save(results, table(results), folder / "kernels.json")
        what = {
            "stage": job.stage.name,
            "side": job.side,
            "batch": job.stage.batch,
            "frame size": job.stage.size and list(job.stage.size[::-1]),
        }
        try:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the {plan.total:.0f} s of the run were over")
            measured.append({**what, **measure(job, plan.sample)})
            if device.type == "cuda":
                torch.cuda.empty_cache()
        except Exception as error:  # a side that fails must not take the others with it
            left_out.append({**what, "reason": report.reason(error)})
    try:
        results["copy, bytes a second"].append(bandwidth())
    except RuntimeError as error:  # a GPU that a kernel has brought down
        left_out.append({"stage": "copy", "side": "at the end", "reason": report.reason(error)})
    text = table(results)
    report.save(results, text, folder / "kernels.json")
    print(text)
    if not plot(results, folder / "kernels.png"):
        print("no plot: matplotlib is not installed", file=sys.stderr)
    print(f"\nwritten to {folder}")
    return 1 if any(row["side"] in (OURS, ALONE) for row in left_out) else 0


if __name__ == "__main__":
    program(main)
