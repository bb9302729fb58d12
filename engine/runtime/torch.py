"""PyTorch: run checkpoints on any device."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from models import Generator, checkpoint
from models.batch_norm import fold_batch_norms
from models.fused_generator import FusedGenerator

from ..device.batch_sizes import BATCH_SIZES, round_up_to
from ..errors import InputError
from .batching import pad_batch
from .limited import run_limited
from .sharing import SharedCache
from .signature import Signature

# GPU memory that a call needs for each row of its batch in float16, for what the layers return.
ROW_BYTES = {"generator": 96_000_000, "audio_encoder": 500_000}
TIMEOUT = 5 * 60  # seconds to read a pickle; one of 2 GiB takes less than one minute
# For PyTorch's compiler. Otherwise it writes the partial sums of a long expression to memory, such
# as those of an upsampled tensor that is then concatenated.
OPTIONS: dict[str, str | int | bool | Callable[..., object]] = {
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 64,
}
# Shared, because compiling a module for a GPU takes minutes.
_modules: "SharedCache[nn.Module | Compiled]" = SharedCache()


class TorchNetwork:
    """A checkpoint as a module.

    On a CPU it runs in float32. On a GPU it runs in float16 and channels-last, with batch norms
    folded into convolutions, and is compiled if there is a compiler; the generator as a
    `FusedGenerator`.

    Raises:
        InputError: the file is not a checkpoint of this network.
    """

    reason = ""  # set by `open_network`
    assumes_mask = False
    capturable, stream = True, None  # memory allocated during a capture belongs to the graph

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        kind, dtype = signature.kind, self.dtype
        self.graph_bytes = ROW_BYTES[kind] if device.type == "cuda" else 0
        self._run = _modules.get(
            path, kind, str(device), make=lambda: _new_module(kind, path, device, dtype)
        )
        self.description = f"PyTorch {torch.__version__}, {device}, {self.dtype}"

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        inputs = tuple(tensor.to(self.dtype) for tensor in inputs)
        if isinstance(self._run, Compiled):
            return self._run(*inputs, out=out)
        return out.copy_(self._run(*inputs))


def _new_module(
    kind: str, path: Path, device: torch.device, dtype: torch.dtype
) -> "nn.Module | Compiled":
    module = load_checkpoint(path, kind)
    if device.type == "cpu":
        return _prepared(module, device, dtype)
    # Fold before rounding, because a variance may exceed float16's range.
    fold_batch_norms(module.double())
    fused = None
    if isinstance(module, Generator):
        fused = _prepared(FusedGenerator(module), device, dtype)
    return Compiled(_prepared(module, device, dtype), fused)


def _prepared(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return module.to(device, dtype).to(memory_format=torch.channels_last).requires_grad_(False)


def load_checkpoint(path: Path, kind: str) -> nn.Module:
    """Load a network from a checkpoint of anyone, as `models.checkpoint.load` does.

    Pickles, which may be made to never end, become a safetensors file first, in a process with
    limits.

    Raises:
        InputError: the file cannot be used, or its reading took too much time or memory.
    """
    try:
        return checkpoint.load(path, kind, pickles=False)
    except checkpoint.PickleError:
        pass
    except checkpoint.CheckpointError as error:
        raise InputError(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.safetensors"
        run_limited(
            "models",
            *(kind.replace("_", "-"), str(path.resolve()), "-o", str(made)),
            file=path.resolve(),
            path=path,
            made=made,
            aim="read",
            seconds=TIMEOUT,
        )
        return checkpoint.load(made, kind, pickles=False)


def read_folded(path: Path, kind: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Read weight and bias of each convolution of a checkpoint of anyone, with batch norms folded
    in, in float64.

    Raises:
        InputError: as `load_checkpoint`.
    """
    module = load_checkpoint(path, kind).double()
    fold_batch_norms(module)
    return {
        name: (layer.weight.detach(), layer.bias.detach())
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.bias is not None
    }


class ChannelsLast(nn.Module):
    """A module that is compiled with the layout of its inputs and of its output."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor, out: Tensor) -> None:
        """Write the module's output to `out`."""
        converted = (t.contiguous(memory_format=torch.channels_last) for t in inputs)
        out.copy_(self.module(*converted))


class Compiled:
    """A module compiled for a few batch sizes, each at its first call. Other sizes are padded.

    The compiler chooses tiles for each static size, but takes a minute for each, too long for every
    size. If compiling fails, the module runs eagerly after a warning.

    Args:
        module: returns its output.
        fused: what is compiled instead of it, and writes the same output to the argument `out`.

    Attributes:
        enabled: False to run all modules eagerly, for comparisons.
    """

    enabled: ClassVar[bool] = True

    def __init__(self, module: nn.Module, fused: nn.Module | None = None):
        self._module = module
        self._compiled: Callable[..., None] | None = torch.compile(
            fused or ChannelsLast(module), dynamic=False, options=OPTIONS
        )
        self._ready: set[int] = set()
        # PyTorch stops compiling beyond this limit, which counts all modules of a class.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 64)

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        """Write the module's output for (n, ...) inputs to `out`, directly if it has a size that is
        compiled and is contiguous."""
        n = len(out)
        if n == 0:
            return out
        if self._compiled is None or not self.enabled:
            return self._eagerly(inputs, out)
        if n > BATCH_SIZES[-1]:
            parts = zip(*(t.split(BATCH_SIZES[-1]) for t in (*inputs, out)), strict=True)
            for part in parts:
                self(*part[:-1], out=part[-1])
            return out
        size = round_up_to(BATCH_SIZES, n)
        # The strides of what the compiler sees are always the same.
        inputs = tuple(pad_batch(tensor, size).contiguous() for tensor in inputs)
        written = out
        if n != size or not out.is_contiguous() or out.dtype != inputs[0].dtype:
            written = inputs[0].new_empty(size, *out.shape[1:])
        if not self._call(size, inputs, written):
            return self._eagerly(tuple(tensor[:n] for tensor in inputs), out)
        return out if written is out else out.copy_(written[:n])

    def _eagerly(self, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        inputs = tuple(t.contiguous(memory_format=torch.channels_last) for t in inputs)
        return out.copy_(self._module(*inputs))

    def _call(self, size: int, inputs: tuple[Tensor, ...], out: Tensor) -> bool:
        """Run what is compiled for the size; return whether it could be compiled."""
        assert self._compiled is not None
        if size in self._ready:
            self._compiled(*inputs, out=out)
            return True
        try:
            self._compiled(*inputs, out=out)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a missing or broken compiler may raise anything
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0][:200] if lines else type(error).__name__
            warnings.warn(f"PyTorch runs without its compiler: {reason}", stacklevel=2)
            self._compiled = None
            return False
        self._ready.add(size)
        return True
