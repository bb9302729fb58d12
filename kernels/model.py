"""The time of kernels on a GPU, from their machine code: what each pipe needs, next to the memory.

Each pipe's time is that of its instructions with every part of every multiprocessor busy in every
cycle, so it is a lower bound; latencies, tails and bank conflicts are not in it. The memory's floor
is the time in which a large copy moves the bytes that must move. For the generator there is also an
expected time: pipes and memory reach only the shares of these rates in `REACHED`, and each launch
takes `LAUNCH`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from triton.compiler import CompiledKernel

from . import compile_cases as cases
from .fused.color import color_work
from .fused.composite_work import composite_work
from .fused.face_input import face_input_work
from .fused.resize_work import resize_work
from .generator.network_cases import network_layers
from .generator.works import generator_works
from .gpus import Gpu, cycles_of, pipe_of, wavefronts
from .parts import read_parts
from .sass import read_machine_code
from .spec import CROP_SIZE, RESIZE_MODES, ByteFormat, CompositeMode
from .work import Work

BOX = (269, 549, 451, 731)  # of the face in the modelled frames, as in `compile_cases`
COLUMNS = ("issue", "fma", "alu", "xu", "l1", "tensor")
GENERATOR = "generator "  # before the names of its launches
FRAMES = 25
# Assumed, not measured: what a well-written kernel reaches of each rate, and seconds between the
# end of a launch in a CUDA graph and the next one.
REACHED = {
    "issue": 0.65, "fma": 0.8, "alu": 0.8, "xu": 0.8, "l1": 0.85, "tensor": 0.8, "memory": 0.85,
}  # fmt: skip
LAUNCH = 1.2e-6


@dataclass(frozen=True)
class ModelCase:
    """A launch with its work."""

    name: str
    launch: Callable[[], object]
    work: Work
    kernel: int = -1  # which of those that are launched


@dataclass(frozen=True)
class Estimate:
    """What one launch costs, in seconds for each frame or image."""

    case: ModelCase
    registers: int
    blocks: int  # that a multiprocessor holds
    instructions: float  # a thread, per byte of the result
    pipes: dict[str, float]
    floor: float

    @property
    def limit(self) -> str:
        """The pipe that needs the most time."""
        return max(self.pipes, key=lambda pipe: self.pipes[pipe])

    @property
    def ratio(self) -> float:
        """That pipe's time over the floor."""
        return self.pipes[self.limit] / self.floor

    @property
    def least(self) -> float:
        """The time if nothing waits."""
        return max(self.pipes[self.limit], self.floor)

    @property
    def expected(self) -> float:
        """The time with what is `REACHED`, and the launch."""
        times = self.pipes | {"memory": self.floor}
        slowest = max(time / REACHED[name] for name, time in times.items())
        return slowest + LAUNCH / self.case.work.items


def model_cases() -> list[ModelCase]:
    """List the launches that are modelled: 25 frames of 720 x 1280 with a 182-pixel face."""
    half, n, size = torch.float16, FRAMES, (1280, 720)
    found = []
    pastes: tuple[tuple[CompositeMode, ByteFormat, bool], ...] = (
        ("crop", "rgb", False), ("direct", "rgb", False), ("crop", "nv12", False),
        ("direct", "nv12", False), ("crop", "rgb", True), ("crop", "nv12", True),
    )  # fmt: skip
    for mode, format, masked in pastes:
        launch = partial(cases._composite, mode, format, False, half, n, *size, masked)
        work = composite_work(n, *size, BOX, mode, format, 2, masked)
        name = f"composite {mode} {format}" + " masked" * masked
        found.append(ModelCase(name, launch, work))
    launch = partial(cases._face_input, half, n, *size)
    found.append(ModelCase("face_input", launch, face_input_work(n, BOX, 2)))
    for source, target in cases.BYTE_CONVERSIONS:
        launch = partial(cases._convert_color, source, target, half, *size)
        name = f"convert_color {source}->{target}"
        found.append(ModelCase(name, launch, color_work(n, *size, source, target)))
    sizes = ((182, 182), (CROP_SIZE, CROP_SIZE)), ((1280, 720), (1920, 1080))
    for how in RESIZE_MODES:
        for old, new in (*sizes, sizes[1][::-1]):
            launch = partial(cases._resize, how, old, new)
            name = f"resize {how} {old[1]}x{old[0]}->{new[1]}x{new[0]}"
            found.append(ModelCase(name, launch, resize_work(n, old, new, how, 3)))
    return found


