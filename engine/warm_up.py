"""Run once what a render runs outside its CUDA graphs, so that no speech waits for a compiler."""

import torch

import kernels

from .device.buffers import RenderBuffers
from .device.stopwatch import Stopwatch
from .feature_ring import FeatureRing

# Of speech; the kernel of `log_mel` has a variant for up to 6.4 s and one for more.
SECONDS = 1, 10


def warm_up_speech(buffers: RenderBuffers, fps: float) -> None:
    """Run the stages before the networks on silence, and pin the memory that a render pins.

    Call it after the graphs are captured, because a capture frees pinned memory that is not in use.
    """
    tensors = buffers.tensors
    device = tensors["audio"].device
    for seconds in SECONDS:
        total = seconds * kernels.FPS
        buffers.start([0] * total)
        (pcm,) = buffers.executor.upload(torch.zeros(seconds * kernels.SAMPLE_RATE))
        mel = kernels.log_mel(pcm)
        kernels.mel_windows(mel, fps=fps, start=0, count=1, out=tensors["windows"][:1])
        FeatureRing(tensors["features"][0], first=0, count=1).append(tensors["encoded"][:1])
        buffers.next_frames(1, Stopwatch.off(device))
        # The ranges of `OutputCheck`, all at once, because PyTorch keeps pinned memory that is
        # freed.
        ranges = [tensors[name][0] for name in ("encoded ranges", "generated ranges")]
        pinned = device.type == "cuda"
        _ = [torch.empty(total, *r.shape, dtype=r.dtype, pin_memory=pinned) for r in ranges]
