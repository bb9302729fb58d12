"""`python -m benchmarks.generator`: the generator in fused kernels, whole and layer by layer.

On a GPU only. The whole is compared with `torch.compile` in the same run, each layer with PyTorch
in float16 and with a copy that moves as many bytes; the layer that takes the most time also with
its sums in float32, with its smaller image enlarged in memory, and as two kernels. TensorRT's
generator is in `benchmarks.pipeline`.
"""

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks import blocks, runner, timing
from benchmarks.kernels import PACKAGES, measure, table
from benchmarks.report import VISEME
from benchmarks.runner import NO_GPU, Budget, Job
from benchmarks.stages import Provider, Stage
from engine.command import program
from kernels.generator.plan import layers

GPU = Budget(
    (25, 1), ((320, 320),), 25, copied=1 << 30, sample=0.1, job=60, compiling=150, total=480
)
CPU = Budget((1,), ((320, 320),), 1, copied=1 << 22, sample=0.01, job=60, compiling=0, total=60)
COMPILED = "torch.compile"


def jobs(budget: Budget, device: torch.device) -> Iterator[Job]:
    """List the measurements, the most instructive ones first, because the time may run out."""
    names = [layer.name for layer in layers(blocks.weights())]
    names.sort(key=lambda name: name != blocks.FIRST)

    def timed(stage: Stage, provider: str, run: Provider, limit: float = budget.job) -> Job:
        row = {"provider": provider, "stage": stage.name, "batch": stage.batch, "frame size": None}
        method = timing.time_cuda_graph
        return Job(row, partial(measure, stage, run, device, method, budget.sample), limit)

    for batch in budget.batches:
        first, *others = (blocks.block(batch, name) for name in names)
        whole = blocks.generator(batch)
        yield timed(first, VISEME, first.viseme, budget.compiling)
        for name, run in first.libraries.items():
            yield timed(first, name, run)
        yield timed(whole, VISEME, whole.viseme, budget.compiling)
        for stage in others:
            yield timed(stage, VISEME, stage.viseme)
        yield timed(whole, COMPILED, whole.libraries[COMPILED], budget.compiling)
        yield timed(whole, blocks.FLOAT32_SUMS, whole.libraries[blocks.FLOAT32_SUMS])
        for stage in others:
            yield timed(stage, blocks.PYTORCH, stage.libraries[blocks.PYTORCH])
    row = {"stage": "generator, two frames", "batch": 2, "frame size": None}
    for name, float32 in ((VISEME, False), (blocks.FLOAT32_SUMS, True)):
        figures = partial(_exactness, device, float32)
        yield Job({"provider": f"{name}, exactness"} | row, figures, budget.compiling)


def _exactness(device: torch.device, float32_sums: bool) -> dict:
    figures: dict = blocks.accuracy(device, float32_sums=float32_sums)
    return figures | {"launches": blocks.launches(blocks.generator(2), device)}


def text(results: dict) -> str:
    """Format the results as text."""
    timed = [row for row in results["measured"] if "seconds" in row]
    exact = [row for row in results["measured"] if "launches" in row]
    lines = [
        f"{row['provider']}: PSNR {row['PSNR, dB']:.1f} dB, largest difference "
        f"{row['largest difference']:.2g}, {row['launches']} launches"
        for row in exact
    ]
    return "\n".join((table({**results, "measured": timed}), *lines))


def main() -> int:
    output, device, budget = runner.parse(
        "generator", "Compare the generator's fused kernels with PyTorch.",
        gpu=GPU, cpu=CPU, quick=CPU,
    )  # fmt: skip
    benchmark = runner.Benchmark("generator", output, device, PACKAGES, text)
    if device.type == "cpu":
        benchmark.leave_out("fused kernels", NO_GPU)
    made = jobs(budget, device) if device.type == "cuda" else ()
    benchmark.measure(made, budget)
    copy = max(benchmark.results["copy, bytes a second"])
    benchmark.finish("bytes a second", "bytes a second", lambda _: {"a plain copy": copy})
    return 1 if any(row["provider"] == VISEME for row in benchmark.results["left out"]) else 0


if __name__ == "__main__":
    program(main)
