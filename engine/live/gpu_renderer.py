"""Features and frames of live sessions on a GPU: CUDA graphs, and copies beside them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import kernels

from ..device.buffers import RING, Frames, RenderBuffers, ring_shapes, write_places
from ..device.executor import Part
from ..device.host_copy import copy_to_device
from ..pipeline import Pipeline
from .features import RING_ROWS, Window
from .job import Job, Rendered
from .renderer import LiveRenderer, feature_shapes
from .rings import SILENT_FRAME, SILENT_SLOT
from .timing import WINDOW_SAMPLES

IDLE_BYTES = 1 << 30  # of GPU memory for what was generated for frames in which nobody speaks


class GpuRenderer(LiveRenderer):
    """Makes features and frames on a GPU. Of idle frames it keeps what the generator returned.

    All sessions share the buffers. Once everything has run, a batch allocates nothing on the GPU
    and the host waits only for a batch that is three before it. Frames are copied to pinned memory
    on a stream of their own, while the next batch is made.

    Args:
        pipeline, mode: as in `LiveRenderer`.
        format: of the frames, as in `kernels.composite`.
        on_host: whether frames are copied to the host; otherwise they stay on the GPU.

    Raises:
        DeviceError: the buffers do not fit the GPU.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        mode: kernels.CompositeMode = "crop",
        format: kernels.ByteFormat = "rgb",
        on_host: bool = True,
    ):
        avatar, dtype, most = pipeline.avatar, pipeline.generator.dtype, pipeline.batch_size
        roi = (3, kernels.ROI_SIZE, kernels.ROI_SIZE)
        kept = min(len(avatar), max(IDLE_BYTES // (torch.Size(roi).numel() * dtype.itemsize), most))
        shapes = pipeline.buffer_shapes() | ring_shapes(most, avatar.height, avatar.width, format)
        shapes |= feature_shapes(pipeline)
        shapes["idle"] = ((kept, *roi), dtype)
        shapes["idle rows"] = ((most,), torch.int64)
        self._on_host, self._copied = on_host, dict[int, torch.cuda.Event]()
        self._stream = self._copies = None
        if avatar.device.type == "cuda":
            # High priority, because a live frame is due and a render's is not.
            self._stream = torch.cuda.Stream(avatar.device, priority=-1)
            self._copies = torch.cuda.Stream(avatar.device)
            if not on_host:  # what is allocated on a stream is for that stream
                self._copies = torch.cuda.default_stream(avatar.device)
        with torch.cuda.stream(self._stream):
            self._render_buffers = RenderBuffers(
                shapes,
                avatar.frames,
                avatar.boxes,
                format,
                masks=avatar.masks,
                graph_bytes=pipeline.graph_bytes,
            )
            with self._render_buffers.executor.on_current_stream():
                super().__init__(pipeline, self._render_buffers, mode)
        self._rows = dict[int, int]()  # picture -> row in "idle", the one used last last

    @property
    def buffer_bytes(self) -> int:
        return self._render_buffers.bytes

    def hear(self, windows: list[Window]) -> None:
        with torch.cuda.stream(self._stream), self._render_buffers.executor.on_current_stream():
            super().hear(windows)

    def render(self, jobs: list[Job]) -> Rendered:
        with torch.cuda.stream(self._stream), self._render_buffers.executor.on_current_stream():
            return super().render(jobs)

    def warm_up(self) -> None:
        """Capture the graphs of all batch sizes for each place in the ring of finished frames."""
        silence, slot = np.zeros(WINDOW_SAMPLES, np.float32), self.rings.open()
        assert slot is not None
        for size in reversed(self._render_buffers.encoder_batch_sizes):
            self.hear([Window(slot * RING_ROWS, silence)] * size)
        self.rings.close(slot)
        for size in reversed(self._render_buffers.batch_sizes):  # the smaller ones fit its memory
            # generated in each place, then kept by one more, then copied in each place
            for silent in [False] * RING + [True] * (1 + RING):
                rendered = self.render([Job(SILENT_SLOT, SILENT_FRAME, 0, silent)] * size)
                if rendered.wait is not None:
                    rendered.wait()
            self._rows.clear()

    def _frames(
        self, pictures: list[int], *, numbers: Sequence[int] = (), sources: Sequence[int] = ()
    ) -> Frames:
        places = self._render_buffers.tensors["places"]
        write_places(places, index=pictures, numbers=numbers, sources=sources)
        batch = self._render_buffers.next_slot(len(pictures))
        if batch.slot in self._copied:
            self._copied[batch.slot].synchronize()
        return batch

    def _hand_out(self, finished: Tensor, slot: int) -> Rendered:
        if self._copies is None:
            return Rendered(list(finished.clone().split(1)))
        self._copies.wait_stream(torch.cuda.current_stream(finished.device))
        frames = []
        with torch.cuda.stream(self._copies):
            for frame in finished.split(1):  # each on its own, to be freed on its own
                # PyTorch keeps pinned memory that was freed, and hands it out again.
                device = "cpu" if self._on_host else frame.device
                copy = torch.empty_like(frame, device=device, pin_memory=self._on_host)
                frames.append(copy.copy_(frame, non_blocking=True))
            self._copied[slot] = torch.cuda.Event(blocking=True)
            self._copied[slot].record()
        return Rendered(frames, self._copied[slot].synchronize)

    def _knows(self, picture: int) -> bool:
        return picture in self._rows

    def _keep(self, pictures: dict[int, int], finished: Tensor) -> None:
        idle, generated = (
            self._render_buffers.tensors["idle"],
            self._render_buffers.tensors["generated"],
        )
        for picture, row in pictures.items():
            if picture not in self._rows:
                full = len(self._rows) == len(idle)
                free = self._rows.pop(next(iter(self._rows))) if full else len(self._rows)
                self._rows[picture] = free
                idle[free].copy_(generated[row])

    def _idle(self, pictures: list[int]) -> Rendered:
        tensors = self._render_buffers.tensors
        for picture in dict.fromkeys(pictures):  # two sessions may show the same one
            self._rows[picture] = self._rows.pop(picture)
        rows = [self._rows[picture] for picture in pictures]
        copy_to_device(torch.tensor(rows), tensors["idle rows"])
        batch = self._frames(pictures)
        size = len(batch.index)
        kept, idle_rows, out = (
            tensors["idle"], tensors["idle rows"][:size], tensors["generated"][:size]
        )  # fmt: skip
        finished, _ = self._pipeline.finish(
            self._render_buffers,
            batch,
            len(pictures),
            self._mode,
            self._stopwatch,
            generate=Part("kept mouths", lambda: torch.index_select(kept, 0, idle_rows, out=out)),
        )
        return self._hand_out(finished, batch.slot)
