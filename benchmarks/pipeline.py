"""`python -m benchmarks.pipeline`: PCM to finished frames, next to the usual implementations.

Every available runtime is measured, at several batch sizes and two frame sizes. It is compared with
all work on the CPU (OpenCV, librosa, ONNX Runtime on all cores), with the split design (networks on
the GPU, the rest on the CPU) and with plain PyTorch. On a GPU, each rate is also given as a share
of the roofline, from the copy bandwidth and the arithmetic measured in the same run.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch

from benchmarks import measurements, providers, report, runner, stages, timing
from benchmarks.providers import Renderer, Scene
from benchmarks.report import BATCH, CASE, PROVIDER, VISEME, Column
from benchmarks.runner import NO_GPU, Budget, Job
from engine.command import program
from engine.runtime import RUNTIMES
from engine.runtime.torch import Compiled
from examples import network_files

NAMES = {
    "fused": "fused kernels",
    "tensorrt": "TensorRT",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
}
SPLIT, EAGER, CPU_ONLY = "split design", "PyTorch eager", "CPU"
PACKAGES = (
    "torch", "triton", "onnxruntime", "tensorrt", "tensorrt_rtx", "librosa", "cv2", "numpy",
)  # fmt: skip
STAGES = ("log_mel", "windows", "audio encoder", "frames", "face_input", "generator", "composite")
GENERATOR_FLOP = 9.77e9  # per frame
# Bytes per frame in float16: each convolution reads its input and writes its output once; or the
# expanded channels of each inverted residual stay on chip.
GENERATOR_BYTES = {"layer by layer": 358e6, "fused blocks": 69e6}

BATCHES, SIZES = (1, 4, 8, 16, 25, 40), ((720, 1280), (1080, 1920))
GPU = Budget(
    BATCHES, SIZES, 25, copied=1 << 30, sample=0.3, job=20, compiling=150, total=480,
    preparing=200, frames=(4, 240), matrix=8192,
)  # fmt: skip
CPU = Budget(BATCHES, SIZES, 25, copied=1 << 28, sample=1.0, job=60, compiling=0, total=900)
QUICK = Budget(
    (1, 4), ((180, 320),), 4, copied=1 << 22, sample=0.01, job=120, compiling=0, total=300,
    avatar=8, frames=(4, 4), matrix=128,
)  # fmt: skip


class Provider(NamedTuple):
    """A provider of renders with its device and runtime."""

    name: str
    make: Callable[[Scene, torch.device, int, str], Renderer]
    device: torch.device
    runtime: str
    compiled: bool = False  # by torch.compile


def choose_providers(
    device: torch.device, available: list[str], cpu_runtime: str
) -> list[Provider]:
    """List the providers: designs with each available runtime, and one on the CPU only."""
    cuda, cpu = device.type == "cuda", torch.device("cpu")
    designs = {VISEME: providers.viseme} | ({SPLIT: providers.split} if cuda else {})
    chosen = [
        Provider(f"{name}, {NAMES[runtime]}", make, device, runtime)
        for (name, make), runtime in product(designs.items(), available)
    ]
    chosen += [
        Provider(f"{name}, {NAMES['torch']} compiled", make, device, "torch", compiled=True)
        for name, make in designs.items()
        if cuda
    ]
    chosen.append(Provider(EAGER, providers.eager, device, "torch"))
    name = f"{CPU_ONLY}, {NAMES[cpu_runtime]}"
    return [*chosen, Provider(name, providers.split, cpu, cpu_runtime)]


def jobs(budget: Budget, scenes: list[Scene], chosen: list[Provider]) -> Iterator[Job]:
    """List the measurements, the most important ones first, because the time may run out."""
    cuda = any(provider.device.type == "cuda" for provider in chosen)
    ends = list(dict.fromkeys((budget.main, 1)))
    between = [batch for batch in budget.batches if batch not in ends]
    for batches, compiled in product((ends, between), (False, True)):
        for scene, batch, provider in product(scenes, batches, chosen):
            slow = provider.runtime == "torch" and not cuda  # PyTorch takes minutes on a CPU
            if provider.compiled == compiled and (batch == budget.main or not slow):
                row = {"provider": provider.name, "batch": batch}
                row |= {"frame size": [scene.width, scene.height]}
                limit = budget.compiling if compiled else budget.job
                yield Job(row, partial(measure, provider, scene, batch, budget), limit)


def measure(provider: Provider, scene: Scene, batch: int, budget: Budget) -> dict:
    """Measure a provider at one batch size and frame size.

    Raises:
        RuntimeError: it should have been compiled and was not.
    """
    cuda = provider.device.type == "cuda"
    if cuda:
        scene.avatar(provider.device)  # loaded now, because its memory is counted separately
    make = partial(provider.make, scene, provider.device, batch, provider.runtime)
    # On a GPU the engine compiles PyTorch networks by itself, for minutes at every batch size.
    plain = cuda and not provider.compiled
    with patch.object(Compiled, "enabled", not plain), warnings.catch_warnings():
        warnings.filterwarnings("error", "PyTorch runs without its compiler")
        figures = measurements.measure(make, batch, cuda=cuda, budget=budget)
    if provider.compiled and not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
        raise RuntimeError("nothing was compiled")
    return figures


def rooflines(results: dict) -> dict[str, dict[str, float]]:
    """Return the shortest possible seconds per frame in float16, by frame size and GENERATOR_BYTES.

    They are the generator's, limited by its bytes or by its arithmetic, plus those for the bytes
    that `face_input` and `composite` must move.
    """
    copy, flop = max(results["copy, bytes a second"]), results["arithmetic, FLOP a second"]
    return {
        size: {
            name: max(moved / copy, GENERATOR_FLOP / flop) + around / copy
            for name, moved in GENERATOR_BYTES.items()
        }
        for size, around in results["face stages, bytes a frame"].items()
    }


def face_stage_bytes(width: int, height: int) -> int:
    """Return the bytes that `face_input` and `composite` must move for a frame."""
    both = (stages.face_input(1, width, height), stages.composite(1, width, height))
    return sum(stage.bytes(stage.inputs(torch.device("cpu"))) for stage in both)


def table(results: dict) -> str:
    """Format the results as text."""
    copy, flop = max(results["copy, bytes a second"]), results["arithmetic, FLOP a second"]
    floor = rooflines(results)
    rows = report.ordered(results)
    for row in rows:
        if "device memory, bytes" in row:  # on a GPU
            row["share"] = floor[row["case"]]["layer by layer"] * row["frames a second"]["median"]
    rate, memory = "frames a second", Column("MiB", "device memory, bytes", ".0f", 2**-20)
    speed = [Column("frames/s", f"{rate}/median", ".1f")]
    speed += [Column(part, f"{rate}/{part}", ".1f") for part in ("p20", "p80")]
    speed += [Column("sessions", "sessions at 25 fps", "d"), Column("of roofline", "share", ".1%")]
    speed += [
        Column(f"{name}s", f"{name}s a batch", ".1f") for name in ("allocation", "synchronisation")
    ]
    latency = [
        Column(title, f"{key}, s/{part}", ".2f", 1e3)
        for key in ("first frame", "frame")
        for title, part in ((f"{key}, ms", "median"), ("p99", "p99"))
    ]
    shares = [Column(stage, f"share of the stages/{stage}", ".1%") for stage in STAGES]
    shares += [Column("pre, post", "share of all but the networks", ".1%")]
    main = [row for row in rows if row["batch"] == results["compared at batch"]]
    return report.text(
        results,
        [
            f"PCM to finished frames. A plain copy moves {copy / 1e9:.4g} GB/s, read and written; "
            f"a matrix product computes {flop / 1e12:.4g} TFLOP/s.",
            *(
                f"roofline at {size}, {name}: {1e6 * seconds:.1f} us a frame"
                for size, parts in floor.items()
                for name, seconds in parts.items()
            ),
        ],
        report.table(rows, [CASE, PROVIDER, BATCH, *speed, memory]),
        report.table([row for row in rows if "frame, s" in row], [CASE, PROVIDER, BATCH, *latency]),
        report.table(main, [CASE, PROVIDER, BATCH, *shares]),
        report.table(speed_ups(results), report.SPEED_UPS),
    )


def speed_ups(results: dict) -> list[dict]:
    """Compare the other providers with Viseme's fastest runtime."""
    return report.speed_ups(results, lambda row: 1 / row["frames a second"]["median"])


