"""Choose the runtime for a network's file, and open it."""

import os
from pathlib import Path

import torch

from ..errors import DeviceError, InputError
from .network import Network
from .signature import CHECKPOINT_SUFFIXES, Signature

RUNTIMES = ("fused", "tensorrt", "onnxruntime", "openvino", "torch")
PRECISIONS = ("fp32", "bf16")  # on a CPU; on a GPU, the file determines the precision


def open_network(
    signature: Signature,
    path: str | os.PathLike[str],
    *,
    device: torch.device,
    runtime: str | None = None,
    precision: str | None = None,
    trusted: bool = True,
) -> Network:
    """Open a network's file with a runtime.

    Args:
        signature: AUDIO_ENCODER or GENERATOR.
        path: a TensorRT plan, an ONNX file or a checkpoint.
        device: the device of inputs and outputs.
        runtime: "fused" (GPUs from SM80 on: a generator's checkpoint or ONNX file; an audio encoder
            runs as by default), "tensorrt" (GPUs only: a plan, or NAME.plan beside the NAME.onnx or
            NAME.pth from which it was built), "onnxruntime" (a checkpoint is exported once, to the
            cache folder), "openvino" (CPUs only) or "torch" (checkpoints only). By default, on a
            GPU: fused for a generator that is a checkpoint or an ONNX file of float16, if the GPU
            allows it, else TensorRT if there is a plan that fits, else ONNX Runtime, else PyTorch;
            on a CPU: ONNX Runtime, or OpenVINO for bf16.
        precision: precision of the computation on a CPU: "fp32" (the default) or "bf16", which
            needs OpenVINO and a CPU with AVX512_BF16 or AMX.
        trusted: whether the file may be a program: an ONNX file or a TensorRT plan, which may use
            all memory and never end. If not, it must be a checkpoint, and a plan beside it is not
            used.

    Raises:
        InputError: the file cannot be read, is that of another network, does not fit the runtime,
            or is a program that is not trusted.
        DeviceError: no runtime that supports the file can use the device.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        # One device has one name, because open networks are shared by it.
        device = torch.device("cuda", torch.cuda.current_device())
    if not trusted:
        check_untrusted(path)
        if runtime == "tensorrt":
            raise InputError(f"runtime is tensorrt, but {path} is not trusted; expected another")
    if runtime is not None and runtime not in RUNTIMES:
        raise InputError(f"runtime is {runtime!r}; expected one of: {', '.join(RUNTIMES)}")
    if precision is not None:
        runtime = _runtime_for(precision, runtime, device)
    if runtime == "fused":
        if device.type != "cuda":
            raise InputError(f"runtime is fused, which needs a GPU, but the device is {device}")
        if signature.kind != "generator":
            runtime = None
    if suffix == ".plan" and runtime not in (None, "tensorrt"):
        raise InputError(f"runtime is {runtime}; expected tensorrt for the TensorRT plan {path}")
    if suffix == ".plan" or runtime == "tensorrt":
        if device.type != "cuda":
            what = f"{path} is a TensorRT plan, which" if suffix == ".plan" else "tensorrt"
            raise InputError(
                f"{what} needs a GPU, but the device is {device}; give an ONNX file or a "
                "checkpoint, and another runtime"
            )
        plan = path if suffix == ".plan" else _plan_beside(path)
        return _open("tensorrt", signature, plan, device, f"{plan.name} was given")
    if runtime is not None:
        reason = "as requested" if precision is None else f"for {precision}, as requested"
        return _open(runtime, signature, path, device, reason, precision or "fp32", requested=True)
    if device.type == "cpu":
        return _open("onnxruntime", signature, path, device, "the default on a CPU")
    reasons: list[str] = []
    if signature.kind == "generator":
        try:
            return _open("fused", signature, path, device, "the default on a GPU")
        except InputError as error:
            reasons.append(str(error))
    try:
        if not trusted:
            raise InputError(f"{path.name} is not trusted, so that no plan beside it is used")
        plan = _plan_beside(path)
        reason = "; ".join((*reasons, f"{plan.name} fits this GPU"))
        return _open("tensorrt", signature, plan, device, reason)
    except InputError as error:
        reasons.append(str(error))
    reason = "; ".join(reasons)
    try:
        return _open("onnxruntime", signature, path, device, reason)
    except DeviceError as error:
        if suffix not in CHECKPOINT_SUFFIXES:
            raise
        return _open("torch", signature, path, device, f"{reason}; {error}")


def check_untrusted(path: Path) -> None:
    """Raise InputError if a network's file is not a checkpoint, but may be a program."""
    if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
        raise InputError(
            f"{path} is not trusted, and ONNX files and TensorRT plans are programs; expected a "
            f"checkpoint ({', '.join(CHECKPOINT_SUFFIXES)})"
        )


def _runtime_for(precision: str, runtime: str | None, device: torch.device) -> str | None:
    """Return the runtime for a precision on a CPU.

    Raises:
        InputError: the precision is unknown, or the device or the runtime does not support it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of: {', '.join(PRECISIONS)}")
    if device.type != "cpu":
        raise InputError(
            f"precision is {precision}, but the device is {device}; a GPU computes in the "
            "precision of the network's file"
        )
    if precision == "bf16" and runtime not in (None, "openvino"):
        raise InputError(f"precision is bf16, but the runtime is {runtime}; expected openvino")
    return "openvino" if precision == "bf16" else runtime or "onnxruntime"


def _plan_beside(path: Path) -> Path:
    """Return the plan beside a network's file that was built from it.

    Raises:
        InputError: there is no plan, or it was built from another file.
    """
    from ..plans.digest import source_sha256
    from ..plans.record import read_record

    plan = path.with_suffix(".plan")
    if not plan.exists():
        raise InputError(f"there is no {plan.name} beside {path}; python -m engine.build builds it")
    if read_record(plan).key.source_sha256 != source_sha256(path):
        raise InputError(
            f"{plan} was built from another {path.name}; build it again with python -m engine.build"
        )
    return plan


def _open(
    runtime: str,
    signature: Signature,
    path: Path,
    device: torch.device,
    reason: str,
    precision: str = "fp32",
    *,
    requested: bool = False,
) -> Network:
    network: Network
    if runtime == "fused":
        from .fused import FusedNetwork

        network = FusedNetwork(signature, path, device, requested=requested)
    elif runtime == "tensorrt":
        from .tensorrt import TensorRTNetwork

        network = TensorRTNetwork(signature, path, device)
    elif runtime == "onnxruntime":
        from .onnxruntime import OnnxNetwork

        network = OnnxNetwork(signature, path, device)
    elif runtime == "openvino":
        try:
            from .openvino import OpenVinoNetwork
        except ImportError as error:
            raise InputError(
                "OpenVINO is not installed; pip install openvino (or viseme[openvino])"
            ) from error
        network = OpenVinoNetwork(signature, path, device, precision)
    else:
        if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
            raise InputError(
                f"{path} cannot run in PyTorch; expected a checkpoint "
                f"({', '.join(CHECKPOINT_SUFFIXES)})"
            )
        from .torch import TorchNetwork

        network = TorchNetwork(signature, path, device)
    network.reason = reason
    return network
