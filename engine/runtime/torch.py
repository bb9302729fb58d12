"""PyTorch: run checkpoints on any device."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from models import checkpoint
from models.batch_norm import fold_batch_norms

from ..device.batch_sizes import BATCH_SIZES, round_up_to
from ..errors import InputError
from .batching import pad_batch
from .limited import run_limited
from .sharing import SharedCache
from .signature import Signature

# GPU memory that a call needs for each row of its batch in float16, for what the layers return.
ROW_BYTES = {"generator": 96_000_000, "audio_encoder": 500_000}
TIMEOUT = 5 * 60  # seconds to read a pickle; one of 2 GiB takes less than one minute
# Shared, because compiling a module for a GPU takes minutes.
_modules: "SharedCache[nn.Module | Compiled]" = SharedCache()


class TorchNetwork:
    """A checkpoint as a module.

    On a CPU it runs in float32. On a GPU it runs in float16 and channels-last, with batch norms
    folded into convolutions, and is compiled if there is a compiler.

    Raises:
        InputError: the file is not a checkpoint of this network.
    """

    reason = ""  # set by `open_network`
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
        return out.copy_(self._run(*(tensor.to(self.dtype) for tensor in inputs)))


def _new_module(
    kind: str, path: Path, device: torch.device, dtype: torch.dtype
) -> "nn.Module | Compiled":
    module = _load(kind, path)
    on_gpu = device.type == "cuda"
    if on_gpu:
        # Fold before rounding, because a variance may exceed float16's range.
        fold_batch_norms(module.double())
    module = module.to(device, dtype).to(memory_format=torch.channels_last).requires_grad_(False)
    return Compiled(module) if on_gpu else module


def _load(kind: str, path: Path) -> nn.Module:
    """Load a checkpoint. Pickles, which may be made to never end, become a safetensors file first,
    in a process with limits."""
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


class Compiled:
    """A module compiled for a few batch sizes, each at its first call. Other sizes are padded.

    The compiler chooses tiles for each static size, but takes a minute for each, too long for every
    size. If compiling fails, the module runs eagerly after a warning.
    """

    def __init__(self, module: nn.Module):
        self._module = module
        self._compiled: Callable[..., Tensor] | None = torch.compile(module, dynamic=False)
        self._ready: set[int] = set()
        # PyTorch stops compiling beyond this limit, which counts all modules of a class.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 64)

    def __call__(self, *inputs: Tensor) -> Tensor:
        n = len(inputs[0])
        if n == 0 or self._compiled is None:
            return self._module(*inputs)
        if n > BATCH_SIZES[-1]:
            parts = zip(*(tensor.split(BATCH_SIZES[-1]) for tensor in inputs), strict=True)
            return torch.cat([self(*part) for part in parts])
        size = round_up_to(BATCH_SIZES, n)
        inputs = tuple(pad_batch(tensor, size) for tensor in inputs)
        # Convert here, so that the first layer is compiled for channels-last.
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
        except Exception as error:  # a missing or broken compiler may raise anything
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = lines[0][:200] if lines else type(error).__name__
            warnings.warn(f"PyTorch runs without its compiler: {reason}", stacklevel=2)
            self._compiled = None
            return self._module(*inputs)
        self._ready.add(size)
        return made
