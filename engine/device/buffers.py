"""The tensors that a render works on, and where its frames come from.

On a GPU, the avatar's frames, the buffers and a ring of finished frames have fixed addresses, as
CUDA graphs require. On a CPU, a thread decodes the next frames, and `composite` writes into these
copies, which then belong to the caller.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import RLock
from typing import Protocol

import torch
from torch import Tensor

import kernels
from kernels.checks import byte_shape

from .batch_sizes import ENCODER_BATCH_SIZES, batch_sizes, round_up_to
from .executor import CpuExecutor, CudaExecutor, Executor
from .host_copy import copy_to_device
from .memory import Shapes, allocate
from .stopwatch import Stopwatch

FramesRead = tuple[Tensor, Tensor, Tensor, Tensor | None]  # frames, boxes, index, masks
Read = Callable[[list[int]], FramesRead]
RING = 3  # batches: one being rendered, one the caller reads, one being copied to the host
# Rows of a render's ring of features, at least. A ring that is larger than the features that a
# batch reads is written in two pieces less often.
FEATURE_ROWS = 1024
# Of the buffer "places": the avatar's frame of each frame of a batch; and its feature window, by
# the frame's number in a speech and by the speech's number in the buffer "features".
PLACES = "index", "numbers", "sources"


@dataclass(frozen=True)
class Frames:
    """The avatar's frames for a batch of n video frames, and the tensor for the finished frames."""

    frames: Tensor
    """(k, H, W, 3) uint8 RGB."""
    boxes: Tensor
    """(k, 4) int32 face boxes."""
    index: Tensor
    """(m,) int64 into both, m >= n. The rows from n on are padding."""
    finished: Tensor
    """(m, H, W, 3) uint8, or the shape of `format`: the output. May be `frames`."""
    slot: int
    """Number of `finished` in the ring; 0 if there is no ring."""
    format: kernels.ByteFormat = "rgb"
    """The format of `finished`."""
    masks: Tensor | None = None
    """(k, H, ceil(W / 8)) uint8, see `kernels.composite`."""


class Buffers(Protocol):
    """The buffers of the networks, for one render or for all live sessions, one batch at a time."""

    tensors: dict[str, Tensor]
    """The tensors between the stages, by the names in `buffer_shapes`."""
    executor: Executor
    """Runs the stages on the tensors."""
    encoder_batch_sizes: tuple[int, ...]
    """Mel windows per call of the audio encoder."""

    def padded(self, m: int) -> int:
        """Return how many windows a call of the audio encoder runs for `m` of them."""
        ...


class SpeechBuffers(Buffers, Protocol):
    """What a render uses, one at a time."""

    def start(self, numbers: list[int], first: int = 0) -> None:
        """Begin a render, given the avatar's frame for each video frame from `first` on."""
        ...

    def next_frames(self, n: int, stopwatch: Stopwatch) -> Frames:
        """Return the frames for the next `n` video frames, a whole batch unless they are the last,
        and write where their feature windows are to "places"."""
        ...


def buffer_shapes(batch_size: int, *, generator: torch.dtype, audio_encoder: torch.dtype) -> Shapes:
    """Return the shapes and dtypes of the buffers between the stages, by name.

    Args:
        batch_size: largest number of frames at once.
        generator: dtype of the generator's inputs and output.
        audio_encoder: dtype of the audio encoder's output.
    """
    most, roi, windows = batch_size, (kernels.ROI_SIZE, kernels.ROI_SIZE), ENCODER_BATCH_SIZES[-1]
    return {
        "windows": ((windows, 1, kernels.MEL_BANDS, kernels.MEL_WINDOW_ROWS), torch.float32),
        "encoded": ((windows, kernels.FEATURE_DIM), audio_encoder),
        "encoded ranges": ((windows, 2), audio_encoder),
        "places": ((len(PLACES), most), torch.int64),
        "audio": ((most, 32, 16, 16), generator),
        "inputs": ((most, 6, *roi), generator),
        "crops": ((most, kernels.CROP_SIZE, kernels.CROP_SIZE, 3), torch.uint8),
        "generated": ((most, 3, *roi), generator),
        "generated ranges": ((most, 2, 3), generator),
    }


