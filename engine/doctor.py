"""`python -m engine.doctor`: print what a bug report needs, and what works on this machine."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from .command import Parser, program, run
from .errors import InputError, one_line

PACKAGES = (
    "torch",
    "torchaudio",
    "triton",
    "numpy",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "openvino",
    "av",
    "pillow",
    "safetensors",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "nvidia-nvimgcodec-cu13",
    "nvidia-nvjpeg",
)


def report() -> Iterator[tuple[str, str]]:
    """Yield (subject, finding) pairs, one per line. A failed check is a finding too."""
    yield "viseme", _version("viseme") or "not installed (run from its source)"
    yield "Python", f"{platform.python_version()} at {sys.executable}"
    yield "system", platform.platform()
    yield "CPU", _finding(_cpu)
    installed = {name: _version(name) for name in PACKAGES}
    yield "packages", ", ".join(f"{name} {v}" for name, v in installed.items() if v)
    if installed["onnxruntime"] and installed["onnxruntime-gpu"]:
        yield "", "onnxruntime and onnxruntime-gpu share their files; uninstall onnxruntime"
    yield "GPU", _finding(_gpu)
    yield "driver", _finding(_driver)
    yield "Triton", _finding(_triton)
    yield "fused kernels", _finding(_fused)
    yield "PyTorch", _finding(_pytorch)
    yield "ONNX Runtime", _finding(_onnxruntime)
    yield "OpenVINO", _finding(_openvino)
    yield from _tensorrt()
    yield "FFmpeg", _finding(_ffmpeg)
    yield "JPEG on the GPU", _finding(_jpeg)
    yield "cache", _finding(_cache)
    yield "temporary folder", _finding(_temporary)


def _finding(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # a broken library may raise anything
        return f"does not work: {type(error).__name__}: {one_line(error)}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    import torch

    name, flags = platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
            break
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{name}, {cores} cores, {threads} threads, {' '.join(wide) or 'no AVX2'}"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "PyTorch finds none; everything runs on the CPU"
    found = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0]
        found.append(
            f"{gpu.name}, SM{gpu.major}{gpu.minor}, {free / 2**30:.1f} of "
            f"{gpu.total_memory / 2**30:.1f} GiB free"
        )
    return "; ".join(found)


def _driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "nvidia-smi is not installed"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20)
    return one_line(done.stdout if done.returncode == 0 else done.stderr or done.stdout)


def _triton() -> str:
    import torch

    from .device.check import missing_for_compiling

    missing = missing_for_compiling()
    if missing:
        return f"cannot compile kernels on a GPU: {' and '.join(missing)} is missing"
    if not torch.cuda.is_available():
        return "a C compiler and Python.h are installed; no GPU to run a kernel on"
    import kernels

    kernels.log_mel(torch.zeros(kernels.MIN_SAMPLES, device="cuda"))
    torch.cuda.synchronize()
    return "works: log_mel ran on the GPU"


def _fused() -> str:
    import torch

    from .runtime.fused import check_device

    if not torch.cuda.is_available():
        return "no GPU to run the generator on"
    try:
        return f"can run the generator, with Triton {check_device(torch.device('cuda'))}"
    except InputError as error:
        return one_line(error)


def _pytorch() -> str:
    import torch

    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    if not torch.cuda.is_available():
        return f"works on the CPU; {built}"
    ones = torch.ones(2, 2, device="cuda")
    return f"works on the GPU: {'yes' if float((ones @ ones).sum()) == 8 else 'no'}; {built}"


def _onnxruntime() -> str:
    import numpy as np
    import onnx
    import onnxruntime
    import torch
    from onnx import helper

    shape = (onnx.TensorProto.FLOAT, [2])
    values = [helper.make_tensor_value_info(name, *shape) for name in ("x", "y")]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "double", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    wanted = ["CUDAExecutionProvider"] if torch.cuda.is_available() else []
    if wanted:
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=[*wanted, "CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"x": np.ones(2, np.float32)})
    providers = session.get_providers()
    state = "works" if result.tolist() == [2, 2] else "computes wrong results"
    lost = ""
    if wanted and providers[0] not in wanted:
        lost = "; its CUDA provider does not start, so the GPU is not used"
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    return f"{state} on {names}{lost}"


def _openvino() -> str:
    if importlib.util.find_spec("openvino") is None:
        return "not installed (pip install 'viseme[openvino]')"
    from .runtime.openvino import has_bf16

    return f"finds the CPU; bfloat16 {'works' if has_bf16() else 'needs AVX512_BF16 or AMX'}"


def _tensorrt() -> Iterator[tuple[str, str]]:
    from .plans.edition import EDITIONS, gpu_architecture

    for edition in EDITIONS.values():
        try:
            version = edition.version()
            gpu = gpu_architecture()
            reason = "" if gpu is None else edition.why_not([gpu], gpu)
            yield edition.name, f"{version}{f'; {reason}' if reason else ''}"
        except InputError as error:
            yield edition.name, one_line(error)


def _ffmpeg() -> str:
    import av

    missing = []
    for name in ("libx264", "aac"):
        try:
            av.codec.Codec(name, "w")
        except Exception:  # the exception's class differs between versions of PyAV
            missing.append(name)
    version = getattr(av, "ffmpeg_version_info", "?")
    encoders = f"no {' and no '.join(missing)}: cannot write mp4" if missing else "writes mp4"
    return f"{version} in PyAV {av.__version__}, {encoders}"


def _jpeg() -> str:
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nvimgcodec"):
        return "nvImageCodec is installed"
    return "nvImageCodec is not installed (pip install 'viseme[jpeg]'); Pillow is used"


def _cache() -> str:
    from .cache import cache_folder

    folder = cache_folder()
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    state = "" if os.access(folder, os.W_OK) else ", not writable"
    return f"{folder}: {len(files)} files, {size / 2**20:.0f} MiB{state}"


def _temporary() -> str:
    import tempfile

    folder = tempfile.gettempdir()
    return f"{folder}: {shutil.disk_usage(folder).free / 2**30:.0f} GiB free"


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m engine.doctor",
        description="Print versions, GPU, runtimes, codecs and caches: for bug reports, and to "
        "see what works on this machine.",
    )
    parser.parse_args(arguments)

    def work() -> None:
        for subject, finding in report():
            print(f"{subject + ':' if subject else '':18} {finding}", flush=True)

    return run(work, interrupted="the report is incomplete")


if __name__ == "__main__":
    program(main)
