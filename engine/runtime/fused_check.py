"""Let a process of its own run the fused generator before this one does, once on a machine.

A kernel that reads beyond its memory makes all that a process has on a GPU useless, and one that
hangs cannot be ended; no other runtime could then take its place. That a process has run all
kernels, and that their results were right, is kept in the cache folder. Failures are not kept,
because memory that is lacking today is there tomorrow.
"""

import ctypes
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

import kernels

from ..cache import VERSION, cache_folder
from ..device.cuda_graphs import whole_device_lock
from ..errors import DeviceError, DeviceFull, InputError, one_line, printable
from ..files import write_whole
from ..reading import read_regular
from .limited import run_module

MODULE = "engine.runtime.fused_process"
SECONDS = 300  # all kernels are compiled in it, which takes half a minute on one core
# What the process says and how it ends.
PASSED = "the results are right"
FAILED, FULL = 2, 3

_passed: set[str] = set()  # in this process, if the cache folder cannot be written
_hung: dict[str, str] = {}  # why, because trying again takes `SECONDS`


def check_in_process(path: Path, device: torch.device, *, float32: bool) -> None:
    """Let a process of its own open a generator and compare its results, unless one on such a GPU
    did it with the same versions.

    Args:
        path: checkpoint or ONNX file.
        float32: whether the ONNX file may be one of float32.

    Raises:
        DeviceError: it failed, crashed or did not end, and what it said.
    """
    state = json.dumps(describe(device), indent=1)
    if state in _passed or _is_kept(state):
        return
    if state in _hung:
        raise DeviceError(_hung[state])
    print(printable(f"compiling and checking fused kernels on {device}, once"), file=sys.stderr)
    if device.type == "cuda":
        with whole_device_lock:
            torch.cuda.empty_cache()  # the other process needs about 1 GB
    options = ("--float32",) if float32 else ()
    try:
        done = run_module(
            MODULE, str(path.resolve()), str(device), *options,
            folder=Path(tempfile.gettempdir()), seconds=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        _hung[state] = (
            f"fused kernels do not run on {device}: a process that checks them did not end within "
            f"{SECONDS / 60:g} minutes"
        )
        raise DeviceError(_hung[state]) from None
    lines = done.stderr.strip().splitlines()
    said = one_line(lines[-1]).removeprefix("error: ") if lines else ""
    if done.returncode == 0 and done.stdout.strip().endswith(PASSED):
        _passed.add(state)
        _keep(state)
        return
    if done.returncode == FULL:
        raise DeviceFull(said)
    if done.returncode == FAILED:
        raise DeviceError(said)
    end = f"ended with {done.returncode}"
    if done.returncode < 0:
        end = f"was ended by {signal.Signals(-done.returncode).name}"
    raise DeviceError(
        f"fused kernels do not run on {device}: a process that checks them {end}"
        + (f" ({said})" if said else "")
    )


def describe(device: torch.device) -> dict[str, object]:
    """Return all that decides whether the kernels run."""
    import triton

    gpu = torch.cuda.get_device_properties(device)
    return {
        "gpu": gpu.name,
        "capability": [gpu.major, gpu.minor],
        "multiprocessors": gpu.multi_processor_count,  # tiles are chosen by them
        "driver": _driver(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "viseme": VERSION,
        "sources": _sources(),
    }


def _driver() -> str:
    with suppress(OSError):
        return Path("/sys/module/nvidia/version").read_text().strip()
    version = ctypes.c_int()
    with suppress(OSError, AttributeError):  # only the version of CUDA that it is for
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return str(version.value)


@cache
def _sources() -> str:
    """Return a digest of the kernels and of what compares them."""
    digest = hashlib.sha256()
    files = [*Path(kernels.__file__).parent.rglob("*.py"), *Path(__file__).parent.glob("fused*.py")]
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _path(state: str) -> Path:
    """Return where it is kept that kernels run in this state."""
    return cache_folder() / f"fused-{hashlib.sha256(state.encode()).hexdigest()[:32]}.json"


def _is_kept(state: str) -> bool:
    try:
        return read_regular(_path(state), 2 * len(state)) == state.encode()
    except (OSError, InputError):  # not there, or not ours
        return False


def _keep(state: str) -> None:
    try:
        write_whole(_path(state), lambda partial: partial.write_text(state))
    except (OSError, InputError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        text = f"fused kernels are checked again at the next start, as this is not kept: {said}"
        print(printable(f"warning: {text}"), file=sys.stderr)
