"""Features and frames of live sessions with one avatar, for the scheduler."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import kernels

from ..device.buffers import Buffers, Frames, HostBuffers, write_places
from ..device.memory import Shapes, memory_bytes
from ..device.stopwatch import Stopwatch
from ..pipeline import Pipeline
from .features import RING_ROWS, Window
from .job import Job, Rendered
from .rings import SILENT_FRAME, SILENT_SLOT, FeatureRings

SLOTS = 512  # sessions of an avatar, and one more for silence
IDLE_BYTES = 128 << 20  # memory for the boxes of frames in which nobody speaks


def feature_shapes(pipeline: Pipeline) -> Shapes:
    """Return the shape of the rings of features of all sessions."""
    rings = SLOTS, RING_ROWS, kernels.FEATURE_DIM
    return {"features": (rings, pipeline.generator.dtype)}


class LiveRenderer(ABC):
    """Makes features and frames with a pipeline's networks. For one thread at a time.

    The mouth of a frame in which nobody speaks depends on the avatar's frame alone. It is generated
    once and kept: the same bits at little cost.

    Args:
        pipeline: the networks and the avatar.
        buffers: what the networks work on, with the rings of features,
            see `feature_shapes`.
        mode: how the mouth is pasted, see `kernels.composite`.

    Attributes:
        batch_size: the most frames at once.
        rings: the features of the sessions.
    """

    def __init__(self, pipeline: Pipeline, buffers: Buffers, mode: kernels.CompositeMode):
        self._pipeline, self._buffers, self._mode = pipeline, buffers, mode
        self._stopwatch = Stopwatch.off(pipeline.device)
        self.batch_size = pipeline.batch_size
        self._encoder_check, self._generator_check = pipeline.checks(None)
        tensors = buffers.tensors
        self.rings = FeatureRings(tensors["features"], tensors["windows"], self._encoder())

    def hear(self, windows: list[Window]) -> None:
        """Compute features.

        Raises:
            InputError: the audio encoder returned NaN or infinity.
        """
        self.rings.compute(windows)

    def render(self, jobs: list[Job]) -> Rendered:
        """Make frames, (1, H, W, 3) uint8 RGB each or what the format makes of that.

        Args:
            jobs: at most `batch_size`. Their features are in the rings, but for silent ones.

        Raises:
            InputError: the generator returned NaN or infinity, or a frame cannot be decoded.
        """
        known = [job.silent and self._knows(job.picture) for job in jobs]
        generate = [job for job, is_known in zip(jobs, known, strict=True) if not is_known]
        copy = [job.picture for job, is_known in zip(jobs, known, strict=True) if is_known]
        # What is known first, because what is new may take its place.
        parts = [self._idle(copy) if copy else Rendered([])]
        parts.append(self._speak(generate) if generate else Rendered([]))
        copied, generated = (iter(part.frames) for part in parts)
        waits = [part.wait for part in parts if part.wait is not None]
        return Rendered(
            [next(copied if is_known else generated) for is_known in known],
            (lambda: [wait() for wait in waits]) if waits else None,
        )

    @property
    @abstractmethod
    def buffer_bytes(self) -> int:
        """Bytes of the device that the buffers take at most, with the idle frames that are kept."""

    @abstractmethod
    def warm_up(self) -> None:
        """Run everything once, so that no frame waits for a compiler or a capture later."""

    @abstractmethod
    def _frames(
        self, pictures: list[int], *, numbers: Sequence[int] = (), sources: Sequence[int] = ()
    ) -> Frames:
        """Return the avatar's frames for a batch, and where to finish it. Write "places"."""

    @abstractmethod
    def _hand_out(self, finished: Tensor, slot: int) -> Rendered:
        """Return finished frames, n in one tensor, as the caller's own."""

    @abstractmethod
    def _knows(self, picture: int) -> bool:
        """Whether the mouth of an avatar's frame in which nobody speaks is kept."""

    @abstractmethod
    def _keep(self, pictures: dict[int, int], finished: Tensor) -> None:
        """Keep mouths of the last batch in which nobody speaks: picture -> row of the batch."""

    @abstractmethod
    def _idle(self, pictures: list[int]) -> Rendered:
        """Make frames whose mouths are kept."""

    def _speak(self, jobs: list[Job]) -> Rendered:
        slots = [SILENT_SLOT if job.silent else job.slot for job in jobs]
        frames = [SILENT_FRAME if job.silent else job.frame for job in jobs]
        batch = self._frames([job.picture for job in jobs], numbers=frames, sources=slots)
        finished, ranges = self._pipeline.finish(
            self._buffers, batch, len(jobs), self._mode, self._stopwatch
        )
        self._generator_check.add(ranges)
        silent = {job.picture: row for row, job in enumerate(jobs) if job.silent}
        if silent:
            self._keep(silent, finished)
        return self._hand_out(finished, batch.slot)

    def _encoder(self) -> Callable[[int], Tensor]:
        """Return what encodes the first n windows. It does not refer to the renderer: what refers
        to itself is freed late."""
        pipeline, buffers = self._pipeline, self._buffers
        check, stopwatch = self._encoder_check, self._stopwatch

        def encode(n: int) -> Tensor:
            features, ranges = pipeline.encode(buffers, n, stopwatch)
            check.add(ranges)
            return features

        return encode


