"""TensorRT: plans that `python -m engine.build` made, on the GPUs they were made for."""

from collections.abc import Collection
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor

from ..device.graphs import recording
from ..errors import DeviceError, InputError
from ..plans.flavor import FLAVORS, logger
from ..plans.plan import Record, check
from .signature import Signature

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
        DeviceError: its scratch memory does not fit the GPU.
    """

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        record = check(path, signature, device)
        made = record.made
        self._engine = _open_engine(path, record, device)
        self._inputs = [name for name, *_ in record.inputs]
        ((self._output, *_),) = record.outputs
        self._least, _, self._most = made.batch
        self.dtype = DTYPES[made.precision]
        self.description = f"{made.flavor} {made.version}, {device}, {self.dtype}"
        if record.scratch_bytes is not None:
            self.description += f", {record.scratch_bytes / 1e6:.0f} MB to run"

    @property
    def recordable(self) -> bool:
        return self._engine.recordable

    @property
    def stream(self) -> torch.cuda.Stream:
        """A recorded call uses the engine's scratch memory too, and waits for nobody by itself."""
        return self._engine.stream

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        for first in range(0, out.shape[0], self._most):
            last = min(first + self._most, out.shape[0])
            self._run([tensor[first:last] for tensor in inputs], out[first:last], first)
        return out

    def _run(self, inputs: list[Tensor], out: Tensor, first: int) -> None:
        missing = max(self._least - out.shape[0], 0)
        if missing:
            inputs = [torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for t in inputs]
        bound = [_aligned(tensor.to(self.dtype).contiguous()) for tensor in inputs]
        direct = out.dtype == self.dtype and out.is_contiguous() and not missing
        result = out
        if not direct or _aligned(out) is not out:
            shape = (out.shape[0] + missing, *out.shape[1:])
            result = torch.empty(shape, dtype=self.dtype, device=out.device)
        named = dict(zip(self._inputs, bound, strict=True))
        self._engine.run(named, {self._output: result}, first)
        if result is not out:
            out.copy_(result[: out.shape[0]])


class _Engine:
    """A plan on a GPU. Its calls follow each other: they share scratch memory.

    Calls are in order with the caller's current stream, as if they ran on it. They run on a
    stream of the engine's own: those of several threads must not overlap, and on the default
    stream TensorRT would wait for the whole device.

    Each batch size has an execution context, and each recording one that is never touched again:
    TensorRT does not define what a recording does once its context was given other shapes or
    addresses.

    Attributes:
        recordable: whether CUDA graphs can hold the calls.
        stream: the engine's own.
    """

    def __init__(self, path: Path, record: Record, device: torch.device):
        flavor = FLAVORS[record.made.flavor]
        self._log, self._device = logger(flavor), device
        self._log.clear()
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream(device, priority=-1)  # as in `graphs`
            self._runtime = flavor.module().Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if self._engine is None:
                raise InputError(f"{path} cannot be loaded: {self._log.error()}")
            with torch.cuda.stream(self.stream):  # where it is used, until it is free again
                self._scratch = _scratch(path, self._engine.device_memory_size_v2, device)
            self._make, self._save = flavor.contexts(self._engine, record.plan_sha256)
            context = self._make()
            if context is None:
                raise InputError(f"{path} cannot run: {self._log.error()}")
            self.recordable = flavor.recordable(context, self.stream)
        finalize(self, self._save)
        self._loose: dict[tuple, _Context] = {}
        self._recorded: dict[tuple, _Context] = {}

    def run(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], part: int) -> None:
        """Enqueue one batch. Tensors are contiguous, aligned, and of the plan's types.

        Args:
            part: which part of a larger batch it is. Each has contexts of its own, so that those
                of a recording are at hand, with their shapes, from the calls before it.
        """
        with recording, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            tensors = inputs | outputs
            bound = tuple((name, tuple(t.shape), t.data_ptr()) for name, t in tensors.items())
            context = self._recorded.get(bound)
            fresh = False
            if context is None:
                size = part, len(next(iter(inputs.values())))
                context = self._loose.get(size)
                fresh = context is None
                if context is None:
                    context = self._loose[size] = self._new_context()
                try:
                    context.bind(bound, inputs)
                except RuntimeError:
                    del self._loose[size]  # what it holds is not known any more
                    raise
                if torch.cuda.is_current_stream_capturing():
                    self._recorded[bound] = self._loose.pop(size)
            self.stream.wait_stream(current)
            context.run(self.stream)
            current.wait_stream(self.stream)
            if fresh:
                self._save()

    def _new_context(self) -> "_Context":
        context = self._make()
        if context is None:
            raise RuntimeError(f"TensorRT: {self._log.error()}")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        return _Context(context, self._log)


class _Context:
    """An execution context, and what is bound to it."""

    def __init__(self, context: Any, log: Any):
        self._context, self._log = context, log
        self._bound: tuple = ()

    def bind(self, bound: tuple, inputs: Collection[str]) -> None:
        """Bind tensors, (name, shape, address) each; what is bound already is not told again."""
        before = {name: rest for name, *rest in self._bound}
        for name, shape, address in bound:
            old_shape, old_address = before.get(name, (None, None))
            if name in inputs and shape != old_shape:
                self._must(self._context.set_input_shape(name, shape))
            if address != old_address:
                self._must(self._context.set_tensor_address(name, address))
        self._bound = bound

    def run(self, stream: torch.cuda.Stream) -> None:
        self._must(self._context.execute_async_v3(stream.cuda_stream))

    def _must(self, done: bool) -> None:
        if not done:
            raise RuntimeError(f"TensorRT: {self._log.error()}")


def _scratch(path: Path, needed: int, device: torch.device) -> Tensor:
    """The memory that a plan's calls compute in, (needed,) uint8.

    Raises:
        DeviceError: the GPU has less left.
    """
    try:
        return torch.empty(max(needed, 1), dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info(device)[0] / 2**30
        raise DeviceError(
            f"{path} needs {needed / 2**30:.2f} GiB of {device} to run, {free:.2f} GiB are free: "
            "a plan for smaller batches (--batch) needs less"
        ) from error


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
