"""PyTorch as a runtime: for checkpoints, on any device."""

from pathlib import Path

import torch
from torch import Tensor

from models import checkpoint

from ..errors import InputError
from . import Signature


class TorchNetwork:
    """A checkpoint as a module: float32 on a CPU, float16 and channels-last on a GPU.

    Raises:
        InputError: not a checkpoint of this network.
    """

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        try:
            module = checkpoint.load(path, signature.kind)
        except checkpoint.CheckpointError as error:
            raise InputError(str(error)) from error
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        module.to(device, self.dtype, memory_format=torch.channels_last)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.float()  # a variance may be beyond float16
        self._module = module.eval()
        self.description = f"PyTorch {torch.__version__}, {device}, {self.dtype}"

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        return out.copy_(self._module(*(tensor.to(self.dtype) for tensor in inputs)))
