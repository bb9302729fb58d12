"""Check that a GPU can run kernels, before anything else is done on it."""

import os
import shutil
import sysconfig
from functools import cache
from pathlib import Path

import torch

import kernels

from ..errors import DeviceError, one_line
from .cuda_graphs import capture_lock


@cache
def check_kernels(device: torch.device) -> None:
    """Run a kernel of PyTorch and a small Triton kernel, once a device. Do nothing on a CPU.

    Triton compiles C code before the first launch, so that it needs a C compiler and Python's
    headers. A GPU may also be too old for the kernels that PyTorch has.

    Raises:
        DeviceError: the GPU cannot run them. The message has the remedy.
    """
    if device.type != "cuda":
        return
    try:
        with capture_lock, torch.cuda.device(device):  # reading the result waits for the stream
            run_smallest_kernel(device)
    except Exception as error:  # drivers and compilers may raise anything
        raise DeviceError(_reason(device, error)) from error


def run_smallest_kernel(device: torch.device) -> None:
    """Run the kernel that compiles fastest, and check its result."""
    feature = torch.ones(1, kernels.FEATURE_DIM, device=device)
    window = kernels.feature_windows(feature, start=0, count=1)
    found = float(window.sum())
    # Frame 0 reads rows -8 to 7 of three; those outside are 0.
    if found != 3 * kernels.FEATURE_DIM:
        raise RuntimeError(f"a kernel's result is {found}; expected {3 * kernels.FEATURE_DIM}")


def missing_for_compiling() -> list[str]:
    """Return what Triton needs besides a GPU and does not find here."""
    missing = []
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        missing.append("a C compiler (such as gcc)")
    scheme = sysconfig.get_default_scheme()
    scheme = "posix_prefix" if scheme == "posix_local" else scheme  # as Triton does, for Debian
    header = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    if not header.exists():
        missing.append(f"{header} (Debian: python3-dev)")
    return missing


def _reason(device: torch.device, error: Exception) -> str:
    """Return in one line why the GPU cannot run kernels."""
    said = one_line(f"{type(error).__name__}: {error}")
    if "no kernel image" in said:
        major, minor = torch.cuda.get_device_capability(device)
        name, known = torch.cuda.get_device_name(device), ", ".join(torch.cuda.get_arch_list())
        return (
            f"{device} is a {name} (SM{major}{minor}), for which PyTorch {torch.__version__} has "
            f"no kernels; expected one of: {known}"
        )
    if missing := missing_for_compiling():
        verb = "is" if len(missing) == 1 else "are"
        return (
            f"kernels cannot be compiled for {device}: {' and '.join(missing)} {verb} missing; "
            "install what is missing"
        )
    return f"{device} cannot run kernels: {said}"
