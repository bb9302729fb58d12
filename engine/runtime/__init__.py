"""Inference runtimes: one file each, one interface."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import InputError

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors")
RUNTIMES = ("onnxruntime", "torch")


@dataclass(frozen=True)
class Signature:
    """What goes into a network and what comes out: names and shapes, without the batch."""

    kind: str
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    cpu_batch: int  # how many at once run fastest on a CPU: as many as its caches hold


AUDIO_ENCODER = Signature(
    "audio_encoder", {"mel_spectrogram": (1, 80, 16)}, {"audio_features": (512,)}, 8
)
GENERATOR = Signature(
    "generator", {"input": (6, 320, 320), "audio": (32, 16, 16)}, {"output": (3, 320, 320)}, 1
)


class Network(Protocol):
    """A network ready to run. Any number of threads may call it at once.

    Attributes:
        dtype: the precision it computes in; inputs of another one are converted.
        description: the runtime, its device and precision, for people.
    """

    dtype: torch.dtype
    description: str

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        """Run on a batch of any size, in the order of the signature's inputs, into `out`."""
        ...


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
        path: an ONNX file or a checkpoint.
        device: where inputs and outputs are.
        runtime: "onnxruntime" (a checkpoint is exported once and the result kept in the user's
            cache folder) or "torch" (checkpoints only). By default ONNX Runtime, but PyTorch for
            a checkpoint on a GPU.

    Raises:
        InputError: the file is of another network or cannot be read, or does not fit the runtime.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".plan":
        raise InputError(f"{path} is a TensorRT plan: give an ONNX file or a checkpoint instead")
    checkpoint = suffix in CHECKPOINT_SUFFIXES
    if runtime is None:
        runtime = "torch" if checkpoint and device.type == "cuda" else "onnxruntime"
    if runtime == "torch":
        if not checkpoint:
            raise InputError(
                f"{path} cannot run in PyTorch: the torch runtime takes checkpoints "
                f"({', '.join(CHECKPOINT_SUFFIXES)})"
            )
        from .torch import TorchNetwork

        return TorchNetwork(signature, path, device)
    if runtime == "onnxruntime":
        from .onnxruntime import OnnxNetwork

        return OnnxNetwork(signature, path, device)
    raise InputError(f"runtime is {runtime!r}, it must be one of {', '.join(RUNTIMES)}")