def main() -> int:
    output, device, budget = runner.parse(
        "pipeline", "Compare renders by all runtimes and designs.", gpu=GPU, cpu=CPU, quick=QUICK
    )
    benchmark = runner.Benchmark("pipeline", output, device, PACKAGES, table)
    cuda = device.type == "cuda"
    results = benchmark.results
    results["mel on the CPU"] = providers.mel_library()
    results["arithmetic, FLOP a second"] = timing.matmul_rate(device, budget.matrix, budget.sample)
    results["generator, FLOP a frame"] = GENERATOR_FLOP
    results["generator, bytes a frame"] = GENERATOR_BYTES
    results["face stages, bytes a frame"] = {
        f"{width} x {height}": face_stage_bytes(width, height)
        for width, height in budget.sizes
        if cuda
    }
    for name in () if cuda else ("GPU", SPLIT):
        benchmark.leave_out(name, NO_GPU)
    with tempfile.TemporaryDirectory() as scratch:
        # copies, because plans are built beside them
        networks = {
            kind: Path(shutil.copy(path, scratch)) for kind, path in network_files().items()
        }
        batches = (1, budget.main, max(budget.batches))
        prepare = partial(
            providers.prepare, networks=networks, batches=batches, seconds=budget.preparing
        )
        available: list[str] = []
        for runtime in RUNTIMES:  # the fastest first
            reason = prepare(runtime, device)
            if runtime == "torch" and not cuda and available:
                reason = f"on a CPU it is {EAGER}: the stages are the same there"
            if reason is None:
                available.append(runtime)
            else:
                benchmark.leave_out(f"{VISEME}, {NAMES[runtime]}", reason)
        cpu_runtime = "torch" if prepare("onnxruntime", torch.device("cpu")) else "onnxruntime"
        scenes = [
            providers.make_scene(Path(scratch) / f"{width}", networks, width, height, budget.avatar)
            for width, height in budget.sizes
        ]
        chosen = choose_providers(device, available, cpu_runtime)
        benchmark.measure(jobs(budget, scenes, chosen), budget)
    floor = results["roofline, s a frame"] = rooflines(results)

    def marks(size: str) -> dict[str, float]:
        return {f"roofline, {name}": 1 / seconds for name, seconds in floor.get(size, {}).items()}

    benchmark.finish("finished frames a second", "frames a second/median", marks)
    return 0 if any(map(report.is_viseme, results["measured"])) else 1


if __name__ == "__main__":
    program(main)
