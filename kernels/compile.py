"""Compile every kernel ahead of time, for GPUs that need not be present.

The launchers are called as the pipeline calls them, with tensors on the CPU, and the kernels that
they would launch are compiled instead. So there is no second list of signatures, and CUDA is never
used. As a command: `python -m kernels.compile`.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import groupby, islice, zip_longest
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from .compile_cases import Case, pipeline_cases
from .generator.network_cases import network_cases, traffic_line
from .gpus import GPUS, Gpu
from .model import Estimate, ModelCase, estimate, generator_cases, generator_table, model_cases
from .model import table as model_table
from .sass import MachineCode, read_machine_code

MODELLED = 3, 8  # Triton's version; before, code was not told apart by the calls it was inlined in
# Of the largest GPU of each: multiprocessors, for launchers that size their grids by them, and
# bytes of shared memory that one block may use.
ARCHITECTURES = {
    80: (108, 166912),  # A100
    86: (84, 101376),  # RTX 30
    89: (144, 101376),  # RTX 40, L40
    90: (132, 232448),  # H100, H200
    100: (148, 232448),  # B200
    120: (188, 101376),  # RTX 50, RTX PRO
}


@dataclass(frozen=True)
class Row:
    """One compiled kernel, or one failure."""

    arch: int
    stage: str
    kernel: str
    variants: tuple[str, ...]  # of the cases that launch this very code
    shared: int = 0  # bytes of shared memory per block
    machine: MachineCode | None = None
    error: str = ""

    @property
    def variant(self) -> str:
        """The words that all variants share; the others made no difference to the code."""
        first, *others = (variant.split() for variant in self.variants)
        shared = (word for word in first if all(word in other for other in others))
        return " ".join(shared) or "all"

    @property
    def fault(self) -> str:
        """What is wrong with the kernel; empty if nothing is."""
        if self.machine and self.machine.spilled and not self.error:
            return f"{self.machine.spilled} bytes spilled"
        return self.error


@contextmanager
def _recording(arch: int, processors: int | None = None) -> Iterator[list[CompiledKernel]]:
    """Compile for `arch` the kernels that are launched inside, and launch none of them.

    Args:
        processors: of the GPU; of the largest one of `arch` if None.
    """
    launched: list[CompiledKernel] = []
    run = triton.JITFunction.run

    def compile_only(
        self: triton.JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any
    ) -> CompiledKernel:
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        except Exception as error:
            raise RuntimeError(f"{self.__name__}: {_reason(error)}") from error
        launched.append(kernel)
        return kernel

    count, shared = ARCHITECTURES[arch]
    count = processors or count
    properties = SimpleNamespace(multi_processor_count=count, shared_memory_per_block_optin=shared)
    shown = {"multiprocessor_count": count, "max_shared_mem": shared}
    driver = SimpleNamespace(
        # Triton keeps compiled kernels per device, so each architecture is a device of its own.
        get_current_device=lambda: arch,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        utils=SimpleNamespace(get_device_properties=lambda device: shown),
    )
    with (
        patch.object(triton.runtime.driver, "_active", driver),
        patch.object(triton.JITFunction, "run", compile_only),
        patch("torch.cuda.get_device_properties", lambda device=None: properties),
        patch("torch.cuda.get_device_capability", lambda device=None: divmod(arch, 10)),
    ):
        yield launched


def _compile(arch: int, cases: Sequence[Case]) -> list[Row]:
    """Compile cases of one stage. Cases that come to the same code share a row."""
    rows: dict[Row, tuple[str, ...]] = {}
    for case in cases:
        for row in _compile_case(arch, case):
            rows[row] = (*rows.get(row, ()), case.variant)
    return [replace(row, variants=variants) for row, variants in rows.items()]


def _compile_case(arch: int, case: Case) -> list[Row]:
    """Compile one case; the rows have no variants."""
    error = ""
    with _recording(arch) as launched:
        try:
            case.launch()
            if not launched:
                error = "nothing was launched"
        except Exception as raised:
            error = _reason(raised)
    rows = [_row(arch, case.stage, kernel) for kernel in launched]
    if error:
        rows.append(Row(arch=arch, stage=case.stage, kernel=case.stage, variants=(), error=error))
    return rows


def _row(arch: int, stage: str, kernel: CompiledKernel) -> Row:
    shared, (_, allowed) = kernel.metadata.shared, ARCHITECTURES[arch]
    return Row(
        arch=arch,
        stage=stage,
        kernel=kernel.name,
        variants=(),
        shared=shared,
        machine=read_machine_code(kernel),
        error=f"{shared} bytes of shared memory; {allowed} available" if shared > allowed else "",
    )


def _reason(error: Exception) -> str:
    """Return one line. A compiler's message has the source first, and the fault last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or [repr(error)]
    name = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return name + telling[-1]


