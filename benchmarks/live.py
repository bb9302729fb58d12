"""`python -m benchmarks.live`: live sessions in real time, and what they cost.

Its parts: `sessions` (real networks, in real time and as fast as frames are taken), `idle` (a
session in which nobody speaks), `precision` (bfloat16 next to float32 on a CPU), `scheduler` (many
sessions whose frames cost nothing) and `hour` (one session for an hour, as fast as it goes).
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from benchmarks import live_networks, live_scheduler, providers, report, runner
from benchmarks.live_networks import LiveBudget, Lives
from benchmarks.report import BATCH, CASE, PROVIDER, VISEME, Column
from benchmarks.runner import NO_GPU, Job
from engine import Avatar
from engine.command import program
from engine.runtime import RUNTIMES
from examples import DEMO, network_files

PARTS = ("sessions", "idle", "precision", "scheduler", "hour")
REAL_TIME, AS_TAKEN, IDLE = "in real time", "as taken", "idle"
GENERATOR, SCHEDULER, HOUR = "generator", "scheduler", "an hour"
EMPTY = f"{VISEME}, no networks"
X264 = "x264"
FP32, BF16 = "ONNX Runtime fp32", "OpenVINO bf16"
PACKAGES = ("torch", "triton", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "av", "numpy")
FRAME = (720, 1280)  # of the demo, and of the avatar on a GPU


SCHEDULED = (1, 10, 50, 100, 200, 400)
GPU = LiveBudget(
    (1, 64), (FRAME,), 1, copied=1 << 30, sample=0.3, job=60, compiling=0, total=340, preparing=200,
    sessions=(1, 8, 32, 64, 128, 200), scheduled=SCHEDULED, talk=6, rounds=3, taken=6, many=5,
    hour=600, compared=0,
)  # fmt: skip
CPU = LiveBudget(
    (1, 2, 4, 8), (FRAME,), 1, copied=1 << 28, sample=2.0, job=300, compiling=0, total=2400,
    sessions=(1, 2, 4), scheduled=SCHEDULED, talk=20, rounds=2, taken=4, many=10, hour=3600,
    compared=32,
)  # fmt: skip
QUICK = LiveBudget(
    (1, 2), ((180, 320),), 1, copied=1 << 22, sample=0.01, job=120, compiling=0, total=300,
    avatar=8, sessions=(1,), scheduled=(2,), talk=0.6, rounds=1, taken=0.6, many=0.5, hour=20,
    compared=4,
)  # fmt: skip


def jobs(
    budget: LiveBudget, parts: tuple[str, ...], lives: Lives, empty: providers.Scene
) -> Iterator[Job]:
    """List the measurements of some parts."""
    avatar = lives.avatar
    on_cpu = avatar.device.type == "cpu"
    size = {"frame size": [avatar.width, avatar.height]}

    def job(provider: str, stage: str, measure: Callable[[], dict], **row: object) -> Job:
        return Job({"provider": provider, "stage": stage, **row}, measure, budget.job)

    for name in lives.names if "sessions" in parts else ():
        for encoded in (False, True) if on_cpu else (False,):
            provider = f"{VISEME}, {name}, {X264}" if encoded else f"{VISEME}, {name}"
            for stage, function in (
                (REAL_TIME, live_networks.real_time),
                (AS_TAKEN, live_networks.as_taken),
            ):
                for count in budget.sessions:
                    measure = partial(function, lives, name, count, encoded, budget)
                    yield job(provider, stage, measure, sessions=count, **size)
    for name in lives.names if "idle" in parts else ():
        yield job(
            f"{VISEME}, {name}", IDLE, partial(live_networks.idle, lives, name, budget), **size
        )
    for batch in budget.batches if "precision" in parts and on_cpu else ():
        for name in lives.names:
            measure = partial(live_networks.precision, avatar, name, batch, budget)
            yield job(f"{VISEME}, {name}", GENERATOR, measure, batch=batch)
    size = {"frame size": [empty.width, empty.height]}
    for count in budget.scheduled if "scheduler" in parts else ():
        measure = partial(live_scheduler.measure_scheduler, empty, count, budget.many)
        yield job(EMPTY, SCHEDULER, measure, sessions=count, **size)
    if "hour" in parts:
        measure = partial(live_scheduler.measure_hour, empty, budget.hour)
        yield job(EMPTY, HOUR, measure, sessions=1, **size)


def table(results: dict) -> str:
    """Format the results as text."""
    rows = report.ordered(results)

    def of(*stages: str) -> list[dict]:
        return [row for row in rows if row["stage"] in stages]

    sessions, rate = Column("sessions", form="d"), Column("frames/s", "frames a second", ".2f")
    share = Column("of the generator", "share of the generator's rate", ".1%")
    late = [
        Column(f"{title} ms", f"lateness, s/{key}", ".1f", 1e3)
        for title, key in (("late p50", "p50"), ("p99", "p99"), ("max", "max"))
    ]
    first = [
        Column(f"{title} ms", f"first frame, s/{key}", ".0f", 1e3)
        for title, key in (("first frame", "p50"), ("max", "max"))
    ]
    counts = [Column(name, form="d") for name in ("late", "skipped", "underruns")]
    old = Column("old frames", "old frames after an interruption", "d")
    cpu = [
        Column(f"{name}, ms a frame", f"CPU s a frame/{name}", ".2f", 1e3)
        for name in ("idle", "speaking")
    ]
    cores = [
        Column("us a frame", "scheduler, CPU s a frame", ".0f", 1e6),
        Column("its cores", "scheduler, cores", ".2f"), Column("all cores", "cores", ".2f"),
        Column("mean batch", "batch size/mean", ".1f"),
    ]  # fmt: skip
    exact = [
        Column("PSNR, dB", form=".1f"), Column("max difference, levels", form=".1f"),
        Column("same as one by one"),
    ]  # fmt: skip
    hour = [
        Column("stream, s", form=".0f"), Column("took, s", "seconds", ".0f"),
        *(Column(name, form="d") for name in ("drift, samples", "samples heard")),
        Column("not accounted for", "samples not accounted for", "d"),
        Column("wrong", "wrong samples", "d"), Column("interruptions", form="d"),
        Column("MB after a minute", "resident memory, bytes/after a minute", ".1f", 1e-6),
        Column("at the end", "resident memory, bytes/at the end", ".1f", 1e-6),
    ]  # fmt: skip
    head = [CASE, PROVIDER]
    return report.text(
        results,
        report.table(
            of(REAL_TIME, AS_TAKEN),
            [*head, sessions, BATCH, rate, share, *first, *late, *counts, old],
        ),
        report.table(
            of(IDLE), [*head, *cpu, Column("idle / speaking", "idle over speaking", ".1%")]
        ),
        report.table(of(GENERATOR), [*head, BATCH, rate, *exact]),
        report.table(of(SCHEDULER), [*head, sessions, rate, *cores, *late, *counts]),
        report.table(of(HOUR), [*head, *hour]),
    )


def main() -> int:
    chosen, device, budget = runner.parse_parts(
        "live", "Measure live sessions.", PARTS, gpu=GPU, cpu=CPU, quick=QUICK
    )
    benchmark = runner.Benchmark("live", chosen.output, device, PACKAGES, table)
    with tempfile.TemporaryDirectory() as scratch:
        # copies, because plans are built beside them
        networks = {
            kind: Path(shutil.copy(path, scratch)) for kind, path in network_files().items()
        }
        side = live_scheduler.SIDE
        empty = providers.make_scene(Path(scratch) / "empty", networks, side, side, 4)
        avatar = _avatar(device, budget, networks, Path(scratch))
        options = _options(benchmark, device, budget, networks)
        with Lives(avatar, options) as lives:
            benchmark.measure(jobs(budget, tuple(chosen.parts), lives, empty), budget)
    benchmark.finish(
        "99th percentile of lateness, s", "lateness, s/p99", lambda _: {}, over="sessions",
        scale="linear",
    )  # fmt: skip
    return 0 if benchmark.results["measured"] else 1


def _avatar(
    device: torch.device, budget: LiveBudget, networks: dict[str, Path], scratch: Path
) -> Avatar:
    """Load the demo; on a GPU or in a quick run, frames made of its person, without FFmpeg."""
    (size,) = budget.sizes
    if device.type == "cpu" and size == FRAME:
        return Avatar.load(DEMO, device=device)
    return providers.make_scene(scratch / "avatar", networks, *size, budget.avatar).avatar(device)


def _options(
    benchmark: runner.Benchmark, device: torch.device, budget: LiveBudget, networks: dict[str, Path]
) -> dict[str, dict[str, str]]:
    """Return the arguments of `Live`: for both precisions of a CPU, or a GPU's fastest runtime."""
    if device.type == "cpu":
        benchmark.leave_out("GPU", NO_GPU)
        chosen = {FP32: {"precision": "fp32"}}
        reason = providers.unavailable("openvino", device)
        with suppress(ImportError):
            from engine.runtime.openvino import has_bf16

            reason = None if has_bf16() else "this CPU multiplies no bfloat16"
        if reason:
            benchmark.leave_out(f"{VISEME}, {BF16}", reason)
            return chosen
        return chosen | {BF16: {"precision": "bf16"}}
    for runtime in RUNTIMES:  # the fastest first
        reason = providers.prepare(
            runtime, device, networks=networks, batches=(1, 25, 64), seconds=budget.preparing
        )
        if reason is None:
            return {runtime: {"runtime": runtime}}
        benchmark.leave_out(f"{VISEME}, {runtime}", reason)
    return {}


if __name__ == "__main__":
    program(main)
