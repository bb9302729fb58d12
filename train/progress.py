"""Progress on held-out frames: figures, and a contact sheet."""

from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kernels

from .batches import AudioBatch, audio_batch, image_batch
from .data import TrainingData
from .losses import psnr
from .training import Training

IMAGE_SAMPLES = 16  # held-out frames that every checkpoint is evaluated on
AUDIO_SAMPLES = 32  # held-out audio clips
COLUMNS = 8  # frames in the contact sheet
TILE_SIZE = 160  # pixels of an image in it

Figures: TypeAlias = dict[str, float | list[float]]


class HeldOut:
    """Evaluation on frames that are not trained on, the same ones for every checkpoint."""

    def __init__(self, data: TrainingData, seed: int):
        examples = data.held_out
        chosen = examples[_spread(IMAGE_SAMPLES, len(examples))]
        self._images = image_batch(data, chosen, np.random.default_rng([seed]))
        self._audio: AudioBatch | None = None
        if data.shapes is not None:
            self._audio = audio_batch(data, examples[_spread(AUDIO_SAMPLES, len(examples))])
        x0, y0, x1, y1 = (round(kernels.ROI_SIZE * part) for part in data.mouth)
        self._mouth = slice(None), slice(None), slice(y0, y1), slice(x0, x1)

    def evaluate_audio(self, training: Training) -> Figures:
        """Return the error and the correlation of predicted mouth shapes; {} without known ones."""
        if self._audio is None:
            return {}
        output = training.predict_shapes(self._audio).flatten(0, 1)
        shapes = self._audio.shapes.flatten(0, 1)
        return {
            "held_out_shape_error": float((output - shapes).abs().mean()),
            "held_out_shape_correlation": [
                round(float(torch.corrcoef(torch.stack(pair))[0, 1]), 4)
                for pair in zip(output.T, shapes.T, strict=True)
            ],
        }

    def evaluate_images(self, training: Training) -> tuple[Figures, Image.Image]:
        """Return the error of the output, and a contact sheet.

        The sheet has a row of references, a row of targets and a row of outputs.
        """
        inputs, target = self._images.inputs / 255, self._images.target / 255
        output = training.predict(self._images)
        error = output - target
        figures: Figures = {
            "held_out_l1": float(error.abs().mean()),
            "held_out_psnr": psnr(error),
            "held_out_mouth_psnr": psnr(error[self._mouth]),
        }
        shown = _spread(COLUMNS, len(output))
        return figures, _sheet([images[shown] for images in (inputs[:, :3], target, output)])


def _spread(count: int, length: int) -> Tensor:
    """Return up to `count` indices of `length` elements, evenly spaced."""
    return torch.linspace(0, length - 1, min(count, length)).long()


def _sheet(rows: list[Tensor]) -> Image.Image:
    """Draw rows of (n, 3, 320, 320) planes B, G, R in [0, 1] as small tiles."""
    images = torch.stack(rows)[:, :, [2, 1, 0]].permute(0, 3, 1, 4, 2)  # rows, y, n, x, RGB
    r, y, n, x, _ = images.shape
    pixels = (images.reshape(r * y, n * x, 3) * 255).round().clamp(0, 255).to(torch.uint8)
    size = n * TILE_SIZE, r * TILE_SIZE
    return Image.fromarray(pixels.numpy()).resize(size, Image.Resampling.BOX)
