"""Capture work as a CUDA graph once, and replay it on the same tensors."""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from weakref import finalize

import torch

from ..errors import DeviceError, DeviceFull

# Calls before a capture, because compilers and libraries allocate and tune in the first ones.
WARM_UPS = 2
# Captures of one piece of work. Each may be broken by a thread that waits for the whole device.
ATTEMPTS = 3

# Held while capturing, replaying, or launching on a network's private stream. Work that another
# thread launches on a capturing stream would end up in the graph.
capture_lock = RLock()
# Held while capturing, and by whatever may wait for the whole device, which CUDA forbids during a
# capture in any thread. Replays do not need it, so that frames go on while a network is opened.
# Taken before `capture_lock`.
whole_device_lock = RLock()
# PyTorch hands out streams round-robin, from a pool of 32 for each priority, so that the 33rd is
# the first one again. Streams that capture therefore have a priority that no other stream has:
# work that another thread launches on its own stream must not be captured.
CAPTURE_PRIORITY = -2

_capturing: "CudaGraphs | None" = None  # guarded by `capture_lock`


class CudaGraphs:
    """CUDA graphs that share memory, so that only one of them may run at a time.

    The captured work reads and writes tensors at fixed addresses. Its own allocations come from the
    graphs' memory pool, at the same addresses in every replay. For one thread at a time.

    Attributes:
        bytes: size of the memory pool.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._captured: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._kept: list[tuple[object, torch.cuda.Stream]] = []
        self._stream = torch.cuda.Stream(device, priority=CAPTURE_PRIORITY)
        self._pool = torch.cuda.graph_pool_handle()
        self.bytes = 0
        finalize(self, _release, self._captured, self._kept).atexit = False

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
            DeviceError: other threads waited for the whole device during every attempt to capture.
        """
        if not capture:
            work()
            return
        if key not in self._captured:
            with whole_device_lock, capture_lock:
                self._captured[key] = self._capture(work)
                self.bytes = _pool_bytes(self._pool)
        with capture_lock:
            graph = self._captured[key]
            current = torch.cuda.current_stream(self._device)
            if stream is None:
                graph.replay()
                return
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                graph.replay()
            current.wait_stream(stream)

    def keep(self, needed: object, stream: torch.cuda.Stream) -> None:
        """Keep what the graphs need for as long as they exist, and until `stream` has run them."""
        self._kept.append((needed, stream))

    def _capture(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        reason: RuntimeError | None = None
        for _ in range(ATTEMPTS):
            try:
                return self._capture_once(work)
            except torch.OutOfMemoryError as error:
                free = torch.cuda.mem_get_info(self._device)[0] / 2**30
                raise DeviceFull(
                    f"the networks' own memory does not fit {self._device}, of which {free:.2f} "
                    "GiB are free; a smaller batch size needs less"
                ) from error
            except RuntimeError as error:
                if not _is_broken_capture(error):
                    raise
                reason = error
        raise DeviceError(
            f"capturing a batch on {self._device} was interrupted {ATTEMPTS} times, probably by "
            "other threads that wait for the whole GPU; call warm_up before they start"
        ) from reason

    def _capture_once(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        global _capturing
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        graph = torch.cuda.CUDAGraph()
        before, _capturing = _capturing, self
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
        except BaseException as error:
            if _is_broken_capture(error):
                _end_broken_capture(self._device, self._pool)
            # PyTorch refuses a pool that no graph has any more, while tensors that the exception
            # keeps alive are in it.
            if not self._captured:
                self._pool = torch.cuda.graph_pool_handle()
            raise
        finally:
            _capturing = before
        return graph


def keep_for_capture(needed: object, stream: torch.cuda.Stream) -> bool:
    """Keep what a call needs for as long as the graph exists that captures it.

    Called with `capture_lock` held, while work is captured.

    Returns:
        False if none of `CudaGraphs` captures it.
    """
    if _capturing is None:
        return False
    _capturing.keep(needed, stream)
    return True


def _release(
    captured: dict[Hashable, torch.cuda.CUDAGraph], kept: list[tuple[object, torch.cuda.Stream]]
) -> None:
    """Free graphs, and then what they need, once it has run."""
    for stream in {id(stream): stream for _, stream in kept}.values():
        stream.synchronize()
    captured.clear()
    kept.clear()


def _pool_bytes(pool: tuple[int, int]) -> int:
    """Return the bytes of the GPU that a memory pool has."""
    return sum(
        segment["total_size"]
        for segment in torch.cuda.memory_snapshot()
        if tuple(segment["segment_pool_id"]) == tuple(pool)
    )


def _is_broken_capture(error: BaseException) -> bool:
    """Return whether CUDA ended a capture because of what another thread, or `work`, did."""
    return isinstance(error, RuntimeError) and "previous error during capture" in str(error)


def _end_broken_capture(device: torch.device, pool: tuple[int, int]) -> None:
    """Tell PyTorch's allocator that a capture is over which CUDA ended with an error.

    PyTorch does not, and would then free no memory of other streams any more.
    """
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        with suppress(AttributeError, RuntimeError):  # they are not documented
            getattr(torch._C, name)(device.index, pool)


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
