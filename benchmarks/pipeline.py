"""`python -m benchmarks.pipeline`: PCM to finished frames, next to what people run instead.

Every runtime that is there, every batch size, two sizes of frames. Against: the whole thing on the
CPU (OpenCV, librosa, ONNX Runtime, all cores), the split design (networks on the GPU, the rest on
the CPU) and plain PyTorch; and, on a GPU, as a share of what its memory and its arithmetic, both
measured in the same run, allow. Without a GPU: what runs on the CPU.
"""

import gc
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from benchmarks import renders, report, systems, timing
from benchmarks.report_pipeline import OURS, plot, table
from benchmarks.systems import FPS, Scene, System
from engine.command import program
from engine.device.stopwatch import Stopwatch
from engine.runtime import RUNTIMES
from examples.networks import paths

NAMES = {"tensorrt": "TensorRT", "onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
SPLIT, EAGER, ON_CPU, COMPILED = "split design", "PyTorch eager", "CPU", "compiled"
PACKAGES = (
    "torch", "triton", "onnxruntime", "tensorrt", "tensorrt_rtx", "librosa", "cv2", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long it may take."""

    batches: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # width and height of frames
    main: int  # the batch at which everything is compared
    avatar: int  # frames
    frames: tuple[int, int]  # rendered at once: at least, in batches, and at most
    sample: float  # seconds for the samples of one figure
    limit: float  # seconds that one side may take
    preparing: float  # seconds that exporting, or building plans, may take
    total: float  # seconds of the whole run
    copied: int  # bytes, for the copy bandwidth
    matrix: int  # rows, for the rate of arithmetic


SIZES = ((720, 1280), (1080, 1920))
BATCHES = (1, 4, 8, 16, 25, 40)
GPU = Plan(BATCHES, SIZES, 25, 60, (4, 240), 0.3, 20.0, 60.0, 190.0, 1 << 30, 8192)
CPU = Plan(BATCHES, SIZES, 25, 60, (1, 100), 1.0, 60.0, 300.0, 900.0, 1 << 28, 1024)
QUICK = Plan((1, 4), ((180, 320),), 4, 8, (1, 4), 0.01, 120.0, 300.0, 300.0, 1 << 22, 128)
NETWORKS = ("audio encoder", "generator")  # the rest is pre- and post-processing
COMPILING = 70.0  # seconds for a side that PyTorch compiles first


@dataclass(frozen=True)
class Job:
    """One side at one batch size and one size of frames."""

    side: str
    scene: Scene
    batch: int
    make: Callable[..., System]
    device: torch.device
    limit: float


def jobs(
    plan: Plan, scenes: list[Scene], device: torch.device, there: list[str], on_cpu: str
) -> Iterator[Job]:
    """What matters most comes first: the time may run out.

    Args:
        there: the device's runtimes.
        on_cpu: the runtime of what is wholly on the CPU.
    """
    cpu, on_gpu = torch.device("cpu"), device.type == "cuda"

    def job(scene: Scene, batch: int, side: str, runtime: str, **changed) -> Job:
        makes = {OURS: systems.viseme, EAGER: systems.eager, SPLIT: systems.split}
        make = makes.get(side, systems.split)
        make = make if side == EAGER else partial(make, runtime=runtime)
        settings = {"device": cpu if side == ON_CPU else device, "limit": plan.limit, **changed}
        title = NAMES[runtime] + f" {COMPILED}" * ("limit" in changed)
        name = side if side == EAGER else f"{side}, {title}"
        return Job(name, scene, batch, make, **settings)

    sides = [(OURS, runtime) for runtime in there]
    sides += [(SPLIT, runtime) for runtime in there] if on_gpu else []
    sides += [(EAGER, "torch"), (ON_CPU, on_cpu)]
    compiled = [(OURS, "torch"), (SPLIT, "torch")] if on_gpu else []
    ends = list(dict.fromkeys((plan.main, 1)))
    between = [batch for batch in plan.batches if batch not in ends]
    for scene in scenes:
        for batch, (side, runtime) in product(ends, sides):
            if on_gpu or runtime != "torch" or batch == plan.main:  # it takes a CPU minutes
                yield job(scene, batch, side, runtime)
        for batch, (side, runtime) in product(ends, compiled):
            yield job(scene, batch, side, runtime, limit=COMPILING)
    for (side, runtime), scene, batch in product(sides, scenes, between):
        if on_gpu or runtime != "torch":
            yield job(scene, batch, side, runtime)
    for (side, runtime), scene, batch in product(compiled, scenes, between):
        yield job(scene, batch, side, runtime, limit=COMPILING)


# --- measuring -----------------------------------------------------------------------------------


def measure(job: Job, plan: Plan) -> dict:
    """One side's figures, as they stand in the results."""
    cuda = job.device.type == "cuda"
    avatar = job.scene.avatar(job.device) if cuda else None
    gc.collect()
    free = renders.free_memory(cuda)
    system = job.make(job.scene, job.device, job.batch)
    # on a GPU enough batches for all graphs to be recorded, on a CPU as few as there can be
    least, most = plan.frames if cuda else (1, plan.frames[1])
    frames = renders.whole(job.batch, least * job.batch)
    pcm = renders.speech(frames)
    once = renders.render(system, pcm, cuda)[0]
    if cuda or once < 10 * plan.sample:  # the first was no measure
        once = renders.render(system, pcm, cuda)[0]
    frames = renders.whole(job.batch, max(frames, min(most, frames / once * plan.sample)))
    pcm = renders.speech(frames)
    if cuda:  # sizes of the audio encoder's batches that did not come so far
        renders.render(system, pcm, cuda)
    watch = partial(Stopwatch, system.clock)
    # On a GPU the times of stages are taken in renders of their own, the second of which counts:
    # asking for them changes what is recorded in a graph.
    stopwatch, samples = watch(), []
    begin = time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - begin < plan.sample and len(samples) < 50):
        samples.append(renders.render(system, pcm, cuda, None if cuda else stopwatch))
    for _ in range(2 if cuda else 0):
        stopwatch = watch()
        renders.render(system, pcm, cuda, stopwatch)
    spent = stopwatch.seconds()
    hosts, devices = map(list, zip(*samples, strict=True))
    took = timing.summary(hosts, "host clock")
    row = {
        "generator": system.description,
        "frames": frames,
        "seconds": asdict(took),
        "seconds between events": asdict(timing.summary(devices, "events")) if cuda else None,
        "frames a second": {
            "median": frames / took.median, "p20": frames / took.p80, "p80": frames / took.p20,
        },
        "sessions at 25 fps": int(frames / took.median / FPS),
        "share of the stages": {name: one / sum(spent.values()) for name, one in spent.items()},
        "share of all but the networks": 1 - sum(map(spent.get, NETWORKS)) / sum(spent.values()),
    }  # fmt: skip
    if job.batch == 1:
        row["first frame, s"] = renders.first_frames(system, plan.sample, cuda)
        row["frame, s"] = renders.single_frames(system, pcm, plan.sample, cuda)
    if cuda:
        row |= renders.counts(system, pcm, frames // job.batch)
        held = len(avatar) * avatar.height * avatar.width * 3
        held = 0 if job.side.startswith(SPLIT) else held
        # with what PyTorch keeps for later: it was needed once
        row["device memory, bytes"] = max(0, free - torch.cuda.mem_get_info()[0]) + held
    return row


# --- the run -------------------------------------------------------------------------------------


def main() -> int:
    options = report.options("benchmarks.pipeline", __doc__)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = QUICK if options.quick else GPU if device.type == "cuda" else CPU
    end = time.monotonic() + plan.total
    torch._logging.set_logs(all=logging.ERROR)  # of what torch.compile cannot fuse
    cv2.setNumThreads(1)  # the threads over the frames are the parallelism
    copied = partial(timing.copy_bandwidth, device, plan.copied, plan.sample)
    copy, arithmetic = copied(), timing.matmul_rate(device, plan.matrix, plan.sample)
    measured: list[dict] = []
    left_out: list[dict] = []
    results = {
        "command": report.command("benchmarks.pipeline"),
        "machine": report.machine(device.type, *PACKAGES),
        "device": device.type,
        "compared at batch": plan.main,
        "mel on the CPU": systems.mel_library(),
        "copy, bytes a second": [copy],  # at the begin, and at the end
        "arithmetic, FLOP a second": arithmetic,
        "generator, FLOP a frame": renders.GENERATOR_FLOP,
        "generator, bytes a frame": renders.GENERATOR_BYTES,
        "floors, s a frame": {},
        "measured": measured,
        "left out": left_out,
    }
    if device.type == "cpu":
        left_out += [{"side": side, "reason": "no CUDA GPU"} for side in ("GPU", SPLIT)]
    else:
        results["floors, s a frame"] = {
            f"{width} x {height}": renders.floors(width, height, copy, arithmetic)
            for width, height in plan.sizes
        }
    folder = Path(options.out)
    with tempfile.TemporaryDirectory() as scratch:
        # copies: plans are built beside them
        networks = {kind: Path(shutil.copy(path, scratch)) for kind, path in paths().items()}
        there = []
        for runtime in RUNTIMES:  # the fastest first
            fault = _fault(runtime, device, networks, plan)
            if runtime == "torch" and device.type == "cpu" and there:
                fault = f"on a CPU it is {EAGER}: the stages are the same there"
            if fault is None:
                there.append(runtime)
            else:
                left_out.append({"side": f"{OURS}, {NAMES[runtime]}", "reason": fault})
        fault = _fault("onnxruntime", torch.device("cpu"), networks, plan)
        on_cpu = "torch" if fault else "onnxruntime"
        scenes = [
            systems.make_scene(Path(scratch) / f"{width}", networks, width, height, plan.avatar)
            for width, height in plan.sizes
        ]
        todo = list(jobs(plan, scenes, device, there, on_cpu))
        for job in tqdm(todo, desc="systems", disable=None):
            _measure_one(job, plan, end, results)
            # each time: a compiler, or a GPU, may hang in ways that nothing here ends
            report.save(results, table(results), folder / "pipeline.json")
    try:
        results["copy, bytes a second"].append(copied())
    except RuntimeError as error:  # a GPU that something has brought down
        left_out.append({"side": "copy, at the end", "reason": report.reason(error)})
    text = table(results)
    report.save(results, text, folder / "pipeline.json")
    print(text)
    if not plot(results, folder / "pipeline.png"):
        print("no plot: matplotlib is not installed", file=sys.stderr)
    print(f"\nwritten to {folder}")
    return 0 if any(row["side"].startswith(OURS) for row in measured) else 1


def _fault(runtime: str, device: torch.device, networks: dict[str, Path], plan: Plan) -> str | None:
    """Why a runtime cannot be measured; None where its networks are ready."""
    reason = systems.absent(runtime, device)
    if reason is not None:
        return reason
    try:
        with timing.limit(plan.preparing):
            systems.prepare(runtime, device, networks, (1, plan.main, max(plan.batches)))
    except Exception as error:  # whatever an exporter or a compiler on a strange GPU does
        return report.reason(error)
    return None


def _measure_one(job: Job, plan: Plan, end: float, results: dict) -> None:
    """Into the results: a side that fails must not take the others with it."""
    size = [job.scene.width, job.scene.height]
    what = {"side": job.side, "frame size": size, "batch": job.batch}
    compiled = job.side.endswith(COMPILED)
    left = end - time.monotonic()
    # the engine's PyTorch compiles by itself, for minutes if it is every batch size's turn
    plain = job.device.type == "cuda" and not compiled
    try:
        if left < 1:
            raise TimeoutError(f"the {plan.total:.0f} s of the run were over")
        stance = torch.compiler.set_stance("force_eager") if plain else nullcontext()
        with stance, timing.limit(min(job.limit, left)), warnings.catch_warnings():
            warnings.filterwarnings("error", "PyTorch runs without its compiler")
            row = {**what, **measure(job, plan)}
        if compiled and not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
            raise RuntimeError("nothing was compiled")
        floor = results["floors, s a frame"].get(f"{size[0]} x {size[1]}", {})
        if job.device.type == "cuda":
            rate = row["frames a second"]["median"]
            row["share of the floor"] = {name: least * rate for name, least in floor.items()}
        results["measured"].append(row)
    except Exception as error:
        results["left out"].append({**what, "reason": report.reason(error)})


if __name__ == "__main__":
    program(main)
