"""TensorRT: plans that `python -m engine.build` made, on the GPUs they were made for."""

from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor

from ..errors import InputError
from ..flavor import FLAVORS, logger
from ..plan import Record, check
from . import Signature

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
ALIGNMENT = 256  # bytes: kernels load whole vectors, and PyTorch's own memory is as aligned

# Pipelines of one process share a plan's weights and its scratch memory, of gigabytes maybe.
_engines: "WeakValueDictionary[tuple, _Engine]" = WeakValueDictionary()
_lock = Lock()


class TensorRTNetwork:
    """A plan, float16 or float32. Batches beyond its profile run in parts, or are filled up.

    Raises:
        InputError: a damaged plan, or one for another network, TensorRT or GPU; which, and how to
            build it again.
    """

    recordable = True

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        record = check(path, signature, device)
        made = record.made
        self._engine = _open_engine(path, record, device)
        self._inputs = [name for name, *_ in record.inputs]
        ((self._output, *_),) = record.outputs
        self._least, _, self._most = made.batch
        self.dtype = DTYPES[made.precision]
        self.description = f"{made.flavor} {made.version}, {device}, {self.dtype}"

    @property
    def stream(self) -> torch.cuda.Stream:
        """A recorded call uses the engine's scratch memory too, and waits for nobody by itself."""
        return self._engine.stream

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        for first in range(0, out.shape[0], self._most):
            last = min(first + self._most, out.shape[0])
            self._run([tensor[first:last] for tensor in inputs], out[first:last])
        return out

    def _run(self, inputs: list[Tensor], out: Tensor) -> None:
        missing = max(self._least - out.shape[0], 0)
        if missing:
            inputs = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in inputs]
        bound = [_aligned(tensor.to(self.dtype).contiguous()) for tensor in inputs]
        direct = out.dtype == self.dtype and out.is_contiguous() and not missing
        result = out
        if not direct or _aligned(out) is not out:
            shape = (out.shape[0] + missing, *out.shape[1:])
            result = torch.empty(shape, dtype=self.dtype, device=out.device)
        self._engine.run(dict(zip(self._inputs, bound, strict=True)), {self._output: result})
        if result is not out:
            out.copy_(result[: out.shape[0]])


class _Engine:
    """A plan on a GPU, with the one execution context in which its calls follow each other.

    Calls are in order with the caller's current stream, as if they ran on it. They run on a
    stream of the engine's own: calls of several threads share scratch memory and must not
    overlap, and on the default stream TensorRT would wait for the whole device.
    """

    def __init__(self, path: Path, record: Record, device: torch.device):
        flavor = FLAVORS[record.made.flavor]
        self._log, self._device = logger(flavor), device
        self._log.clear()
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream(device, priority=-1)  # as in `graphs`
            torch.cuda.empty_cache()  # what PyTorch keeps for later, TensorRT may need
            self._runtime = flavor.module().Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise InputError(f"{path} cannot be loaded: {self._log.error()}")
            self._context, save = flavor.open_context(self._engine, record.plan_sha256)
            if self._context is None:
                needed = f"{(record.scratch_bytes or 0) / 2**30:.1f} GiB of a GPU's memory"
                raise InputError(f"{path} needs {needed} to run: {self._log.error()}")
        finalize(self, save)
        self._lock = Lock()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def run(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Enqueue one batch. Tensors are contiguous, aligned, and of the plan's types."""
        with self._lock, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            for name, tensor in inputs.items():
                shape = tuple(tensor.shape)
                if self._shapes.get(name) != shape:
                    self._must(self._context.set_input_shape(name, shape))
                    self._shapes[name] = shape
            for name, tensor in (inputs | outputs).items():
                if self._addresses.get(name) != tensor.data_ptr():
                    self._must(self._context.set_tensor_address(name, tensor.data_ptr()))
                    self._addresses[name] = tensor.data_ptr()
            self.stream.wait_stream(current)
            self._must(self._context.execute_async_v3(self.stream.cuda_stream))
            current.wait_stream(self.stream)

    def _must(self, done: bool) -> None:
        if not done:
            # what was bound so far is not known any more
            self._shapes.clear()
            self._addresses.clear()
            raise RuntimeError(f"TensorRT: {self._log.error()}")


def _aligned(tensor: Tensor) -> Tensor:
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _open_engine(path: Path, record: Record, device: torch.device) -> _Engine:
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size, str(device))
    with _lock:
        engine = _engines.get(key)
        if engine is None:
            engine = _engines[key] = _Engine(path, record, device)
    return engine
