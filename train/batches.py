"""Batches. Each is a function of the seed and the step, so a resumed training gets the same."""

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import kernels

from .config import TrainConfig
from .data import MouthBox, TrainingData

CLIP_FRAMES = 24  # video frames of an audio clip, which share most of their mel windows
CLIP_STRIDE = 3  # the shape of every third frame is predicted, because neighbours are alike
CELL = 32  # pixels of the ROI, in each direction, per cell of the generator's narrowest layer
CELLS = kernels.ROI_SIZE // CELL
RANDOM_CROP_EVERY = 4  # every fourth crop is from a random place instead of the mouth


@dataclass(frozen=True)
class AudioBatch:
    """The batch of a pretraining step: n audio clips.

    Attributes:
        windows: (n, k, 1, 80, 16) float32 mel windows of the clips.
        valid: (n, k) float32, 0 for windows beyond the speech and 1 for the others.
        shapes: (n, frames, shapes) float32 mouth shapes of every third frame of the clips.
    """

    windows: Tensor
    valid: Tensor
    shapes: Tensor


@dataclass(frozen=True)
class ImageBatch:
    """The batch of a step on images: n video frames, as whole ROIs or as crops of them.

    Attributes:
        windows: (n, 16, 1, 80, 16) float32 mel windows of the frames.
        valid: (n, 16) float32, 0 for windows beyond the speech and 1 for the others.
        inputs: (n, 6, h, w) uint8 picture input. Crops are a whole number of cells high and wide.
        target: (n, 3, h, w) uint8.
        corners: (n, 2) int64, the first cell (down, across) of each crop; None for whole ROIs.
        shapes: (n, 1, shapes) float32 mouth shapes; None where they are not known.
    """

    windows: Tensor
    valid: Tensor
    inputs: Tensor
    target: Tensor
    corners: Tensor | None = None
    shapes: Tensor | None = None


Batch: TypeAlias = AudioBatch | ImageBatch


def mouth_cells(mouth: MouthBox) -> tuple[int, int, int, int]:
    """Return the cells that cover the mouth: first row, first column, rows, columns."""
    left, top = (math.floor(CELLS * part) for part in mouth[:2])
    right, bottom = (math.ceil(CELLS * part) for part in mouth[2:])
    return top, left, bottom - top, right - left


def crop(images: Tensor, corners: Tensor, height: int, width: int) -> Tensor:
    """Return the crop (n, c, height, width) of images (n, c, y, x) at each one's corner (n, 2)."""
    pairs = zip(images, corners.tolist(), strict=True)
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in pairs])


def audio_batch(data: TrainingData, chosen: Tensor) -> AudioBatch:
    """Make a batch of audio clips.

    Args:
        data: training data with known mouth shapes.
        chosen: (n, 2) int64, speech and video frame. A clip has its frame in the middle, but for
            clips at the ends of a speech.
    """
    if data.shapes is None:
        raise ValueError(f"{data.name} has no mouth shapes; expected data with known shapes")
    parts = []
    for number, frame in chosen.tolist():
        speech, shapes = data.speeches[number], data.shapes[number]
        # The windows of a clip longer than its speech are continued with silence.
        first = max(min(frame - CLIP_FRAMES // 2, speech.frames - CLIP_FRAMES), 0)
        frames = torch.arange(first, first + CLIP_FRAMES, CLIP_STRIDE).clamp(max=speech.frames - 1)
        parts.append((*speech.windows_of(first, CLIP_FRAMES), shapes[frames]))
    return AudioBatch(*map(torch.stack, zip(*parts, strict=True)))


def image_batch(
    data: TrainingData, chosen: Tensor, random: np.random.Generator, *, crops: bool = False
) -> ImageBatch:
    """Make a batch of video frames.

    Args:
        data: training data.
        chosen: (n, 2) int64, speech and video frame.
        random: chooses references and places of crops.
        crops: take crops of the mouth, and every fourth from a random place, instead of whole ROIs.
    """
    parts = []
    for speech, frame in chosen.tolist():
        audio = data.speeches[speech].windows_of(frame, 1)
        parts.append((*audio, *data.images(speech, frame, random)))
    windows, valid, inputs, target = map(torch.stack, zip(*parts, strict=True))
    corners = shapes = None
    if crops:
        top, left, rows, columns = mouth_cells(data.mouth)
        corners = torch.tensor([[top, left]]).repeat(len(chosen), 1)
        for corner in corners[RANDOM_CROP_EVERY - 1 :: RANDOM_CROP_EVERY]:
            corner[0] = int(random.integers(CELLS - rows + 1))
            corner[1] = int(random.integers(CELLS - columns + 1))
        size = CELL * rows, CELL * columns
        inputs, target = (crop(images, CELL * corners, *size) for images in (inputs, target))
    if data.shapes is not None:
        shapes = torch.stack([data.shapes[s][f : f + 1] for s, f in chosen.tolist()])
    return ImageBatch(windows, valid, inputs, target, corners, shapes)


class _Batches(Dataset[Batch]):
    def __init__(self, data: TrainingData, config: TrainConfig):
        self._data, self._config = data, config
        _, _, rows, columns = mouth_cells(data.mouth)
        self._crops = config.batch * (CELLS**2 // (rows * columns))  # about as many pixels a step

    def __getitem__(self, step: int) -> Batch:
        config, examples = self._config, self._data.train
        random = np.random.default_rng([config.seed, step])
        audio_phase, crops = step < config.audio_steps, step < config.first_whole_step
        count = config.audio_clips if audio_phase else self._crops if crops else config.batch
        chosen = examples[torch.from_numpy(random.integers(len(examples), size=count))]
        if audio_phase:
            return audio_batch(self._data, chosen)
        return image_batch(self._data, chosen, random, crops=crops)


def batches(data: TrainingData, config: TrainConfig, first: int = 0) -> Iterator[Batch]:
    """Iterate over the batches of the steps from `first` on, made ahead by another process."""
    loader: DataLoader[Batch] = DataLoader(
        _Batches(data, config),
        batch_size=None,
        sampler=list(range(first, config.total_steps)),
        num_workers=1,
        prefetch_factor=3,
        multiprocessing_context="fork",  # shares the data, which is in memory and only read
    )
    # Collect garbage before forking. A video decoder finalized in the child would wait for threads
    # that do not exist there.
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def feature_windows(features: Tensor, valid: Tensor, stride: int = 1) -> Tensor:
    """Make the generator's audio input of the features of clips.

    Unlike `kernels.feature_windows`, which takes the features of a whole speech, this passes
    gradients.

    Args:
        features: (n, k, 512), k >= 16 consecutive rows of P for each of n clips.
        valid: (n, k), 0 for rows that count as zeros and 1 for the others.
        stride: step between the windows of a clip.

    Returns:
        (n * ceil((k - 15) / stride), 32, 16, 16).
    """
    rows = features * valid[..., None].to(features.dtype)
    windows = rows.unfold(1, kernels.FEATURES_PER_FRAME, stride).transpose(2, 3)
    return windows.reshape(-1, 32, 16, 16)
