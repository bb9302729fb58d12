"""Take speech from a file or a tensor, and check that it can be rendered."""

import os

import torch
from torch import Tensor

import kernels

from .errors import InputError


def load_pcm(speech: str | os.PathLike[str] | Tensor, *, track: int | None = None) -> Tensor:
    """Read speech from a file, or take it as PCM, and check that it can be rendered.

    Args:
        speech: an audio or video file, or (S,) float32 at 16 kHz.
        track: the audio track of a file, as in `read_speech`.

    Returns:
        (S,) float32 at 16 kHz.

    Raises:
        InputError: it cannot be read, is shorter than one mel window (3000 samples), or has a
            sample that is not finite.
    """
    name = "speech" if isinstance(speech, Tensor) else speech
    if isinstance(speech, Tensor):
        pcm = speech
    else:
        from .media.speech import read_speech  # late, because PCM needs no FFmpeg

        pcm = read_speech(speech, track=track)
    if pcm.ndim != 1 or pcm.dtype != torch.float32:
        raise InputError(f"{name} is {tuple(pcm.shape)} {pcm.dtype}; expected (S,) torch.float32")
    if pcm.numel() < kernels.MIN_SAMPLES:
        raise InputError(
            f"{name} is too short: {pcm.numel()} samples at 16 kHz "
            f"({pcm.numel() / kernels.SAMPLE_RATE:.3f} s); expected at least "
            f"{kernels.MIN_SAMPLES} ({kernels.MIN_SAMPLES / kernels.SAMPLE_RATE:.2f} s)"
        )
    finite = torch.isfinite(pcm)
    if not finite.all():
        sample = int((~finite).nonzero()[0])
        raise InputError(f"{name}: sample {sample} is {pcm[sample]}; expected a finite value")
    return pcm
