"""TensorRT: run plans built by `python -m engine.build`, on the GPUs they were built for."""

from collections.abc import Collection
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary, finalize

import torch
from torch import Tensor

from ..device.cuda_graphs import (
    CAPTURE_PRIORITY,
    capture_lock,
    keep_for_capture,
    whole_device_lock,
)
from ..device.memory import ALIGNMENT
from ..errors import DeviceFull, InputError
from ..plans.check import check_plan
from ..plans.edition import EDITIONS, logger
from ..plans.profiles import profile_for
from ..plans.record import PlanRecord
from .batching import run_in_chunks
from .sharing import SharedCache
from .signature import Signature

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}

_Bindings = tuple[tuple[str, tuple[int, ...], int], ...]  # name, shape and address of each tensor

# Shared, because a plan's weights and scratch memory may take gigabytes.
_engines: "SharedCache[_Engine]" = SharedCache()


class TensorRTNetwork:
    """A plan in float16 or float32. Batches larger than its profile run in chunks, smaller ones are
    padded.

    Raises:
        InputError: the plan is damaged, or for another network, TensorRT or GPU. The message has
            the command that builds it again.
        DeviceFull: its scratch memory does not fit the GPU.
    """

    reason = ""  # set by `open_network`
    assumes_mask = False
    graph_bytes = 0

    def __init__(self, signature: Signature, path: Path, device: torch.device):
        record = check_plan(path, signature, device)
        key = record.key
        self._engine = _open_engine(path, record, device)
        self._inputs = [name for name, *_ in record.inputs]
        ((self._output, *_),) = record.outputs
        self._least, _, self._most = key.batch
        self.dtype = DTYPES[key.precision]
        self.description = f"{key.edition} {key.version}, {device}, {self.dtype}"
        if record.scratch_bytes is not None:
            self.description += f", {record.scratch_bytes / 1e6:.0f} MB to run"

    @property
    def capturable(self) -> bool:
        return self._engine.capturable

    @property
    def stream(self) -> torch.cuda.Stream:
        """The engine's stream. Graphs must be replayed on it, because captured calls also use the
        shared scratch memory."""
        return self._engine.stream

    def __call__(self, *inputs: Tensor, out: Tensor) -> Tensor:
        return run_in_chunks(
            self._run,
            inputs,
            out,
            most=self._most,
            least=self._least,
            dtype=self.dtype,
            out_dtype=self.dtype,
            alignment=ALIGNMENT,
        )

    def _run(self, inputs: list[Tensor], out: Tensor, first: int) -> None:
        named = dict(zip(self._inputs, inputs, strict=True))
        self._engine.run(named, {self._output: out}, first)


class _Engine:
    """A plan on a GPU. Its calls run one after another, because they share scratch memory.

    Calls run on the engine's own stream, ordered with the caller's current stream. On the callers'
    streams, calls of several threads would overlap. On the default stream, TensorRT would wait for
    the whole device.

    Each batch size has an execution context. The context of a captured call is not used for
    anything else, because the graph is undefined after its context got other shapes or addresses.
    It belongs to the graph, and is freed with it.

    Attributes:
        capturable: whether CUDA graphs can capture the calls.
        stream: the engine's own stream.
    """

    def __init__(self, path: Path, record: PlanRecord, device: torch.device):
        edition = EDITIONS[record.key.edition]
        self._log, self._device = logger(edition), device
        plan = path.read_bytes()
        # TensorRT may wait for the whole device, which would break another thread's capture.
        with whole_device_lock, torch.cuda.device(device):
            self._log.clear()
            self.stream = torch.cuda.Stream(device, priority=CAPTURE_PRIORITY)
            self._runtime = edition.module().Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise InputError(f"{path} cannot be loaded: {self._log.error()}")
            with torch.cuda.stream(self.stream):  # allocated for the stream that uses it
                self._scratch = _scratch(path, self._engine.device_memory_size_v2, device)
            self._make, self._kernels = edition.contexts(self._engine, record.plan_sha256)
            context = self._make()
            if context is None:
                raise InputError(f"{path} cannot run: {self._log.error()}")
            self.capturable = edition.capturable(context, self.stream)
        finalize(self, self._kernels.close)
        self._uncaptured: dict[tuple[int, int], _Context] = {}
        self._captured: WeakValueDictionary[_Bindings, _Context] = WeakValueDictionary()
        self._key = record.key
        self._kept: list[_Context] = []  # of calls that others than `CudaGraphs` captured

    def run(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor], part: int) -> None:
        """Enqueue one chunk. Tensors are contiguous, aligned, and of the plan's types.

        Args:
            inputs, outputs: tensors by name.
            part: first row of this chunk in its batch. Every chunk has its own execution context,
                which the warm-up calls before a capture have already given its shapes.
        """
        with capture_lock, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            tensors = inputs | outputs
            bound = tuple((name, tuple(t.shape), t.data_ptr()) for name, t in tensors.items())
            context = self._captured.get(bound)
            fresh = False
            if context is None:
                size = part, len(next(iter(inputs.values())))
                context = self._uncaptured.get(size)
                fresh = context is None
                if context is None:
                    context = self._uncaptured[size] = self._new_context(size[1])
                try:
                    context.bind(bound, inputs)
                except RuntimeError:
                    del self._uncaptured[size]  # its bindings are unknown now
                    raise
                if torch.cuda.is_current_stream_capturing():
                    self._captured[bound] = self._uncaptured.pop(size)
                    if not keep_for_capture(context, self.stream):
                        self._kept.append(context)
            self.stream.wait_stream(current)
            context.run(self.stream)
            current.wait_stream(self.stream)
            if fresh:
                self._kernels.save()

    def _new_context(self, n: int) -> "_Context":
        """Create the context for batches of `n` rows, with the profile that suits them."""
        context = self._make()
        if context is None:
            raise RuntimeError(f"TensorRT: {self._log.error()}")
        profile = profile_for(self._key.network, self._key.batch, n)
        # A new context has profile 0. The memory comes after it, as in TensorRT's own programs.
        if profile and not context.set_optimization_profile_async(profile, self.stream.cuda_stream):
            raise RuntimeError(f"TensorRT: {self._log.error()}")
        context.set_device_memory(self._scratch.data_ptr(), self._scratch.numel())
        return _Context(context, self._log)


class _Context:
    """An execution context that remembers its bindings."""

    def __init__(self, context: Any, log: Any):
        self._context, self._log = context, log
        self._bound: _Bindings = ()

    def bind(self, bound: _Bindings, inputs: Collection[str]) -> None:
        """Bind tensors, given as (name, shape, address). Unchanged bindings are skipped."""
        before = {name: (shape, address) for name, shape, address in self._bound}
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
    """Allocate the scratch memory of a plan's calls, (needed,) uint8.

    Raises:
        DeviceFull: the GPU has less free memory.
    """
    try:
        return torch.empty(max(needed, 1), dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        free = torch.cuda.mem_get_info(device)[0] / 2**30
        raise DeviceFull(
            f"{path} needs {needed / 2**30:.2f} GiB of {device} to run; {free:.2f} GiB are free; "
            "a plan for smaller batches (--batch) needs less"
        ) from error


def _open_engine(path: Path, record: PlanRecord, device: torch.device) -> _Engine:
    return _engines.get(path, str(device), make=lambda: _Engine(path, record, device))
