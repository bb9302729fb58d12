"""Features and frames for the scheduler, on a CPU."""

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

import kernels

from ..pipeline import Pipeline
from .features import SILENT
from .scheduler import Job

IDLE_BYTES = 128 << 20  # memory for the boxes of frames in which nobody speaks


class CpuRenderer:
    """Makes features and frames with a pipeline's networks.

    The mouth of a frame in which nobody speaks depends on the avatar's frame alone. Its face box is
    generated once and then copied: the same bits, at the cost of reading the frame.

    Args:
        pipeline: the networks and the avatar.
        mode: how the mouth is pasted, see `kernels.composite`.

    Attributes:
        silence: (512,) the feature of a silent window.
    """

    def __init__(self, pipeline: Pipeline, *, mode: kernels.CompositeMode = "crop"):
        self._pipeline, self._mode, self.batch_size = pipeline, mode, pipeline.batch_size
        shape = (1, 1, kernels.MEL_BANDS, kernels.MEL_WINDOW_ROWS)
        self.silence = self.encode(np.full(shape, SILENT, np.float32))[0]
        self._silent_audio = np.tile(self.silence, (kernels.FEATURES_PER_FRAME, 1)).reshape(
            32, 16, 16
        )
        self._idle: OrderedDict[int, Tensor] = OrderedDict()
        self._idle_bytes = 0

    def encode(self, windows: np.ndarray) -> np.ndarray:
        out = torch.empty(len(windows), kernels.FEATURE_DIM)
        return self._pipeline.audio_encoder(torch.from_numpy(windows), out=out).numpy()

    def render(self, jobs: list[Job]) -> list[Tensor]:
        known = [job.audio is None and job.picture in self._idle for job in jobs]
        generated = self._generate([job for job, k in zip(jobs, known, strict=True) if not k])
        copied = self._copy([job.picture for job, k in zip(jobs, known, strict=True) if k])
        frames = []
        for job, is_known in zip(jobs, known, strict=True):
            frame = (copied if is_known else generated).pop(0)
            if job.audio is None and not is_known:
                self._keep(job.picture, frame)
            frames.append(frame)
        return frames

    def _generate(self, jobs: list[Job]) -> list[Tensor]:
        if not jobs:
            return []
        pipeline = self._pipeline
        windows = [self._silent_audio if job.audio is None else job.audio for job in jobs]
        audio = torch.from_numpy(np.stack(windows))
        frames, boxes, index = pipeline.avatar.batch([job.picture for job in jobs])
        inputs, crops = kernels.face_input(frames, boxes, index, dtype=pipeline.generator.dtype)
        generated = torch.empty(
            len(jobs), 3, kernels.ROI_SIZE, kernels.ROI_SIZE, dtype=inputs.dtype
        )
        pipeline.generator(inputs, audio, out=generated)
        kernels.composite(frames, boxes, index, crops, generated, mode=self._mode, out=frames)
        return list(frames.split(1))

    def _copy(self, pictures: list[int]) -> list[Tensor]:
        if not pictures:
            return []
        frames, _, _ = self._pipeline.avatar.batch(pictures)
        for frame, picture in zip(frames, pictures, strict=True):
            self._box(frame, picture)[...] = self._idle[picture]
            self._idle.move_to_end(picture)
        return list(frames.split(1))

    def _keep(self, picture: int, frame: Tensor) -> None:
        if picture in self._idle:
            return
        self._idle[picture] = self._box(frame[0], picture).clone()
        self._idle_bytes += self._idle[picture].numel()
        while self._idle_bytes > IDLE_BYTES and len(self._idle) > 1:
            self._idle_bytes -= self._idle.popitem(last=False)[1].numel()

    def _box(self, frame: Tensor, picture: int) -> Tensor:
        x0, y0, x1, y1 = self._pipeline.avatar.boxes[picture].tolist()
        return frame[max(y0, 0) : y1, max(x0, 0) : x1]
