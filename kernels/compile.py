"""`python -m kernels.compile`: every kernel compiled ahead of time, for GPUs that are not there.

What is compiled is what the launchers launch: they are called as the pipeline calls them, with
tensors on the CPU, and what they would have launched is recorded. There is no second list of
signatures, and CUDA is never touched.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from importlib import import_module
from itertools import groupby, islice, product, zip_longest
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel

from .spec import CROP, FEATURE, MEL_BANDS, MEL_WINDOW, ROI, SAMPLE_RATE, mel_rows

# Multiprocessors of the largest GPU of each, for launchers that size their grids by them, and
# bytes of shared memory that one block may have.
ARCHITECTURES = {
    80: (108, 166912),  # A100
    86: (84, 101376),  # RTX 30
    89: (144, 101376),  # RTX 40, L40
    90: (132, 232448),  # H100, H200
    100: (148, 232448),  # B200
    120: (188, 101376),  # RTX 50, RTX PRO
}


@dataclass(frozen=True)
class Case:
    """One call of one launcher, as the pipeline makes it."""

    stage: str
    variant: str
    launch: Callable[[], object]  # looks at no GPU; pickled, so a `partial` of a module's function


@dataclass(frozen=True)
class Row:
    """One compiled kernel, or what kept it from being one."""

    arch: int
    stage: str
    kernel: str
    variants: tuple[str, ...]  # of the cases that launch this very code
    registers: int = 0
    spilled: int = 0  # bytes of stack a thread
    shared: int = 0  # bytes a block
    loads: tuple[int, ...] = ()  # widths of accesses to global memory, bytes, widest first
    stores: tuple[int, ...] = ()
    tensor_cores: int = 0  # instructions
    error: str = ""
    code: str = ""  # hash of the instructions

    @property
    def variant(self) -> str:
        """The words that all the variants share: the others made no difference."""
        first, *others = (variant.split() for variant in self.variants)
        shared = (word for word in first if all(word in other for other in others))
        return " ".join(shared) or "all"


# --- what the pipeline launches ------------------------------------------------------------------


def _log_mel(dtype: torch.dtype, batch: int, samples: int) -> None:
    pcm = torch.empty(batch, samples, dtype=dtype)
    lengths = torch.full((batch,), samples) if batch > 1 else None
    _launcher("log_mel")(pcm, lengths, torch.empty(batch, mel_rows(samples), MEL_BANDS))


def _mel_windows(start: int, n: int) -> None:
    out = torch.empty(n, 1, MEL_BANDS, MEL_WINDOW)
    _launcher("windows", "mel_windows")(torch.empty(1001, MEL_BANDS), 25.0, start, out)


def _feature_windows(dtype: torch.dtype, start: int, n: int) -> None:
    features = torch.empty(309, FEATURE, dtype=dtype)
    out = torch.empty(n, 32, 16, 16, dtype=dtype)
    _launcher("windows", "feature_windows")(features, start, out)


def _faces(n: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frames, boxes, index, crops."""
    boxes = torch.tensor([[269, 549, 451, 731]] * n, dtype=torch.int32)
    return _bytes(n, height, width, 3), boxes, torch.arange(n), _bytes(n, CROP, CROP, 3)


def _face_input(dtype: torch.dtype, n: int, height: int, width: int) -> None:
    frames, boxes, index, crops = _faces(n, height, width)
    inputs = torch.empty(n, 6, ROI, ROI, dtype=dtype)
    _launcher("face_input")(frames, boxes, index, inputs, crops)


def _composite(mode: str, layout: str, dtype: torch.dtype, n: int, height: int, width: int) -> None:
    frames, *faces = _faces(n, height, width)
    generated = torch.empty(n, 3, ROI, ROI, dtype=dtype)
    layout, *in_place = layout.split(maxsplit=1)
    out = frames if in_place else _image(layout, n, height, width)
    _launcher("composite")(frames, *faces, generated, mode, layout, out)


