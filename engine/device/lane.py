"""What one render at a time uses on a GPU: buffers that stay, a ring of finished frames, graphs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import NamedTuple

import torch
from torch import Tensor

import kernels

from .arena import Arena, Shapes, ladder
from .graphs import Graphs

RING = 3  # one batch being made, one the caller works on, one being copied away
ENCODER_RUNGS = (
    8,
    32,
)  # windows at once: 8 are what the first frame needs

Stage = Callable[..., AbstractContextManager[None]]


class Part(NamedTuple):
    """A stage, or some that follow each other, of a batch.

    name: for people.
    work: the calls.
    record: whether CUDA graphs can hold them.
    stream: where they must run, None where that does not matter.
    """

    name: str
    work: Callable[[], object]
    record: bool = True
    stream: torch.cuda.Stream | None = None


def lane_shapes(
    batch_size: int, height: int, width: int, picture: torch.dtype, feature: torch.dtype
) -> Shapes:
    """The buffers of a lane, `batch_size` frames of that size at once.

    Args:
        picture: what the generator computes in.
        feature: what the audio encoder computes in.
    """
    most, roi, encoded = batch_size, (kernels.ROI_SIZE, kernels.ROI_SIZE), ENCODER_RUNGS[-1]
    shapes: Shapes = {
        "windows": ((encoded, 1, kernels.MEL_BANDS, kernels.MEL_WINDOW_ROWS), torch.float32),
        "encoded": ((encoded, kernels.FEATURE_DIM), feature),
        "encoded low": ((encoded,), feature),
        "encoded high": ((encoded,), feature),
        "audio": ((most, 32, 16, 16), picture),
        "index": ((most,), torch.int64),
        "inputs": ((most, 6, *roi), picture),
        "crops": ((most, kernels.CROP_SIZE, kernels.CROP_SIZE, 3), torch.uint8),
        "generated": ((most, 3, *roi), picture),
        "generated low": ((most, 3), picture),
        "generated high": ((most, 3), picture),
    }
    for slot in range(RING):
        shapes[f"finished {slot}"] = ((most, height, width, 3), torch.uint8)
    return shapes


class Lane:
    """Buffers of a render, and the graphs that work on them. For one render at a time.

    Attributes:
        sizes: the batch sizes that are run.
        windows, encoded, audio, index, inputs, crops, generated: buffers, see `lane_shapes`.
        encoded_range, generated_range: the smallest and the largest value of each feature, and of
            each frame's channels.
        bytes: that the buffers take.

    Raises:
        DeviceError: they do not fit the GPU.
    """

    def __init__(self, shapes: Shapes, device: torch.device):
        arena = Arena(shapes, device)
        self.bytes, self._device = arena.bytes, device
        self.windows, self.encoded, self.audio = (
            arena[name] for name in ("windows", "encoded", "audio")
        )
        self.index, self.inputs, self.crops, self.generated = (
            arena[name] for name in ("index", "inputs", "crops", "generated")
        )
        self.encoded_range = arena["encoded low"], arena["encoded high"]
        self.generated_range = arena["generated low"], arena["generated high"]
        self._ring = [arena[f"finished {slot}"] for slot in range(RING)]
        self.sizes = ladder(len(self.index))
        self._graphs, self._slot = Graphs(device), RING - 1
        self._memory, self._last = arena.memory, None
        if device.type == "cuda":
            self._upload = torch.cuda.Stream(device)
            # the zeros are this stream's, the first turn may be another's
            self._last = torch.cuda.current_stream(device)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around what a render enqueues at once: in order with what the lane did before, whichever
        stream that was on, and on the lane's device, whichever is the current one."""
        if self._device.type != "cuda":
            yield
            return
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream(self._device)
            if self._last != current:
                current.wait_stream(self._last)
                self._memory.record_stream(current)  # it is not free while work on it is under way
            self._last = current
            yield

    def upload(self, *tensors: Tensor) -> list[Tensor]:
        """Copies on the device, made from pinned memory on a stream of their own."""
        if self._device.type != "cuda":
            return list(tensors)
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
            copy.record_stream(current)  # the memory is the upload stream's, the use is not
        return copies

    def next_slot(self) -> tuple[int, Tensor]:
        """The number and the buffer of the oldest finished frames, to write the next ones into."""
        self._slot = (self._slot + 1) % RING
        return self._slot, self._ring[self._slot]

    def run(self, key: tuple, parts: list[Part], stage: Stage | None = None) -> None:
        """Run the parts of a batch one after another.

        Neighbours that can be recorded are one graph, unless `stage` measures them: then each is
        a graph of its own, which costs a few microseconds a batch.

        Args:
            key: what the parts depend on: the same key, the same work on the same buffers.
            stage: makes the context that measures a part by its name.
        """
        for part in parts if stage else _joined(parts):
            with self.measured(part.name, stage):
                self._graphs.run(
                    (part.name, *key), part.work, record=part.record, stream=part.stream
                )

    @contextmanager
    def measured(self, name: str, stage: Stage | None) -> Iterator[None]:
        """A range in a profiler's timeline, of what the host enqueues; a stage, if measured."""
        nvtx = torch.cuda.nvtx.range(name) if self._device.type == "cuda" else nullcontext()
        with nvtx, stage(name) if stage else nullcontext():
            yield


class Lanes:
    """Lanes of a pipeline: a render takes one that is free, or there is one more from then on."""

    def __init__(self, shapes: Shapes, device: torch.device):
        self._shapes, self._device = shapes, device
        self._lock = RLock()  # a render that is collected meanwhile gives its lane back
        self._all = [Lane(shapes, device)]  # the first one now: what does not fit is said early
        self._free = list(self._all)

    @property
    def bytes(self) -> int:
        """That the buffers of all lanes take."""
        return sum(lane.bytes for lane in self._all)

    @contextmanager
    def take(self) -> Iterator[Lane]:
        """A lane for one render. The one used last is the first to be used again.

        Raises:
            DeviceError: all are in use and another one does not fit the GPU.
        """
        with self._lock:
            if not self._free:
                self._all.append(Lane(self._shapes, self._device))
                self._free.append(self._all[-1])
            lane = self._free.pop()
        try:
            yield lane
        finally:
            with self._lock:
                self._free.append(lane)


def _joined(parts: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for part in parts:
        if joined and joined[-1].record and part.record:
            joined[-1] = _both(joined[-1], part)
        else:
            joined.append(part)
    return joined


def _both(one: Part, two: Part) -> Part:
    def work() -> None:
        one.work()
        two.work()

    return Part(f"{one.name}, {two.name}", work, stream=one.stream or two.stream)
