"""PyTorch as a runtime: for checkpoints, on any device."""

import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models import checkpoint

from ..device.arena import RUNGS, rung
from ..errors import InputError
from .signature import Signature

# Pipelines of one process share a checkpoint's module: on a GPU, it took minutes to compile.
_modules: "WeakValueDictionary[tuple, nn.Module | Compiled]" = WeakValueDictionary()
_lock = Lock()


class TorchNetwork:
    """A checkpoint as a module: as it is, in float32, on a CPU; on a GPU float16, channels-last,
    batch norms folded into convolutions, and compiled where there is a compiler.

    Raises:
        InputError: not a checkpoint of this network.
    """

    recordable, stream = True, None  # what it allocates while it is recorded is the graph's

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._run = _open_module(signature.kind, path, device, self.dtype)
        self.description = f"PyTorch {torch.__version__}, {device}, {self.dtype}"

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        return out.copy_(self._run(*(tensor.to(self.dtype) for tensor in inputs)))


def _open_module(
    kind: str, path: Path, device: torch.device, dtype: torch.dtype
) -> "nn.Module | Compiled":
    status = path.stat() if path.exists() else None
    changed = status and (status.st_mtime_ns, status.st_size)
    key = kind, str(path.resolve()), changed, str(device)
    with _lock:
        module = _modules.get(key)
        if module is None:
            module = _modules[key] = _new_module(kind, path, device, dtype)
    return module


def _new_module(
    kind: str, path: Path, device: torch.device, dtype: torch.dtype
) -> "nn.Module | Compiled":
    try:
        module = checkpoint.load(path, kind)
    except checkpoint.CheckpointError as error:
        raise InputError(str(error)) from error
    on_gpu = device.type == "cuda"
    if on_gpu:
        # before the rounding: a variance may be beyond float16
        module = fold_batch_norms(module.double())
    module = module.to(device, dtype, memory_format=torch.channels_last).requires_grad_(False)
    return Compiled(module) if on_gpu else module


class Compiled:
    """A module compiled for a few batch sizes, each when it first comes; others are filled up.

    A size of its own for each kernel lets the compiler choose tiles for it; every size that came
    along would be compiled for a minute. Where compiling fails, a warning says so once and the
    module runs as it is.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._compiled: Callable[..., Tensor] | None = torch.compile(module, dynamic=False)
        self._ready: set[int] = set()
        # All modules of a class share the count, and beyond it PyTorch would stop compiling.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 64)

    def __call__(self, *inputs: Tensor) -> Tensor:
        n = len(inputs[0])
        if n == 0 or self._compiled is None:
            return self._module(*inputs)
        if n > RUNGS[-1]:
            parts = zip(*(tensor.split(RUNGS[-1]) for tensor in inputs), strict=True)
            return torch.cat([self(*part) for part in parts])
        size = rung(RUNGS, n)
        if size > n:
            inputs = tuple(torch.cat([t, t[-1:].expand(size - n, *t.shape[1:])]) for t in inputs)
        # Channels-last here, so that it is what the first layer is compiled for.
        inputs = tuple(t.contiguous(memory_format=torch.channels_last) for t in inputs)
        return self._call(size, inputs)[:n]

    def _call(self, size: int, inputs: tuple[Tensor, ...]) -> Tensor:
        if size in self._ready:
            assert self._compiled is not None
            return self._compiled(*inputs)
        try:
            made = self._compiled(*inputs)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler that is missing or broken raises
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0][:200] if lines else type(error).__name__
            warnings.warn(f"PyTorch runs without its compiler: {reason}", stacklevel=2)
            self._compiled = None
            return self._module(*inputs)
        self._ready.add(size)
        return made


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold, in place, every BatchNorm2d into the Conv2d that stands right before it.

    In the module's precision: float64 keeps what the rounding to a lower one then takes.
    """
    name_before, before = None, None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            setattr(module, name_before, fuse_conv_bn_eval(before, child))
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norms(child)
        name_before, before = name, child
    return module
