"""Runs a benchmark: its budget, its jobs, its results and the reasons for leaving jobs out.

The results of all benchmarks have one schema:

    command, machine, device    how and where they were measured, with versions
    copy, bytes a second        of a plain copy, at the start and at the end
    compared at batch           the batch size at which providers are compared
    measured                    rows: provider, stage, batch or sessions, frame size, figures
    left out                    the same without figures, with a reason
"""

import argparse
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import cv2
import torch
from tqdm import tqdm

from benchmarks import report, timing
from engine.command import Parser
from engine.files import write_whole

NO_GPU = "no CUDA GPU"


@dataclass(frozen=True)
class Budget:
    """The inputs of a benchmark and the time it may take."""

    batches: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]  # width and height of frames
    main: int  # the batch size at which providers are compared
    copied: int  # bytes of the copy that measures the bandwidth
    sample: float  # seconds of samples for one figure
    job: float  # seconds that one job may take
    compiling: float  # seconds that a job may take that torch.compile compiles
    total: float  # seconds after which no job starts
    speech: float = 10.0  # seconds of speech in log_mel
    preparing: float = 300.0  # seconds that exporting networks or building plans may take
    avatar: int = 60  # frames of the avatar
    frames: tuple[int, int] = (1, 100)  # length of a render: batches at least, frames at most
    matrix: int = 1024  # rows of the matrix product that measures arithmetic


Size = TypeVar("Size", bound=Budget)


@dataclass(frozen=True)
class Job:
    """The measurement of one provider."""

    row: dict  # identifies it in the results: provider, stage, batch, frame size
    measure: Callable[[], dict]  # returns its figures
    limit: float  # seconds it may take


class Benchmark:
    """The results of `python -m benchmarks.NAME`, written to NAME.json and, as a table, NAME.txt.

    Args:
        output: the path of NAME.json.
        packages: packages whose versions belong in the results.
        table: formats results as text.
    """

    def __init__(
        self,
        name: str,
        output: Path,
        device: torch.device,
        packages: Iterable[str],
        table: Callable[[dict], str],
    ):
        self.device, self.output, self._table = device, output, table
        self._begin = time.monotonic()
        self.results: dict = {
            "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
            "machine": machine(device, packages),
            "device": device.type,
            "measured": [],
            "left out": [],
        }

    def leave_out(self, provider: str, reason: str, **row: object) -> None:
        """Record that a provider is not measured, and why."""
        self.results["left out"].append({"provider": provider, **row, "reason": reason})

    def measure(self, jobs: Iterable[Job], budget: Budget) -> None:
        """Run jobs until the budget is spent. A job that fails is left out with its error.

        Results are saved after each job, because a compiler or a GPU may hang or end the process.
        """
        self.results["compared at batch"] = budget.main
        bandwidth = partial(timing.copy_bandwidth, self.device, budget.copied, budget.sample)
        self.results["copy, bytes a second"] = [bandwidth()]
        for job in tqdm(list(jobs), desc="jobs", disable=None):
            left = self._begin + budget.total - time.monotonic()
            try:
                if left < 1:
                    raise TimeoutError(f"the {budget.total:.0f} s of the run were over")
                with timing.time_limit(min(job.limit, left)):
                    figures = job.measure()
                self.results["measured"].append({**job.row, **figures})
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            except Exception as error:
                self.leave_out(reason=in_one_line(error), **job.row)
            self.save()
        try:
            self.results["copy, bytes a second"].append(bandwidth())
        except RuntimeError as error:  # a provider may have left the GPU in a failed state
            self.leave_out("copy, at the end", in_one_line(error))

    def save(self) -> str:
        """Write the files and return the table."""
        table = self._table(self.results)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.results, indent=1)
        write_whole(self.output, lambda path: path.write_text(content + "\n"))
        write_whole(self.output.with_suffix(".txt"), lambda path: path.write_text(table + "\n"))
        return table

    def finish(
        self, title: str, key: str, marks: Callable[[str], dict[str, float]], **axes: str
    ) -> None:
        """Write the files, print the table and draw NAME.png; see `report.plot`."""
        print(f"{self.save()}\n\nwritten to {self.output}")
        path = self.output.with_suffix(".png")
        if not report.plot(self.results, title, key, marks, path, **axes):
            print("no plot: matplotlib is not installed", file=sys.stderr)


def parser(name: str, description: str) -> Parser:
    """Return the parser of `python -m benchmarks.NAME`, with the option that all of them have."""
    made = Parser(prog=f"python -m benchmarks.{name}", description=description)
    default, text = Path(f"out/benchmark-{name}.json"), "results; their table is written beside it"
    made.add_argument("-o", "--output", type=Path, default=default, metavar="FILE.json", help=text)
    return made


def parse(
    name: str, description: str, *, gpu: Size, cpu: Size, quick: Size
) -> tuple[Path, torch.device, Size]:
    """Parse the command line of a benchmark that has a budget, and set up the process.

    Returns:
        The results file, the device (a GPU if there is one) and its budget.
    """
    chosen, device, budget = parse_parts(name, description, (), gpu=gpu, cpu=cpu, quick=quick)
    return chosen.output, device, budget


def parse_parts(
    name: str, description: str, parts: tuple[str, ...], *, gpu: Size, cpu: Size, quick: Size
) -> tuple[argparse.Namespace, torch.device, Size]:
    """Do what `parse` does for a benchmark of several parts, of which --parts chooses some.

    Returns:
        The options `output` and `parts`, the device and its budget.
    """
    options = parser(name, description)
    options.add_argument("--quick", action="store_true", help="small inputs, to check that it runs")
    if parts:
        text = f"which of: {', '.join(parts)} (all)"
        options.add_argument(
            "--parts", nargs="+", choices=parts, default=parts, metavar="PART", help=text
        )
    chosen = options.parse_args()
    # with an index, as tensors have it: open networks are shared by the name of their device
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    # No warnings about operations that it cannot fuse. It is documented, but not in `__all__`.
    torch._logging.set_logs(all=logging.ERROR)  # type: ignore[attr-defined]
    cv2.setNumThreads(1)  # the CPU providers spread frames over threads
    return chosen, device, quick if chosen.quick else gpu if device.type == "cuda" else cpu


def machine(device: torch.device, packages: Iterable[str]) -> dict:
    """Describe the machine, with the versions of those packages that are installed."""
    found = {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": None}
    found["python"] = platform.python_version()
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = _driver()
        found["CUDA"] = torch.version.cuda
    for package in packages:
        with suppress(ImportError):
            found[package] = import_module(package).__version__
    return found


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20)
        return done.stdout.splitlines()[0].strip()
    return None


def in_one_line(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