class CpuRenderer(LiveRenderer):
    """Makes features and frames on a CPU. Of idle frames it keeps the pixels of the face box.

    Args:
        pipeline, mode: as in `LiveRenderer`.
    """

    def __init__(self, pipeline: Pipeline, *, mode: kernels.CompositeMode = "crop"):
        buffers, rings = HostBuffers(pipeline.buffer_shapes()), feature_shapes(pipeline)
        for name, (shape, dtype) in rings.items():  # not zeros: pages of no session cost no memory
            buffers.tensors[name] = torch.empty(shape, dtype=dtype)
        super().__init__(pipeline, buffers, mode)
        self._boxes: OrderedDict[int, Tensor] = OrderedDict()
        self._bytes = 0
        sizes = (pipeline.avatar.boxes[:, 2:] - pipeline.avatar.boxes[:, :2]).to(torch.int64)
        boxes = min(IDLE_BYTES, 3 * int(sizes.prod(dim=1).sum()))
        self._buffer_bytes = memory_bytes(pipeline.buffer_shapes() | rings) + boxes

    @property
    def buffer_bytes(self) -> int:
        return self._buffer_bytes

    def warm_up(self) -> None:
        self.render([Job(SILENT_SLOT, SILENT_FRAME, 0, silent=False)])

    def _frames(
        self, pictures: list[int], *, numbers: Sequence[int] = (), sources: Sequence[int] = ()
    ) -> Frames:
        frames, boxes, index, masks = self._pipeline.avatar.masked_batch(pictures)
        write_places(self._buffers.tensors["places"], numbers=numbers, sources=sources)
        return Frames(frames, boxes, index, frames, 0, masks=masks)

    def _hand_out(self, finished: Tensor, slot: int) -> Rendered:
        return Rendered(list(finished.split(1)))

    def _knows(self, picture: int) -> bool:
        return picture in self._boxes

    def _keep(self, pictures: dict[int, int], finished: Tensor) -> None:
        for picture, row in pictures.items():
            if picture not in self._boxes:
                self._boxes[picture] = self._box(finished[row], picture).clone()
                self._bytes += self._boxes[picture].numel()
        while self._bytes > IDLE_BYTES and len(self._boxes) > 1:
            self._bytes -= self._boxes.popitem(last=False)[1].numel()

    def _idle(self, pictures: list[int]) -> Rendered:
        frames, _, _ = self._pipeline.avatar.batch(pictures)
        for frame, picture in zip(frames, pictures, strict=True):
            self._box(frame, picture)[...] = self._boxes[picture]
            self._boxes.move_to_end(picture)
        return Rendered(list(frames.split(1)))

    def _box(self, frame: Tensor, picture: int) -> Tensor:
        x0, y0, x1, y1 = self._pipeline.avatar.boxes[picture].tolist()
        return frame[max(y0, 0) : y1, max(x0, 0) : x1]