def compile_all(archs: Sequence[int], cases: Sequence[Case] | None = None) -> list[Row]:
    """Compile every case for every architecture, in one process per core.

    Args:
        archs: compute capabilities out of `ARCHITECTURES`, 90 for 9.0.
        cases: what to compile; `pipeline_cases()` if None.

    Returns:
        A row for every kernel and every failure, by architecture and in the order of the cases.
    """
    tasks: list[tuple[int, list[Case]]] = []
    for arch in archs:
        every = pipeline_cases() if cases is None else cases
        for _, stage in groupby(every, lambda case: case.stage):
            while part := list(islice(stage, 4)):
                tasks.append((arch, part))
    done: dict[int, list[Row]] = {}
    workers = min(os.cpu_count() or 1, len(tasks))
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        tqdm(total=len(tasks), desc="compiling", leave=False, disable=None) as bar,
    ):
        futures = {pool.submit(_compile, *task): number for number, task in enumerate(tasks)}
        for future in as_completed(futures):
            # A crash in one worker fails every pending future; those cases are compiled again
            # below, in processes of their own.
            with suppress(BrokenProcessPool):
                done[futures[future]] = future.result()
            bar.update()
    merged: dict[Row, tuple[str, ...]] = {}
    for number, (arch, part) in enumerate(tasks):
        if number not in done:
            done[number] = [row for case in part for row in _compile_alone(arch, case)]
        for row in done[number]:
            same = replace(row, variants=())
            merged[same] = merged.get(same, ()) + row.variants
    return [replace(row, variants=variants) for row, variants in merged.items()]


def _compile_alone(arch: int, case: Case) -> list[Row]:
    """Compile a case in a process of its own, because it may crash the process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_compile, arch, [case]).result()
        except BrokenProcessPool:
            crashed = Row(
                arch=arch,
                stage=case.stage,
                kernel=case.stage,
                variants=(case.variant,),
                error="the compiler crashed",
            )
            return [crashed]


def table(rows: Sequence[Row]) -> str:
    heads = [
        "arch", "kernel", "variant", "registers", "spilled", "shared", "loads", "stores", "mma"
    ]  # fmt: skip
    lines = [heads]
    for row in rows:
        line = [str(row.arch), row.kernel, row.variant]
        if code := row.machine:
            line += [str(code.registers), str(code.spilled), str(row.shared)]
            line += [",".join(map(str, widths)) or "-" for widths in (code.loads, code.stores)]
            line += [str(code.tensor_cores)]
        else:
            line += [row.error]
        lines.append(line)
    # The error of a kernel that did not compile may run over the columns of numbers.
    full = [line for line in lines if len(line) == len(heads)] + [line[:3] for line in lines]
    columns = [max(map(len, column)) for column in zip_longest(*full, fillvalue="")]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, columns, strict=False)).rstrip()
        for line in lines
    )


def estimate_all(gpu: Gpu, cases: Sequence[ModelCase] | None = None) -> list[Estimate]:
    """Compile kernels for a GPU and estimate their times: those of `model_cases()` if None."""
    estimates = []
    with _recording(gpu.arch, gpu.processors) as launched:
        for case in model_cases() if cases is None else cases:
            case.launch()
            estimates.append(estimate(case, launched[case.kernel], gpu))
    return estimates


def main(arguments: Sequence[str] | None = None, cases: Sequence[Case] | None = None) -> int:
    """Print the tables. Return 1 if a kernel spills or does not compile, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__)
    every = ",".join(map(str, ARCHITECTURES))
    parser.add_argument("--arch", help=f"default {every}; none with --model")
    parts = {"stages": pipeline_cases, "generator": network_cases}
    text = f"which of: {', '.join(parts)}; default both"
    parser.add_argument("--part", choices=parts, help=text)
    parser.add_argument("--model", help=f"GPUs whose times are modelled: some of {','.join(GPUS)}")
    options = parser.parse_args(arguments)
    gpus = [] if options.model is None else options.model.split(",")
    unknown = [name for name in gpus if name not in GPUS]
    if unknown:
        expected = ",".join(GPUS)
        print(f"error: --model is {unknown[0]!r}; expected some of: {expected}", file=sys.stderr)
        return 2
    asked = options.arch or ("" if options.model else every)
    names = asked.split(",") if asked else []
    unknown = [name for name in names if name not in every.split(",")]
    if unknown:
        print(f"error: --arch is {unknown[0]!r}; expected some of: {every}", file=sys.stderr)
        return 2
    if triton.knobs.runtime.interpret:
        print("error: TRITON_INTERPRET is set; unset it to compile", file=sys.stderr)
        return 2
    if gpus and tuple(map(int, triton.__version__.split(".")[:2])) < MODELLED:
        print(
            f"error: --model needs the source lines that Triton 3.8 writes into machine code; "
            f"this is Triton {triton.__version__}",
            file=sys.stderr,
        )
        return 2
    chosen = [options.part] if options.part else list(parts)
    if cases is None:
        cases = [case for part in chosen for case in parts[part]()]
    rows = compile_all(list(dict.fromkeys(map(int, names))), cases) if names else []
    if names:
        print(table(rows))
    for gpu in map(GPUS.__getitem__, dict.fromkeys(gpus)):
        modelled = {
            "stages": model_cases() if "stages" in chosen else [],
            "generator": generator_cases(gpu) if "generator" in chosen else [],
        }
        estimates = estimate_all(gpu, [case for part in chosen for case in modelled[part]])
        print(model_table(estimates, gpu), end="\n\n")
        if "generator" in chosen:
            print(generator_table(estimates, gpu), end="\n\n")
    bad = [row for row in rows if row.fault]
    for row in bad:
        print(f"error: sm_{row.arch} {row.kernel} {row.variant}: {row.fault}", file=sys.stderr)
    if gpus and "generator" in chosen:
        print(traffic_line())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
