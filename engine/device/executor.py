"""Run the stages of a batch: as plain calls on a CPU, as CUDA graphs on a GPU."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .cuda_graphs import CudaGraphs
from .stopwatch import Stopwatch


class Part(NamedTuple):
    """A stage of a batch."""

    name: str
    """The stage's name in `Stopwatch` and in a profiler."""
    work: Callable[[], object]
    """The calls, on the same tensors each time."""
    capturable: bool = True
    """Whether a CUDA graph can capture the calls."""
    stream: torch.cuda.Stream | None = None
    """The stream on which a graph of the calls must be replayed; None for any stream."""
    key: tuple[Hashable, ...] = ()
    """Identifies its tensors, besides what identifies those of all parts."""


class Executor(Protocol):
    """Runs the work of a render on its device."""

    @property
    def graph_bytes(self) -> int:
        """Bytes of the device that calls of the parts have allocated for good."""
        ...

    def on_current_stream(self) -> AbstractContextManager[None]:
        """Order the block after the blocks before it, even if they ran on other streams."""
        ...

    def upload(self, *tensors: Tensor) -> list[Tensor]:
        """Return copies on the device, ready on the current stream."""
        ...

    def run(self, key: tuple[Hashable, ...], parts: list[Part], stopwatch: Stopwatch) -> None:
        """Run the parts of a batch one after another.

        Args:
            key: identifies the parts, together with their names and their own keys: the same ones
                mean the same work on the same tensors.
            parts: the stages, in order.
            stopwatch: measures each part under its name.
        """
        ...


class CpuExecutor:
    """Calls the parts."""

    graph_bytes = 0

    def on_current_stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def upload(self, *tensors: Tensor) -> list[Tensor]:
        return [tensor.cpu() for tensor in tensors]

    def run(self, key: tuple[Hashable, ...], parts: list[Part], stopwatch: Stopwatch) -> None:
        for part in parts:
            with stopwatch.stage(part.name):
                part.work()


class CudaExecutor:
    """Captures the parts as CUDA graphs and replays them.

    Args:
        memory: the buffers that the parts work on.
        read: tensors that the parts read and that others own, such as the avatar's frames.
    """

    def __init__(self, memory: Tensor, *read: Tensor):
        self._used, self._device = (memory, *read), memory.device
        self._users = set[int]()  # streams that the tensors are known to be used on
        self._graphs = CudaGraphs(self._device)
        self._upload = torch.cuda.Stream(self._device)
        # The zeros in the memory are written on this stream; the first block may run on another.
        self._last = torch.cuda.current_stream(self._device)

    @contextmanager
    def on_current_stream(self) -> Iterator[None]:
        """Order the block, see `Executor`, and make the memory's device the current one."""
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream(self._device)
            if self._last != current:
                current.wait_stream(self._last)
            if current.cuda_stream not in self._users:
                self._users.add(current.cuda_stream)
                for tensor in self._used:  # not freed before this stream's work is done
                    tensor.record_stream(current)
            self._last = current
            yield

    @property
    def graph_bytes(self) -> int:
        """Bytes of the device that the captured graphs take."""
        return self._graphs.bytes

    def upload(self, *tensors: Tensor) -> list[Tensor]:
        """Copy from pinned memory on a separate stream, so that the host does not wait."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._upload):
            copies = [
                (tensor if tensor.is_cuda else tensor.pin_memory()).to(
                    self._device, non_blocking=True
                )
                for tensor in tensors
            ]
        current.wait_stream(self._upload)
        for copy in copies:
            copy.record_stream(current)  # allocated on the upload stream, used on this one
        return copies

    def run(self, key: tuple[Hashable, ...], parts: list[Part], stopwatch: Stopwatch) -> None:
        """Run the parts, see `Executor`.

        Parts that follow each other are one graph if they can be captured and run on the same
        stream. A network that has its own stream is a graph of its own there, so that what other
        renders do before and after theirs goes on meanwhile. What is measured is a graph for each
        part, which costs a few microseconds a batch.
        """
        for group in _groups(parts, separate=stopwatch.measures):
            names = [part.name for part in group]
            keys = [value for part in group for value in part.key]
            with stopwatch.stage(", ".join(names)):
                self._graphs.run(
                    (", ".join(names), *key, *keys),
                    lambda group=group: [part.work() for part in group],  # type: ignore[misc]
                    capture=group[0].capturable,
                    stream=group[0].stream,
                )


def _groups(parts: list[Part], *, separate: bool) -> Iterator[list[Part]]:
    """Yield the parts in order, those together that can be one graph."""
    for (capturable, _), found in groupby(parts, lambda part: (part.capturable, part.stream)):
        group = list(found)
        if separate or not capturable:
            yield from ([part] for part in group)
        else:
            yield group
