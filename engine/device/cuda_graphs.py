"""Capture work as a CUDA graph once, and replay it on the same tensors."""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import RLock

import torch

from ..errors import DeviceFull

# Calls before a capture, because compilers and libraries allocate and tune in the first ones.
WARM_UPS = 2

# Held while capturing, replaying, or launching on a network's private stream. Work that another
# thread launches on a capturing stream would end up in the graph.
capture_lock = RLock()
# PyTorch hands out streams round-robin, from a pool of 32 for each priority, so that the 33rd is
# the first one again. Streams that capture therefore have a priority that no other stream has:
# work that another thread launches on its own stream must not be captured.
CAPTURE_PRIORITY = -2


class CudaGraphs:
    """CUDA graphs that share memory, so that only one of them may run at a time.

    The captured work reads and writes tensors at fixed addresses. Its own allocations come from the
    graphs' memory pool, at the same addresses in every replay.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._captured: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._stream = torch.cuda.Stream(device, priority=CAPTURE_PRIORITY)
        self._pool = torch.cuda.graph_pool_handle()

    def __len__(self) -> int:
        return len(self._captured)

    def run(
        self,
        key: Hashable,
        work: Callable[[], object],
        *,
        capture: bool = True,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Run `work` in order with the current stream. The first call captures it.

        Args:
            key: identifies the work; the same key means the same work on the same tensors.
            capture: False for work that cannot be captured. It is called each time.
            stream: the stream to replay on; None for the current stream. A network whose calls
                share scratch memory has its own stream.

        Raises:
            DeviceFull: the memory that the work allocates does not fit the GPU.
        """
        if not capture:
            work()
            return
        with capture_lock:
            graph = self._captured.get(key)
            if graph is None:
                graph = self._captured[key] = self._capture(work)
            current = torch.cuda.current_stream(self._device)
            if stream is None:
                graph.replay()
                return
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                graph.replay()
            current.wait_stream(stream)

    def _capture(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        try:
            # This context restores the current stream if `work` raises. The context of
            # `torch.cuda.graph` does not, if an error ends a capture.
            with torch.cuda.stream(self._stream), _no_collection():
                for _ in range(WARM_UPS):
                    work()
                # "thread_local": other threads of the process may use the GPU meanwhile
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    work()
        except torch.OutOfMemoryError as error:
            free = torch.cuda.mem_get_info(self._device)[0] / 2**30
            raise DeviceFull(
                f"the networks' own memory does not fit {self._device}, of which {free:.2f} GiB "
                "are free; a smaller batch size needs less"
            ) from error
        return graph


@contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection, because freeing graphs or pinned memory would break a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