def speech_shapes(batch_size: int, generator: torch.dtype) -> Shapes:
    """Return the shape of the ring of a speech's features, see `FeatureRing`.

    It holds what a batch reads (15 more than frames), what a call of the encoder may add before it
    is read, and the end of the speech.
    """
    rows = max(FEATURE_ROWS, batch_size + 2 * ENCODER_BATCH_SIZES[-1])
    return {"features": ((1, rows, kernels.FEATURE_DIM), generator)}


def ring_shapes(
    batch_size: int, height: int, width: int, format: kernels.ByteFormat = "rgb"
) -> Shapes:
    """Return the shapes of the slots of the ring of finished frames, `batch_size` frames each."""
    frames = byte_shape(format, batch_size, height, width)
    return {f"finished {slot}": (frames, torch.uint8) for slot in range(RING)}


def write_places(
    places: Tensor,
    *,
    index: Sequence[int] = (),
    numbers: Sequence[int] = (),
    sources: Sequence[int] = (),
) -> None:
    """Write the buffer "places" with one copy from the host; what is not given is 0."""
    host = torch.zeros(places.shape, dtype=torch.int64)
    for row, values in zip(host, (index, numbers, sources), strict=True):
        row[: len(values)] = torch.tensor(values, dtype=torch.int64)
    copy_to_device(host, places)


