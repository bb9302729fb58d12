"""Batches of an avatar's frames on its device."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import kernels

from ..device.batch_sizes import ENCODER_BATCH_SIZES
from ..device.buffers import RING, Frames, HostBuffers, RenderBuffers, ring_shapes, write_places
from ..device.host_copy import copy_to_device
from ..device.stopwatch import Stopwatch
from ..errors import InputError
from ..pipeline import Pipeline
from .audio import mel_windows
from .job import Job, Span
from .layout import is_planar

AUDIO_STAGES = ("log_mel", "audio encoder")
INFERENCE_STAGES = ("faces", "face_input", "generator")
COMPOSITE_STAGES = ("frames", "composite")


@dataclass
class Made:
    """A batch that is made, or being made on a GPU.

    Attributes:
        number: counts from 0.
        spans: whose frames they are, in order.
        frames: (n, H, W, 3) uint8 RGB.
        wait: waits until they are there; None if they are.
        stopwatch: what the stages took; complete once they are there.
        release: lets another batch take their place.
    """

    number: int
    spans: list[Span]
    frames: Tensor
    wait: Callable[[], object] | None
    stopwatch: Stopwatch
    release: Callable[[], object]


class BatchMaker:
    """Runs the networks on frames of any requests. For one thread.

    On a GPU it has buffers and CUDA graphs of its own, so that renders and live sessions go on.

    Args:
        pipeline: the networks and the avatar.
        on_host: whether frames of a GPU are copied to pinned memory of the host.

    Raises:
        DeviceError: the buffers do not fit the GPU.
    """

    def __init__(self, pipeline: Pipeline, *, on_host: bool):
        avatar, most = pipeline.avatar, pipeline.batch_size
        self._pipeline, self._avatar, self._on_host = pipeline, avatar, on_host
        self.batch_size = most
        self._cuda = pipeline.device.type == "cuda"
        self._stream = torch.cuda.Stream(pipeline.device) if self._cuda else None
        self._copies = torch.cuda.Stream(pipeline.device) if self._cuda else None
        self._aside = torch.cuda.Stream(pipeline.device) if self._cuda else None
        shapes = pipeline.buffer_shapes()
        shapes["audio rows"] = ((most * kernels.FEATURES_PER_FRAME,), torch.int64)
        self._ring: RenderBuffers | None = None
        with torch.cuda.stream(self._stream):
            if avatar.frames_on_device:
                shapes |= ring_shapes(most, avatar.height, avatar.width)
                self._ring = RenderBuffers(
                    shapes,
                    avatar.frames,
                    avatar.boxes,
                    masks=avatar.masks,
                    graph_bytes=pipeline.graph_bytes,
                )
            self._zeros = torch.zeros(
                1, kernels.FEATURE_DIM, dtype=pipeline.generator.dtype, device=pipeline.device
            )
        self._buffers: RenderBuffers | HostBuffers = self._ring or HostBuffers(shapes)
        self._free = [threading.Event() for _ in range(RING)]
        for free in self._free:
            free.set()
        self._begun: deque[torch.cuda.Event] = deque()
        self.made = 0  # batches
        if self._ring is not None:
            self._warm_up(self._ring)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the GPU that the buffers take; 0 on a CPU."""
        return self._ring.bytes if self._ring is not None and self._cuda else 0

    def wait(self) -> None:
        """Wait until no more than one batch is being made on a GPU, so that requests that come
        meanwhile share the next one."""
        while len(self._begun) > 1:
            self._begun.popleft().synchronize()

    def wait_for_all(self) -> None:
        """Wait until all batches have been released."""
        for free in self._free:
            free.wait()

    def begin(self, jobs: list[Job], stopwatch: Stopwatch) -> None:
        """Find out how the faces of requests lie, and compute their features. A request that fails
        has the error."""
        for job in jobs:
            faces = job.request.faces
            if faces is not None:
                try:
                    planar = job.request.layout == "planar" or (
                        job.request.layout == "auto"
                        and job.count > 1
                        and is_planar(faces, self._own_faces(job))
                    )
                    job.lay_out(planar)
                except InputError as error:
                    job.fail(error)
        with self._on_stream():
            self._encode_audio([job for job in jobs if not job.over], stopwatch)

    def make(self, spans: list[Span], stopwatch: Stopwatch) -> Made:
        """Make frames of requests that have begun, at most `batch_size`, all with faces or all
        without.

        Raises:
            InputError: a frame cannot be decoded, or a network fails.
        """
        number, self.made = self.made, self.made + 1
        n = sum(map(len, spans))
        given = spans[0].job.request.faces is not None
        pictures = [
            (span.job.start + frame) % len(self._avatar)
            for span in spans
            for frame in range(span.first, span.stop)
        ]
        with self._on_stream():
            batch = self._frames(pictures, number, stopwatch)
            free = self._free[batch.slot]
            free.wait()
            free.clear()
            try:
                self._gather(spans, n)
                if given:
                    with stopwatch.stage("faces"):
                        self._upload_faces(spans, n)
                frames, ranges = self._pipeline.finish(
                    self._buffers, batch, n, "direct" if given else "crop", stopwatch,
                    windows=False, face_input=not given,
                )  # fmt: skip
                first = 0
                for span in spans:
                    rows = slice(first, first + len(span))
                    try:
                        span.job.check_frames(ranges[rows])
                    except InputError as error:  # of this request only
                        span.job.fail(error)
                    first = rows.stop
                frames, wait = self._on_its_way(frames)
            except BaseException:
                free.set()
                raise
        return Made(number, spans, frames, wait, stopwatch, free.set)

    def _on_stream(self) -> Any:
        """Return the context of work on the device."""
        if self._stream is None:
            return nullcontext()
        return self._on_cuda_stream()

    @contextmanager
    def _on_cuda_stream(self) -> Any:
        with torch.cuda.stream(self._stream), self._buffers.executor.on_current_stream():
            yield

    def _own_faces(self, job: Job) -> np.ndarray:
        """Return the generator's input made of the avatar's first two frames of a request."""
        numbers = [(job.start + i) % len(self._avatar) for i in range(2)]
        with torch.cuda.stream(self._aside):  # waits for no batch
            inputs, _ = kernels.face_input(*self._avatar.batch(numbers))
            return inputs.cpu().numpy()

    def _encode_audio(self, jobs: list[Job], stopwatch: Stopwatch) -> None:
        """Compute the features of requests, those of several in a call of the audio encoder."""
        dtype, upload = self._pipeline.generator.dtype, self._buffers.executor.upload
        owners: list[Job] = []  # of the windows
        parts: list[Tensor] = []
        for job in jobs:
            (first, stop, _), request = job.feature_rows, job.request
            if request.speech is None:
                assert request.audio is not None
                own = torch.from_numpy(request.audio.reshape(-1, kernels.FEATURE_DIM).copy())
                job.features = upload(own)[0].to(dtype)
            elif stop > first:
                with stopwatch.stage("log_mel"):
                    parts.append(mel_windows(request.speech, first, stop, upload))
                owners += [job] * (stop - first)
            else:
                job.features = self._zeros[:0]
        if not parts:
            return
        windows, encoded = torch.cat(parts), []
        for part in windows.split(ENCODER_BATCH_SIZES[-1]):
            m = len(part)
            self._buffers.tensors["windows"][:m].copy_(part)
            features, ranges = self._pipeline.encode(self._buffers, m, stopwatch)
            encoded.append(features.to(dtype, copy=True))
            first = sum(map(len, encoded)) - m
            for job in dict.fromkeys(owners[first : first + m]):
                mine = [row for row in range(m) if owners[first + row] is job]
                rows = slice(mine[0], mine[-1] + 1)
                try:
                    job.check_features(ranges[rows])
                except InputError as error:
                    job.fail(error)
        found = torch.cat(encoded)
        for job in dict.fromkeys(owners):
            count = job.feature_rows.stop - job.feature_rows.first
            job.features, found = found[:count], found[count:]

    def _gather(self, spans: list[Span], n: int) -> None:
        """Write the feature windows of a batch into its buffer."""
        table, rows, place = [self._zeros], [], 1
        for span in spans:
            features = span.job.features
            assert features is not None
            mine = span.job.feature_rows.rows[span.first : span.stop]
            rows.append(np.where(mine > 0, mine + place - 1, 0))
            table.append(features)
            place += len(features)
        tensors, wanted = self._buffers.tensors, torch.from_numpy(np.concatenate(rows).ravel())
        index = copy_to_device(wanted, tensors["audio rows"])
        audio = tensors["audio"][:n].view(-1, kernels.FEATURE_DIM)
        torch.index_select(torch.cat(table), 0, index, out=audio)

    def _upload_faces(self, spans: list[Span], n: int) -> None:
        """Write the clients' pictures of a batch into the generator's input."""
        inputs = self._buffers.tensors["inputs"][:n]
        # PyTorch keeps pinned memory that was freed, and hands it out again.
        host = torch.empty(inputs.shape, dtype=torch.float32, pin_memory=self._cuda)
        first = 0
        for span in spans:
            span.job.copy_faces(span.first, host[first : first + len(span)].numpy())
            first += len(span)
        # converted on the device, because the host would take long
        inputs.copy_(self._buffers.executor.upload(host)[0])

    def _frames(self, pictures: list[int], number: int, stopwatch: Stopwatch) -> Frames:
        if self._ring is not None:
            write_places(self._ring.tensors["places"], index=pictures)
            return self._ring.next_slot(len(pictures))
        with stopwatch.stage("frames"):
            frames, boxes, index, masks = self._avatar.masked_batch(pictures)
        return Frames(frames, boxes, index, frames, number % RING, masks=masks)

    def _on_its_way(self, frames: Tensor) -> tuple[Tensor, Callable[[], object] | None]:
        """Return the frames of a batch where they are wanted, and what waits for them."""
        if not self._cuda:
            return frames, None
        made = torch.cuda.Event(blocking=True)
        made.record()
        self._begun.append(made)
        if not self._on_host:
            return frames, made.synchronize
        assert self._copies is not None
        self._copies.wait_event(made)
        with torch.cuda.stream(self._copies):
            copy = torch.empty_like(frames, device="cpu", pin_memory=True)
            copy.copy_(frames, non_blocking=True)
            copied = torch.cuda.Event(blocking=True)
            copied.record()
        return copy, copied.synchronize

    def _warm_up(self, buffers: RenderBuffers) -> None:
        """Capture the graphs of all batch sizes for each place in the ring of finished frames."""
        stopwatch = Stopwatch(self._pipeline.device)
        with self._on_stream():
            for size in reversed(ENCODER_BATCH_SIZES):
                self._pipeline.encode(buffers, size, stopwatch)
            for size in reversed(buffers.batch_sizes):  # the smaller ones fit its memory
                for _ in range(RING):
                    batch = buffers.next_slot(size)
                    self._pipeline.finish(buffers, batch, size, "crop", stopwatch, windows=False)
                    self._pipeline.finish(
                        buffers, batch, size, "direct", stopwatch, windows=False, face_input=False
                    )
