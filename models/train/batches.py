"""Batches, each a function of the seed and its step: a training that goes on sees the same ones."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import kernels

from .recording import Recording

SEGMENT = 24  # video frames that listening hears in a row: they share most of their mel windows
STRIDE = 3  # of which every third is asked for; neighbours look alike


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        windows: (n, k, 1, 80, 16) float32 mel windows of n stretches of speech.
        inside: (n, k) float32, 0 where a stretch reaches beyond its speech.
        inputs, target: (n, 6, 320, 320) and (n, 3, 320, 320) uint8; None while listening.
        shapes: (n, frames, k) float32, the mouth's shapes in the frames that the stretches are of;
            None where they are not known.
    """

    windows: Tensor
    inside: Tensor
    inputs: Tensor | None = None
    target: Tensor | None = None
    shapes: Tensor | None = None


def seen(recording: Recording, chosen: Tensor, random: np.random.Generator) -> Batch:
    """Video frames `chosen` ((n, 2): speech and frame) with what each hears."""
    parts = []
    for speech, frame in chosen.tolist():
        sound = recording.speeches[speech].heard(frame, 1)
        shapes = () if recording.shapes is None else (recording.shapes[speech][frame : frame + 1],)
        parts.append((*sound, *recording.pictures(speech, frame, random), *shapes))
    return Batch(*map(torch.stack, zip(*parts, strict=True)))


def heard(recording: Recording, chosen: Tensor) -> Batch:
    """Stretches of SEGMENT video frames that begin near `chosen`, with the mouth's shapes."""
    parts = []
    for number, frame in chosen.tolist():
        speech, shapes = recording.speeches[number], recording.shapes[number]
        # a speech shorter than a stretch is followed by the silence that is heard there
        first = max(min(frame - SEGMENT // 2, speech.frames - SEGMENT), 0)
        wanted = torch.arange(first, first + SEGMENT, STRIDE).clamp(max=speech.frames - 1)
        parts.append((*speech.heard(first, SEGMENT), shapes[wanted]))
    windows, inside, shapes = map(torch.stack, zip(*parts, strict=True))
    return Batch(windows, inside, shapes=shapes)


class _Batches(Dataset):
    def __init__(
        self, recording: Recording, seed: int, listening: range, size: int, stretches: int
    ):
        self._recording, self._seed, self._listening = recording, seed, listening
        self._size, self._stretches = size, stretches

    def __getitem__(self, step: int) -> Batch:
        random = np.random.default_rng([self._seed, step])
        frames = self._recording.train
        listening = step in self._listening
        count = self._stretches if listening else self._size
        chosen = frames[torch.from_numpy(random.integers(len(frames), size=count))]
        if listening:
            return heard(self._recording, chosen)
        return seen(self._recording, chosen, random)


def batches(
    recording: Recording, *, seed: int, steps: range, listening: range, size: int, stretches: int
) -> Iterator[Batch]:
    """The batches of `steps`, made ahead of time by another process.

    size, stretches: of a batch that sees, and of one that only hears (the steps `listening`).
    """
    loader = DataLoader(
        _Batches(recording, seed, listening, size, stretches),
        batch_size=None,
        sampler=list(steps),
        num_workers=1,
        prefetch_factor=3,
        multiprocessing_context="fork",  # the recording is there already, and only read
    )
    # What is garbage here must not be collected there: a video's decoder waits for its threads,
    # which did not come along.
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def feature_windows(features: Tensor, inside: Tensor, stride: int = 1) -> Tensor:
    """What the generator hears, through which gradients flow (`kernels.feature_windows` is for
    speech whose features are all there).

    Args:
        features: (n, k, 512), of n stretches of k consecutive rows of P, k >= 16.
        inside: (n, k), 0 for rows that count as zeros.
        stride: every which of the n * (k - 15) windows is wanted.

    Returns:
        (n * ceil((k - 15) / stride), 32, 16, 16).
    """
    rows = features * inside[..., None].to(features.dtype)
    windows = rows.unfold(1, kernels.FEATURE_WINDOW, stride).transpose(2, 3)
    return windows.reshape(-1, 32, 16, 16)
