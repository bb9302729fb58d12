"""Choose the runtime for a network's file, and open it."""

import os
from pathlib import Path

import torch

from ..errors import DeviceError, InputError
from .network import Network
from .signature import CHECKPOINT_SUFFIXES, Signature

RUNTIMES = ("tensorrt", "onnxruntime", "torch")


def open_network(
    signature: Signature,
    path: str | os.PathLike,
    *,
    device: torch.device,
    runtime: str | None = None,
) -> Network:
    """Open a network's file with a runtime.

    Args:
        signature: AUDIO_ENCODER or GENERATOR.
        path: a TensorRT plan, an ONNX file or a checkpoint.
        device: the device of inputs and outputs.
        runtime: "tensorrt" (GPUs only: a plan, or the NAME.plan built from NAME.onnx or NAME.pth
            beside it), "onnxruntime" (a checkpoint is exported once and the result kept in the
            user's cache folder) or "torch" (checkpoints only). By default, on a GPU, TensorRT
            if there is a plan that fits, else ONNX Runtime, else PyTorch; on a CPU ONNX Runtime.

    Raises:
        InputError: the file is of another network, cannot be read, or does not fit the runtime.
        DeviceError: no runtime that takes the file can use the device.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if runtime is not None and runtime not in RUNTIMES:
        raise InputError(f"runtime is {runtime!r}; expected one of: {', '.join(RUNTIMES)}")
    if suffix == ".plan" and runtime not in (None, "tensorrt"):
        raise InputError(f"{path} is a TensorRT plan, which the {runtime} runtime does not take")
    if suffix == ".plan" or runtime == "tensorrt":
        if device.type != "cuda":
            what = f"{path} is a TensorRT plan, which" if suffix == ".plan" else "tensorrt"
            raise InputError(
                f"{what} needs a GPU, and the device is {device}; give an ONNX file or a "
                "checkpoint, and another runtime"
            )
        plan = path if suffix == ".plan" else _plan_beside(path)
        return _open("tensorrt", signature, plan, device, f"{plan.name} was given")
    if runtime is not None:
        return _open(runtime, signature, path, device, "as requested")
    if device.type == "cpu":
        return _open("onnxruntime", signature, path, device, "the default on a CPU")
    try:
        plan = _plan_beside(path)
        return _open("tensorrt", signature, plan, device, f"{plan.name} fits this GPU")
    except InputError as error:
        reason = str(error)
    try:
        return _open("onnxruntime", signature, path, device, reason)
    except DeviceError as error:
        if suffix not in CHECKPOINT_SUFFIXES:
            raise
        return _open("torch", signature, path, device, f"{reason}; {error}")


def _plan_beside(path: Path) -> Path:
    """Return the plan that was built from a network's file and lies beside it.

    Raises:
        InputError: there is none, or it was built from another file.
    """
    from ..plans.digest import source_sha256
    from ..plans.record import read_record

    plan = path.with_suffix(".plan")
    if not plan.exists():
        raise InputError(f"there is no {plan.name} beside {path} (python -m engine.build makes it)")
    if read_record(plan).key.source_sha256 != source_sha256(path):
        raise InputError(
            f"{plan} was built from another {path.name}; build it again with python -m engine.build"
        )
    return plan


def _open(
    runtime: str, signature: Signature, path: Path, device: torch.device, reason: str
) -> Network:
    network: Network
    if runtime == "tensorrt":
        from .tensorrt import TensorRTNetwork

        network = TensorRTNetwork(signature, path, device)
    elif runtime == "onnxruntime":
        from .onnxruntime import OnnxNetwork

        network = OnnxNetwork(signature, path, device)
    else:
        if path.suffix.lower() not in CHECKPOINT_SUFFIXES:
            raise InputError(
                f"{path} cannot run in PyTorch; the torch runtime takes checkpoints "
                f"({', '.join(CHECKPOINT_SUFFIXES)})"
            )
        from .torch import TorchNetwork

        network = TorchNetwork(signature, path, device)
    network.reason = reason
    return network
