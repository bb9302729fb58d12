"""Batches, each a function of the seed and its step: a training that goes on sees the same ones."""

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import kernels

from .plan import Plan
from .recording import Recording

SEGMENT = 24  # video frames that listening hears in a row: they share most of their mel windows
STRIDE = 3  # of which every third is asked for; neighbours look alike
# Pixels of a ROI, across and down, at a place of the generator's narrowest layer.
CELL = 32
CELLS = kernels.ROI_SIZE // CELL
ELSEWHERE = 4  # every which close-up is of another part of the ROI than the mouth


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        windows: (n, k, 1, 80, 16) float32 mel windows of n stretches of speech.
        inside: (n, k) float32, 0 where a stretch reaches beyond its speech.
        inputs, target: (n, 6, 320, 320) and (n, 3, 320, 320) uint8, or close-ups of them, each a
            whole number of cells high and wide; None while listening.
        corners: (n, 2) int64, the cells (down, across) in which close-ups begin; None for whole
            pictures.
        shapes: (n, frames, k) float32, the mouth's shapes in the frames that the stretches are of;
            None where they are not known.
    """

    windows: Tensor
    inside: Tensor
    inputs: Tensor | None = None
    target: Tensor | None = None
    corners: Tensor | None = None
    shapes: Tensor | None = None


def mouth_cells(mouth: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """The cells that a mouth (x0, y0, x1, y1 as parts of the ROI) lies in: the first ones down and
    across, how many down and across."""
    left, top = (math.floor(CELLS * part) for part in mouth[:2])
    right, bottom = (math.ceil(CELLS * part) for part in mouth[2:])
    return top, left, bottom - top, right - left


def cut(pictures: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Of each of (n, c, y, x), the part (c, height, width) that begins at its corner (n, 2)."""
    parts = zip(pictures, corners.tolist(), strict=True)
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in parts])


def seen(
    recording: Recording, chosen: Tensor, random: np.random.Generator, *, close: bool = False
) -> Batch:
    """Video frames `chosen` ((n, 2): speech and frame) with what each hears: whole pictures, or
    close-ups of the mouth, with some of elsewhere among them."""
    parts = []
    for speech, frame in chosen.tolist():
        sound = recording.speeches[speech].heard(frame, 1)
        parts.append((*sound, *recording.pictures(speech, frame, random)))
    windows, inside, inputs, target = map(torch.stack, zip(*parts, strict=True))
    corners = shapes = None
    if close:
        top, left, height, width = mouth_cells(recording.mouth)
        corners = torch.tensor([[top, left]]).repeat(len(chosen), 1)
        for corner in corners[ELSEWHERE - 1 :: ELSEWHERE]:
            corner[0] = int(random.integers(CELLS - height + 1))
            corner[1] = int(random.integers(CELLS - width + 1))
        side = CELL * height, CELL * width
        inputs, target = (cut(pictures, CELL * corners, *side) for pictures in (inputs, target))
    if recording.shapes is not None:
        shapes = torch.stack([recording.shapes[s][f : f + 1] for s, f in chosen.tolist()])
    return Batch(windows, inside, inputs, target, corners, shapes)


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
    def __init__(self, recording: Recording, plan: Plan):
        self._recording, self._plan = recording, plan
        _, _, height, width = mouth_cells(recording.mouth)
        self._close_ups = plan.batch * (CELLS**2 // (height * width))  # as many pixels a step

    def __getitem__(self, step: int) -> Batch:
        plan, frames = self._plan, self._recording.train
        random = np.random.default_rng([plan.seed, step])
        listening, close = step < plan.listen, step < plan.whole_from
        count = plan.stretches if listening else self._close_ups if close else plan.batch
        chosen = frames[torch.from_numpy(random.integers(len(frames), size=count))]
        if listening:
            return heard(self._recording, chosen)
        return seen(self._recording, chosen, random, close=close)


def batches(recording: Recording, plan: Plan, begin: int = 0) -> Iterator[Batch]:
    """The batches of a plan's steps from `begin` on, made ahead of time by another process."""
    loader = DataLoader(
        _Batches(recording, plan),
        batch_size=None,
        sampler=list(range(begin, plan.end)),
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
    windows = rows.unfold(1, kernels.FEATURES_PER_FRAME, stride).transpose(2, 3)
    return windows.reshape(-1, 32, 16, 16)