def _allocated(
    shapes: Shapes, device: torch.device, besides: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Allocate buffers, see `allocate`, and name the rows of "places"."""
    memory, tensors = allocate(shapes, device, besides)
    return memory, tensors | dict(zip(PLACES, tensors["places"], strict=True))


class RenderBuffers:
    """Buffers on a GPU for one render at a time, with the CUDA graphs that work on them.

    Batches are padded to one of a few sizes. Finished frames go to a ring of `RING` batches.

    Args:
        shapes: from `buffer_shapes` and `ring_shapes`.
        frames, boxes, masks: all of the avatar, on the device.
        format: format of the finished frames, as given to `ring_shapes`.
        graph_bytes: bytes that the graphs will need, see `Pipeline.graph_bytes`.

    Attributes:
        batch_sizes: the batch sizes that run.

    Raises:
        DeviceError: the buffers and the graphs do not fit the GPU.
    """

    encoder_batch_sizes: tuple[int, ...] = ENCODER_BATCH_SIZES

    def __init__(
        self,
        shapes: Shapes,
        frames: Tensor,
        boxes: Tensor,
        format: kernels.ByteFormat = "rgb",
        *,
        masks: Tensor | None = None,
        graph_bytes: int = 0,
    ):
        device = boxes.device
        memory, self.tensors = _allocated(shapes, device, graph_bytes)
        self._bytes = memory.numel()
        self.executor: Executor = CpuExecutor()
        if memory.is_cuda:
            read = [frames, boxes] if masks is None else [frames, boxes, masks]
            self.executor = CudaExecutor(memory, *read)
        self._frames, self._boxes, self._masks, self._format = frames, boxes, masks, format
        self._ring = [self.tensors[f"finished {slot}"] for slot in range(RING)]
        self._slot = RING - 1
        self._batch_size = len(self.tensors["index"])
        self.batch_sizes = batch_sizes(self._batch_size)
        self._schedule = torch.empty(0, len(PLACES), self._batch_size, dtype=torch.int64)
        self._next = 0  # batch

    @property
    def bytes(self) -> int:
        """Bytes of the buffers, and of the graphs that have been captured."""
        return self._bytes + self.executor.graph_bytes

    def start(self, numbers: list[int], first: int = 0) -> None:
        """Begin a render, see `SpeechBuffers.start`. "places" of all batches are uploaded once."""
        index = torch.tensor(numbers)
        most, count = self._batch_size, len(numbers)
        missing = -count % most
        index = torch.cat([index, index[-1:].expand(missing)])
        frames = torch.arange(first, first + count + missing)
        rows = torch.stack([index, frames, torch.zeros_like(index)])
        batches = rows.view(len(PLACES), -1, most).transpose(0, 1).contiguous()
        (self._schedule,) = self.executor.upload(batches)
        self._next = 0

    def padded(self, m: int) -> int:
        return round_up_to(self.encoder_batch_sizes, m)

    def next_frames(self, n: int, stopwatch: Stopwatch) -> Frames:
        with stopwatch.stage("windows"):
            self.tensors["places"].copy_(self._schedule[self._next])
        self._next += 1
        return self.next_slot(n)

    def next_slot(self, n: int) -> Frames:
        """Return frames for the current index, with the oldest slot of the ring as the output."""
        size = round_up_to(self.batch_sizes, n)
        self._slot = (self._slot + 1) % RING
        index, finished = self.tensors["index"][:size], self._ring[self._slot][:size]
        return Frames(
            self._frames, self._boxes, index, finished, self._slot, self._format, self._masks
        )


class BufferPool:
    """The `RenderBuffers` of a pipeline. A render takes free ones; if there are none, they are
    made.

    Args:
        shapes, frames, boxes, masks, graph_bytes: as in `RenderBuffers`.

    Raises:
        DeviceError: the first buffers, which are allocated immediately, do not fit the GPU.
    """

    def __init__(
        self,
        shapes: Shapes,
        frames: Tensor,
        boxes: Tensor,
        masks: Tensor | None = None,
        *,
        graph_bytes: int = 0,
    ):
        self._shapes, self._frames, self._boxes, self._masks = shapes, frames, boxes, masks
        self._graph_bytes = graph_bytes
        # Reentrant: the garbage collector may close an abandoned render, which returns its
        # buffers, while this thread holds the lock.
        self._lock = RLock()
        self._all: list[RenderBuffers] = []
        self._all.append(self._make())
        self._free = list(self._all)

    @property
    def bytes(self) -> int:
        """Bytes of all buffers and their graphs."""
        return sum(buffers.bytes for buffers in self._all)

    def _make(self) -> RenderBuffers:
        """Make buffers that fit besides all graphs that are still to be captured."""
        pending = 1 + sum(buffers.executor.graph_bytes == 0 for buffers in self._all)
        needed = pending * self._graph_bytes
        return RenderBuffers(
            self._shapes, self._frames, self._boxes, masks=self._masks, graph_bytes=needed
        )

    @contextmanager
    def take(self) -> Iterator[RenderBuffers]:
        """Lend buffers to one render; those that were used last come first.

        Raises:
            DeviceError: all buffers are in use, and new ones do not fit the GPU.
        """
        with self._lock:
            if not self._free:
                self._all.append(self._make())
                self._free.append(self._all[-1])
            buffers = self._free.pop()
        try:
            yield buffers
        finally:
            with self._lock:
                self._free.append(buffers)


class HostBuffers:
    """Buffers on a CPU. Batches are not padded.

    Args:
        shapes: from `buffer_shapes`.
    """

    encoder_batch_sizes: tuple[int, ...] = ENCODER_BATCH_SIZES[-1:]

    def __init__(self, shapes: Shapes):
        _, self.tensors = _allocated(shapes, torch.device("cpu"))
        self.executor: Executor = CpuExecutor()

    def padded(self, m: int) -> int:
        return m


class ReadAheadBuffers(HostBuffers):
    """Buffers on a CPU for one render. A thread decodes the next frames while the generator runs.

    `composite` works in place.

    Args:
        shapes: from `buffer_shapes`.
        read: `Avatar.masked_batch`.
    """

    def __init__(
        self,
        shapes: Shapes,
        read: Read,
        thread: ThreadPoolExecutor,
    ):
        super().__init__(shapes)
        self._read, self._thread = read, thread
        self._batch_size = len(self.tensors["audio"])

    @classmethod
    @contextmanager
    def open(cls, shapes: Shapes, read: Read) -> Iterator["ReadAheadBuffers"]:
        """Allocate buffers, and run the thread until the block ends."""
        with ThreadPoolExecutor(1, "viseme-frames") as thread:
            yield cls(shapes, read, thread)

    def start(self, numbers: list[int], first: int = 0) -> None:
        self._numbers, self._first = iter(numbers), first
        self._ahead = self._submit()

    def next_frames(self, n: int, stopwatch: Stopwatch) -> Frames:
        with stopwatch.stage("frames", host=True):
            frames, boxes, index, masks = self._ahead.result()
        self._ahead = self._submit()
        write_places(self.tensors["places"], numbers=range(self._first, self._first + n))
        self._first += n
        return Frames(frames, boxes, index, frames, 0, masks=masks)

    def _submit(self) -> Future[FramesRead]:
        return self._thread.submit(self._read, list(islice(self._numbers, self._batch_size)))