def _resize(mode: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    _launcher("resize")(_bytes(25, *source, 3), mode, _bytes(25, *target, 3))


def _convert_color(source: str, target: str, dtype: torch.dtype, height: int, width: int) -> None:
    images, out = (_image(name, 25, height, width, dtype) for name in (source, target))
    _launcher("color", "convert_color")(images, source, target, out)


def _image(
    layout: str, n: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    if layout == "planar_bgr":
        return torch.empty(n, 3, height, width, dtype=dtype)
    if layout == "nv12":
        return _bytes(n, height * 3 // 2, width)
    return _bytes(n, height, width, 4 if layout == "rgba" else 3)


def _bytes(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8)


def _launcher(stage: str, function: str | None = None) -> Callable:
    return getattr(import_module(f"{__package__}.{stage}"), function or stage)


def cases() -> Iterator[Case]:
    """Every call whose kernel could differ from another's: types, sizes, alignments, batches.

    Calls that may come to the same code stand together: `compile_all` shares work by fours.
    """
    floats = (torch.float32, torch.float16)
    sizes = ((1280, 720), (720, 1280), (1920, 1080), (1080, 1920))
    faces = [(f"{w}x{h} n={n}", n, h, w) for h, w in sizes for n in (1, 25)]
    # numbers that 16 divides get code of their own, so lengths come both with and without
    second, minute = SAMPLE_RATE, 60 * SAMPLE_RATE + 7

    for dtype, batch, samples in product((torch.float32, torch.int16), (1, 8), (second, minute)):
        words = f"{_name(dtype)} S={samples} B={batch}" + " lengths" * (batch > 1)
        yield Case("log_mel", words, partial(_log_mel, dtype, batch, samples))
    some = [(f"start={start} n={n}", start, n) for start in (0, 25) for n in (1, 25)]
    for words, *window in some:
        yield Case("mel_windows", f"float32 {words}", partial(_mel_windows, *window))
    for dtype, (words, *window) in product(floats, some):
        launch = partial(_feature_windows, dtype, *window)
        yield Case("feature_windows", f"{_name(dtype)} {words}", launch)
    for dtype, (words, *face) in product(floats, faces):
        launch = partial(_face_input, dtype, *face)
        yield Case("face_input", f"{_name(dtype)} {words}", launch)
    layouts = ("rgb", "bgr", "rgba", "nv12", "rgb in place")
    for mode, layout, dtype in product(("crop", "direct"), layouts, floats):
        for words, *face in faces:
            launch = partial(_composite, mode, layout, dtype, *face)
            yield Case("composite", f"{mode} {layout} {_name(dtype)} {words}", launch)
    for mode in ("bilinear", "bicubic", "direct"):
        for source, target in (((182, 182), (CROP, CROP)), (sizes[0], sizes[2])):
            words = f"{mode} {source[1]}x{source[0]}->{target[1]}x{target[0]}"
            yield Case("resize", words, partial(_resize, mode, source, target))
    for source, target in (
        ("planar_bgr", "rgba"), ("rgb", "bgr"), ("rgb", "rgba"), ("rgb", "nv12"),
        ("nv12", "rgb"), ("rgb", "planar_bgr"),
    ):  # fmt: skip
        for dtype in floats if "planar_bgr" in (source, target) else floats[:1]:
            for height, width in sizes:
                words = f"{source}->{target} {width}x{height} "
                words += _name(dtype) if "planar_bgr" in words else ""
                launch = partial(_convert_color, source, target, dtype, height, width)
                yield Case("convert_color", words, launch)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- recording and compiling ---------------------------------------------------------------------


@contextmanager
def _recording(arch: int) -> Iterator[list[CompiledKernel | str]]:
    """Make Triton compile for `arch` whatever is launched inside, and launch none of it."""
    launched: list[CompiledKernel | str] = []
    run = triton.JITFunction.run

    def compile_only(self: triton.JITFunction, *args, grid, warmup, **kwargs):
        try:
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        except Exception as error:
            raise RuntimeError(f"{self.__name__}: {_reason(error)}") from error
        launched.append(kernel)
        return kernel

    count, shared = ARCHITECTURES[arch]
    properties = SimpleNamespace(multi_processor_count=count, shared_memory_per_block_optin=shared)
    shown = {"multiprocessor_count": count, "max_shared_mem": shared}
    driver = SimpleNamespace(
        # Triton keeps compiled kernels by device: each architecture is a device of its own
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


def _compile(arch: int, some: Sequence[Case]) -> list[Row]:
    """The kernels of some cases, each once, however many cases come to the same code."""
    found: dict[object, tuple[CompiledKernel | str, dict[str, None]]] = {}
    for case in some:
        with _recording(arch) as launched:
            try:
                case.launch()
                if not launched:
                    raise RuntimeError("nothing was launched")
            except Exception as error:
                launched.append(_reason(error))
        for what in launched:
            code = what if isinstance(what, str) else (what.name, what.kernel)
            found.setdefault(code, (what, {}))[1][case.variant] = None
    rows = []
    for what, variants in found.values():
        row = Row(arch, some[0].stage, some[0].stage, tuple(variants))
        rows.append(replace(row, error=what) if isinstance(what, str) else _inspect(row, what))
    return rows


def _inspect(row: Row, kernel: CompiledKernel) -> Row:
    """What the machine code says, as text beside it in Triton's cache."""
    (cubin,) = (path for name, path in kernel.metadata_group.items() if name.endswith(".cubin"))
    listing = Path(cubin).with_suffix(".sass")
    if not listing.exists():
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", "--dump-sass", cubin]
        listed = subprocess.run(command, check=True, capture_output=True)
        written = listing.with_name(f"{listing.name}.{os.getpid()}")  # others may be at it too
        written.write_bytes(listed.stdout)
        written.replace(listing)
    text = listing.read_text()
    used = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    # "/*0050*/  @!P0 LDG.E.128.CONSTANT R4, ... ;": the first word is the operation
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*);", text, re.M)
    operations = [re.sub(r"^@\S+ ", "", line).split()[0] for line in code]
    shared, (_, allowed) = kernel.metadata.shared, ARCHITECTURES[row.arch]
    return replace(
        row,
        kernel=kernel.name,
        registers=int(used["REG"]),
        spilled=int(used["STACK"]) + int(used["LOCAL"]),
        shared=shared,
        loads=_widths(operations, ("LDG", "LDGSTS")),
        stores=_widths(operations, ("STG",)),
        tensor_cores=sum(name.split(".")[0].endswith("MMA") for name in operations),
        error=f"{shared} bytes of shared memory, {allowed} are there" if shared > allowed else "",
        code=sha256("".join(code).encode()).hexdigest(),
    )


def _widths(operations: list[str], of: tuple[str, ...]) -> tuple[int, ...]:
    """Bytes a thread: LDG.E.128 moves 16, LDG.E.U8 1, and LDG.E, which says nothing, 4."""
    widths = set()
    for name, *rest in (operation.split(".") for operation in operations):
        if name in of:
            bits = [re.fullmatch(r"[US]?(8|16|32|64|128|256)", word) for word in rest]
            widths.add(max((int(match[1]) for match in bits if match), default=32) // 8)
    return tuple(sorted(widths, reverse=True))


def _reason(error: Exception) -> str:
    """One line. A compiler's message has the source first, and what is wrong with it last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or [repr(error)]
    name = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return name + telling[-1]


# --- all of it -----------------------------------------------------------------------------------


def compile_all(archs: Sequence[int], of: Sequence[Case] | None = None) -> list[Row]:
    """Compile every case for every architecture, in a process for every core.

    Args:
        archs: compute capabilities, 90 for 9.0; those in `ARCHITECTURES`.
        of: what to compile; all that the pipeline launches by default.

    Returns:
        A row for every kernel and every failure, by architecture and in the order of the stages.
    """
    tasks = []
    for arch in archs:
        for _, stage in groupby(cases() if of is None else of, lambda case: case.stage):
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
            with suppress(BrokenProcessPool):  # it breaks for all, whoever broke it
                done[futures[future]] = future.result()
            bar.update()
    merged: dict[Row, tuple[str, ...]] = {}
    for number, task in enumerate(tasks):
        for row in done[number] if number in done else _compile_apart(*task):
            same = replace(row, variants=())
            merged[same] = merged.get(same, ()) + row.variants
    return [replace(row, variants=variants) for row, variants in merged.items()]


def _compile_apart(arch: int, some: Sequence[Case]) -> list[Row]:
    """As `_compile`, where one of the cases may bring the whole process down."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool, suppress(BrokenProcessPool):
        return pool.submit(_compile, arch, some).result()
    if len(some) == 1:
        return [Row(arch, *[some[0].stage] * 2, (some[0].variant,), error="the compiler crashed")]
    half = len(some) // 2
    return _compile_apart(arch, some[:half]) + _compile_apart(arch, some[half:])


def table(rows: Sequence[Row]) -> str:
    heads = [
        "arch", "kernel", "variant", "registers", "spilled", "shared", "loads", "stores", "mma"
    ]  # fmt: skip
    lines = [heads]
    for row in rows:
        if not row.registers:
            lines.append([str(row.arch), row.kernel, row.variant, row.error])
            continue
        loads, stores = (",".join(map(str, of)) or "-" for of in (row.loads, row.stores))
        of = (row.arch, row.kernel, row.variant, row.registers, row.spilled, row.shared)
        lines.append([*map(str, of), loads, stores, str(row.tensor_cores)])
    # the message of a kernel that did not compile runs over the columns of numbers
    full = [line for line in lines if len(line) == len(heads)] + [line[:3] for line in lines]
    columns = [max(map(len, column)) for column in zip_longest(*full, fillvalue="")]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, columns, strict=False)).rstrip()
        for line in lines
    )


def main(arguments: Sequence[str] | None = None, of: Sequence[Case] | None = None) -> int:
    """Print the table. Returns 1 where a kernel spills or did not compile."""
    parser = argparse.ArgumentParser(prog="python -m kernels.compile", description=__doc__)
    every = ",".join(map(str, ARCHITECTURES))
    parser.add_argument("--arch", default=every, help=f"default {every}")
    names = parser.parse_args(arguments).arch.split(",")
    unknown = [name for name in names if name not in every.split(",")]
    if unknown:
        print(f"error: --arch is {unknown[0]!r}, it must be of {every}", file=sys.stderr)
        return 2
    if triton.knobs.runtime.interpret:
        print("error: TRITON_INTERPRET is set: nothing is compiled with it", file=sys.stderr)
        return 2
    rows = compile_all(list(dict.fromkeys(map(int, names))), of)
    print(table(rows))
    bad = [row for row in rows if row.error or row.spilled]
    for row in bad:
        why = row.error or f"{row.spilled} bytes spilled"
        print(f"error: sm_{row.arch} {row.kernel} {row.variant}: {why}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
