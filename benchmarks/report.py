"""What the benchmarks share: the machine they ran on, and results as a file."""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch


def machine(device: str, *packages: str) -> dict:
    """The machine, and the versions of those packages that are there."""
    found = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": None,
        "python": platform.python_version(),
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = _driver()
        found["CUDA"] = torch.version.cuda
    for package in packages:
        with suppress(ImportError):
            found[package] = import_module(package).__version__
    return found


def command(module: str) -> str:
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def write(results: dict, path: Path) -> None:
    """As JSON; the file is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def save(results: dict, text: str, path: Path) -> None:
    """NAME.json, and beside it the table as NAME.txt."""
    write(results, path)
    path.with_suffix(".txt").write_text(text + "\n")


def options(module: str, doc: str) -> argparse.Namespace:
    """The options of a benchmark that writes into a folder: out, quick."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc.strip().splitlines()[0]
    )
    parser.add_argument(
        "--out", default=f"out/{module.replace('.', '-')}", help="folder for the results"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that it runs")
    return parser.parse_args()


def reason(error: Exception) -> str:
    """Why something was left out, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20)
        return done.stdout.splitlines()[0].strip()
    return None
