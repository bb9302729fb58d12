"""Work of the same tensors again and again, recorded once as a CUDA graph and replayed."""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import RLock

import torch

from ..errors import DeviceError

WARM_UPS = 2  # runs before a recording: compilers and libraries allocate and measure in the first

# Held by who records, replays, or uses a network's own stream: that stream takes part in a
# recording, and what another thread put on it meanwhile would be recorded too.
recording = RLock()


class Graphs:
    """Recordings that share memory: at most one of them runs at a time. On a CPU, plain calls.

    What is recorded reads and writes tensors whose addresses stay; what it allocates comes from
    memory of the graphs' own, and is at the same addresses in every replay.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._recorded: dict[Hashable, torch.cuda.CUDAGraph] = {}
        if device.type == "cuda":
            # Of the pool of urgent streams, which recordings alone use: PyTorch hands out 32 of
            # each pool in turns, and another thread's work on this one would be recorded too.
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._pool = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        return len(self._recorded)

    def run(
        self,
        key: Hashable,
        work: Callable[[], object],
        *,
        record: bool = True,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Do the work, in order with the current stream; recorded before the first time.

        Args:
            key: names the work: the same key, the same work on the same tensors.
            record: False for work that cannot be recorded, which is called each time.
            stream: where a replay runs, if not on the current stream: that of a network whose
                calls must follow each other, whoever makes them.
        """
        if self._device.type != "cuda" or not record:
            work()
            return
        with recording:
            graph = self._recorded.get(key)
            if graph is None:
                graph = self._recorded[key] = self._record(work)
            current = torch.cuda.current_stream(self._device)
            if stream is None:
                graph.replay()
                return
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                graph.replay()
            current.wait_stream(stream)

    def _record(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        try:
            # The current stream is this one's from here to the end, whatever `work` raises:
            # PyTorch's own context stays on it when an error ends a recording.
            with torch.cuda.stream(self._stream), _no_collection():
                for _ in range(WARM_UPS):
                    work()
                # "thread_local": other threads of the process may go on using the GPU
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    work()
        except torch.OutOfMemoryError as error:
            free = torch.cuda.mem_get_info(self._device)[0] / 2**30
            raise DeviceError(
                f"the networks' own memory does not fit {self._device}, of which {free:.2f} GiB "
                "are free: a smaller batch size needs less"
            ) from error
        return graph


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection, which may free what a recording must not: graphs, pinned memory."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
