"""`python -m benchmarks.kernels`: every stage compared with its alternatives and with a copy.

On a GPU the Triton kernels are compared with the same stage in PyTorch, eager and compiled, with
libraries, and with OpenCV and librosa on the CPU, in threads over the frames. A stage whose bytes
decide its time is also compared with a plain copy that moves as many bytes, timed in the same way:
a copy loses time at its beginning and its end too. Without a GPU the stages are compared with
OpenCV, librosa and the libraries on the CPU.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache, partial
from os import cpu_count

import torch

from benchmarks import report, runner, stages, timing
from benchmarks.report import BATCH, CASE, PROVIDER, VISEME, Column
from benchmarks.runner import NO_GPU, Budget, Job
from benchmarks.stages import Inputs, Items, Provider, Stage
from engine.command import program

KERNEL_ONLY = f"{VISEME}, kernel only"  # without the launch from Python
PARTS = ("main", "others", "cpu", "references")
CACHES = 4  # total size of a measurement's inputs, in multiples of the L2 cache
MAX_SETS = 64
PACKAGES = ("torch", "triton", "torchaudio", "torchvision", "cvcuda", "librosa", "cv2", "numpy")
SIZES = ((720, 1280), (1080, 1920))
GPU = Budget(
    (1, 8, 25, 40, 100), SIZES, 25, copied=1 << 30, sample=0.1, job=60, compiling=60, total=450
)
CPU = Budget((1, 8, 25), SIZES, 25, copied=1 << 28, sample=0.3, job=60, compiling=0, total=600)
QUICK = Budget(
    (1, 2), ((180, 320),), 2, copied=1 << 22, sample=0.01, job=60, compiling=20, total=60, speech=1
)


def jobs(budget: Budget, device: torch.device, parts: tuple[str, ...] = PARTS) -> Iterator[Job]:
    """List the measurements, the most important ones first, because the time may run out.

    Args:
        parts: "main": the batch size of the comparisons, on the device. "others": Viseme at the
            other batch sizes. "cpu": OpenCV and librosa. "references": the reference at the other
            batch sizes, on a GPU.
    """
    every, cuda = list(_stages(budget)), device.type == "cuda"
    main = [stage for stage in every if stage.batch == budget.main]
    others = [stage for stage in every if stage.batch != budget.main]

    def job(stage: Stage, provider: str, figures: Callable[[], dict], limit: float) -> Job:
        row = {"provider": provider, "stage": stage.name, "batch": stage.batch}
        return Job(row | {"frame size": stage.size and list(stage.size)}, figures, limit)

    def timed(stage: Stage, provider: str, run: Provider, limit: float = budget.job) -> Job:
        method = timing.time_cuda_graph if provider == KERNEL_ONLY else timing.time_wall_clock
        figures = partial(measure, stage, run, device, method, budget.sample)
        return job(stage, provider, figures, limit)

    def on_device(some: list[Stage]) -> Iterator[Job]:
        for stage in some:
            if cuda:
                yield timed(stage, KERNEL_ONLY, stage.viseme)
            yield timed(stage, VISEME, stage.viseme)
            if cuda and stage.batch == budget.main:
                yield timed(stage, "reference", stage.reference)
            for name, run in stage.libraries.items() if stage.batch == budget.main else ():
                yield timed(stage, name, run)

    def on_cpu() -> Iterator[Job]:
        pools: dict[int, Callable[..., Iterable]] = {1: map}
        pools |= {n: ThreadPoolExecutor(n).map for n in sorted({8, cpu_count() or 1} - {1})}
        for stage in main:
            for workers, spread in pools.items() if stage.cpu else ():
                name = f"CPU, {workers} worker" + "s" * (workers > 1)
                figures = partial(measure_cpu, stage, spread, budget.sample)
                yield job(stage, name, figures, budget.job)

    def compiled() -> Iterator[Job]:
        for stage in sorted(main, key=lambda stage: stage.size is None):  # log_mel takes longest
            if cuda and stage.size in (None, budget.sizes[0]):
                run = torch.compile(stage.reference)
                yield timed(stage, "torch.compile", run, budget.compiling)

    listed: dict[str, Callable[[], Iterable[Job]]] = {
        "main": lambda: (*on_device(main), *compiled()),
        "cpu": on_cpu,
        "others": lambda: on_device(others),
        "references": lambda: (timed(s, "reference", s.reference) for s in others if cuda),
    }
    for part, some in listed.items():
        if part in parts:
            yield from some()


def _stages(budget: Budget) -> Iterator[Stage]:
    for batch in budget.batches:
        yield stages.log_mel(batch, budget.speech)
        yield stages.mel_windows(batch)
        yield stages.feature_windows(batch)
        yield stages.ring_feature_windows(batch)
        for size in budget.sizes:
            yield stages.face_input(batch, *size)
            yield stages.composite(batch, *size)
            yield stages.resize(batch, *size)
            yield stages.convert_color(batch, *size)
    for size in budget.sizes:
        for layout in ("nv12", "i420"):
            yield stages.composite(budget.main, *size, layout)
            yield stages.convert_color(budget.main, *size, layout)


@lru_cache(maxsize=1)  # the providers of a stage are measured one after another
def _inputs(stage: Stage, device: torch.device) -> list[Inputs]:
    """Make enough sets of inputs that none is still in the L2 cache when it is used again."""
    torch.manual_seed(1)
    first = stage.inputs(device)
    if device.type == "cpu":
        return [first, stage.inputs(device)]
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    count = -(-CACHES * cache // stage.bytes(first))
    return [first, *(stage.inputs(device) for _ in range(max(2, min(MAX_SETS, count)) - 1))]


def measure(
    stage: Stage,
    run: Provider,
    device: torch.device,
    method: Callable[[timing.Calls, float], timing.Timing],
    sample: float,
) -> dict:
    """Time one provider of a stage.

    Raises:
        ValueError: its result differs from Viseme's.
    """
    sets = _inputs(stage, device)
    if run is not stage.viseme:
        check_same_work(stage, run, sets[0])
    figures = _figures(stage, sets, method([partial(run, inputs) for inputs in sets], sample))
    if run is stage.viseme and method is timing.time_cuda_graph and is_bound_by_memory(stage):
        moved = stage.bytes(sets[0])
        figures["copy of that size, bytes a second"] = copy_like(device, moved, len(sets), sample)
    return figures


def is_bound_by_memory(stage: Stage) -> bool:
    """Whether a share of a copy's bandwidth means something: the stage moves frames. The audio
    stages compute, or are over before a GPU is busy."""
    return stage.size is not None


def copy_like(device: torch.device, moved: int, count: int, sample: float) -> float:
    """Measure copies that read and write `moved` bytes in all: bytes a second.

    They are timed as a kernel's launches are: `count` copies of different memory, in a CUDA graph.
    """
    size = moved // 2
    sources = [torch.randint(256, (size,), dtype=torch.uint8, device=device) for _ in range(count)]
    pairs = [(source, torch.empty_like(source)) for source in sources]
    took = timing.time_cuda_graph([partial(to.copy_, source) for source, to in pairs], sample)
    return 2 * size / took.median


def measure_cpu(stage: Stage, spread: Callable[..., Iterable], sample: float) -> dict:
    """Time OpenCV or librosa; `spread` is `map`, or the `map` of a pool of threads."""
    assert stage.cpu is not None
    sets = _inputs(stage, torch.device("cpu"))

    def run(items: Items) -> None:
        for _ in spread(lambda item: item(), items):
            pass

    calls = [partial(run, stage.cpu(inputs)) for inputs in sets]
    return _figures(stage, sets, timing.time_wall_clock(calls, sample))


def _figures(stage: Stage, sets: list[Inputs], took: timing.Timing) -> dict:
    moved = stage.bytes(sets[0])
    figures = {"seconds": asdict(took), "bytes": moved, "bytes a second": moved / took.median}
    return figures | {"sets of inputs": len(sets)}


def check_same_work(stage: Stage, run: Provider, inputs: Inputs) -> None:
    """Check that a provider's result differs from Viseme's by rounding only.

    Raises:
        ValueError: it differs by more, or has another shape.
    """
    results = []
    for provider in (run, stage.viseme):
        inputs.out.fill_(77)  # values that are not written must not look right
        results.append(provider(inputs).clone())
    result, expected = results
    if result.shape != expected.shape:
        raise ValueError(f"its shape is {(*result.shape,)}, Viseme's is {(*expected.shape,)}")
    pairs = zip(result, expected, strict=True)  # one item at a time saves memory
    difference = torch.stack([(a.float() - b.float()).abs().mean() for a, b in pairs]).mean().item()
    difference /= 255 if expected.dtype == torch.uint8 else 1
    if not difference < 0.01:
        raise ValueError(f"its result differs from Viseme's by {difference:.1%} on average")


def table(results: dict) -> str:
    """Format the results as text."""
    copy = max(results["copy, bytes a second"])
    rows = report.ordered(results)
    for row in rows:
        # At small batches the launch decides, and there is no launch from Python in a graph.
        like = row.get("copy of that size, bytes a second")
        if like and row["batch"] >= results["compared at batch"]:
            row["share"] = row["bytes a second"] / like
    times = [
        Column("median, us", "seconds/median", ".1f", 1e6),
        Column("p20", "seconds/p20", ".1f", 1e6),
        Column("p80", "seconds/p80", ".1f", 1e6),
        Column("GB/s", "bytes a second", ".3g", 1e-9),
        Column("copy", "copy of that size, bytes a second", ".3g", 1e-9),
        Column("of the copy", "share", ".1%"),
    ]
    return report.text(
        results,
        [
            f"a plain copy of much memory moves {copy / 1e9:.4g} GB/s, read and written; shares "
            "are those of a copy that moves as many bytes as the stage"
        ],
        report.table(rows, [CASE, PROVIDER, BATCH, *times]),
        report.table(speed_ups(results), report.SPEED_UPS),
    )


def speed_ups(results: dict) -> list[dict]:
    """Compare the other providers with Viseme, all launched from Python."""
    rows = [row for row in results["measured"] if row["provider"] != KERNEL_ONLY]
    return report.speed_ups({**results, "measured": rows}, lambda row: row["seconds"]["median"])


def main() -> int:
    chosen, device, budget = runner.parse_parts(
        "kernels", "Compare every stage with its alternatives.", PARTS,
        gpu=GPU, cpu=CPU, quick=QUICK,
    )  # fmt: skip
    benchmark = runner.Benchmark("kernels", chosen.output, device, PACKAGES, table)
    if device.type == "cpu":
        for provider in ("the Triton kernels", "reference, torch.compile and libraries on a GPU"):
            benchmark.leave_out(provider, NO_GPU)
    benchmark.measure(jobs(budget, device, tuple(chosen.parts)), budget)
    copy = max(benchmark.results["copy, bytes a second"])
    benchmark.finish("bytes a second", "bytes a second", lambda _: {"a plain copy": copy})
    left_out = {row["provider"] for row in benchmark.results["left out"]}
    return 1 if left_out & {VISEME, KERNEL_ONLY} else 0


if __name__ == "__main__":
    program(main)
