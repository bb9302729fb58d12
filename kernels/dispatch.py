"""Where a stage runs: the Triton kernels on CUDA, plain PyTorch on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from . import reference
from .spec import ByteFormat, ColorFormat, CompositeMode, ResizeMode


class Stages(Protocol):
    """What both implementations provide. They take checked arguments, write `out`, return it."""

    def log_mel(self, pcm: Tensor, lengths: Tensor | None, out: Tensor) -> Tensor: ...

    def mel_windows(
        self, mel: Tensor, fps: float, start: int, dropped: int, out: Tensor
    ) -> Tensor: ...

    def feature_windows(self, features: Tensor, start: int, out: Tensor) -> Tensor: ...

    def ring_feature_windows(
        self, features: Tensor, frames: Tensor, sources: Tensor, out: Tensor
    ) -> Tensor: ...

    def face_input(
        self, frames: Tensor, boxes: Tensor, index: Tensor, inputs: Tensor, crops: Tensor
    ) -> tuple[Tensor, Tensor]: ...

    def composite(
        self, frames: Tensor, boxes: Tensor, index: Tensor, crops: Tensor, generated: Tensor,
        mode: CompositeMode, format: ByteFormat, out: Tensor, masks: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip

    def resize(self, images: Tensor, mode: ResizeMode, out: Tensor) -> Tensor: ...

    def convert_color(
        self, images: Tensor, source: ColorFormat, target: ColorFormat, out: Tensor
    ) -> Tensor: ...


_fused: Stages = reference  # without Triton on this platform, PyTorch does everything everywhere
_interpreted = False
if find_spec("triton"):
    from triton import knobs

    from .fused import stages

    _fused, _interpreted = stages, knobs.runtime.interpret


@contextmanager
def implementation(tensor: Tensor) -> Iterator[Stages]:
    """Choose the stages that run where `tensor` is, and make its GPU the current one."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):  # Triton launches on the current GPU
            yield _fused
    else:
        yield _fused if _interpreted else reference