def generator_cases(gpu: Gpu) -> list[ModelCase]:
    """List the launches of the generator, with 25 frames."""
    return [
        ModelCase(f"{GENERATOR}{name} {part}".rstrip(), launch, work, number - len(works))
        for name, launch, works in generator_works(FRAMES, gpu.processors)
        for number, (part, work) in enumerate(works.items())
    ]


def estimate(case: ModelCase, kernel: CompiledKernel, gpu: Gpu) -> Estimate:
    """Estimate a launch of a compiled kernel."""
    code, warps = read_machine_code(kernel), kernel.metadata.num_warps
    cycles: Counter[str] = Counter()  # of one of the four parts of a multiprocessor
    runs = case.work.runs
    for name, part in read_parts(kernel, runs).items():
        times = runs[name] if part.looped else min(runs[name], runs[kernel.name] * part.copies)
        for instruction, count in part.instructions.items():
            slots = count * warps * times
            cycles["issue"] += slots
            pipe = pipe_of(instruction)
            if pipe == "l1":
                lines = wavefronts(instruction, case.work.lines.get(name, 1))
                cycles["l1"] += slots * lines / gpu.l1
            elif pipe:
                # Integer products and pairs of float16 run in the fma pipe.
                shared = "fma" if pipe in ("imad", "half") else pipe
                cycles[shared] += slots * cycles_of(instruction, gpu)
    rate = 4 * gpu.processors * gpu.clock * case.work.items
    return Estimate(
        case, code.registers, blocks(code.registers, warps, kernel.metadata.shared, gpu),
        cycles["issue"] * 32 / case.work.made,
        {pipe: cycles[pipe] / rate for pipe in COLUMNS},
        case.work.moved / gpu.copy / case.work.items,
    )  # fmt: skip


def blocks(registers: int, warps: int, shared: int, gpu: Gpu) -> int:
    """Return how many blocks a multiprocessor holds at once."""
    by_registers = gpu.registers // (-(-registers * 32 // 256) * 256 * warps)
    by_shared = gpu.shared // (shared + 1024)
    return min(by_registers, by_shared, gpu.threads // (32 * warps))


def table(estimates: Sequence[Estimate], gpu: Gpu) -> str:
    """Return the table that `python -m kernels.compile --model` prints."""
    lines = [
        f"Modelled on {gpu.name}, us a frame or image:",
        f"{'':40}{'registers':>10}{'blocks':>8}{'instr/B':>9}"
        + "".join(f"{name:>8}" for name in (*COLUMNS, "floor", "ratio"))
        + "  limit",
    ]
    for row in estimates:
        times = (*(row.pipes[pipe] * 1e6 for pipe in COLUMNS), row.floor * 1e6, row.ratio)
        lines.append(
            f"{row.case.name:40}{row.registers:10}{row.blocks:8}{row.instructions:9.1f}"
            + "".join(f"{value:8.3f}" for value in times)
            + f"  {row.limit if row.ratio > 1 else 'memory'}"
        )
    return "\n".join(lines)


def generator_table(estimates: Sequence[Estimate], gpu: Gpu) -> str:
    """Return the sums of the generator's layers, and of all of it."""
    rows: dict[str, list[Estimate]] = {}
    for estimated in estimates:
        if estimated.case.name.startswith(GENERATOR):
            rows.setdefault(estimated.case.name.split()[1], []).append(estimated)
    lines = [
        f"The generator on {gpu.name}, a frame of {FRAMES}:",
        f"{'':12}{'kernels':>9}{'MB':>8}{'least us':>10}{'expected us':>13}",
    ]
    total = [0.0, 0.0, 0.0, 0.0]
    moved = {name: layer.traffic / 1e6 for name, layer in network_layers().items()}
    for name, parts in rows.items():
        least, expected = (
            sum(getattr(part, time) for part in parts) * 1e6 for time in ("least", "expected")
        )
        figures = len(parts), moved[name], least, expected
        total = [one + other for one, other in zip(total, figures, strict=True)]
        lines.append(_sums(name, *figures))
    least, expected = total[2:]
    lines += [
        _sums("sum", *total),
        f"Frames a second: {1e6 / expected:,.0f} expected, {1e6 / least:,.0f} if nothing waits.",
    ]
    return "\n".join(lines)


def _sums(name: str, kernels: float, moved: float, least: float, expected: float) -> str:
    return f"{name:12}{kernels:9.0f}{moved:8.2f}{least:10.2f}{expected:13.2f}"
