"""How a training goes, to look at: a contact sheet of held-out frames, figures, the loss."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kernels
from engine.files import write_whole

from .batches import Batch, heard, seen
from .losses import psnr
from .recording import Recording
from .training import Training

LOOKED_AT = 16  # held-out frames that every checkpoint is measured on
HEARD = 32  # held-out stretches of speech
COLUMNS = 8  # of them in the contact sheet
SIDE = 160  # pixels of a picture in it


class HeldOut:
    """Frames that are not trained on, the same ones at every checkpoint."""

    def __init__(self, recording: Recording, seed: int):
        frames = recording.held_out
        chosen = frames[_evenly(LOOKED_AT, len(frames))]
        self._batch: Batch = seen(recording, chosen, np.random.default_rng([seed]))
        self._heard: Batch | None = None
        if recording.shapes is not None:
            self._heard = heard(recording, frames[_evenly(HEARD, len(frames))])
        x0, y0, x1, y1 = (round(kernels.ROI_SIZE * part) for part in recording.mouth)
        self._mouth = slice(None), slice(None), slice(y0, y1), slice(x0, x1)

    def listen(self, training: Training) -> dict[str, float]:
        """How well the mouth's shapes are heard: the mean error, the mean correlation."""
        guess, shapes = training.guess(self._heard).flatten(0, 1), self._heard.shapes.flatten(0, 1)
        return {
            "held_out_shape_error": float((guess - shapes).abs().mean()),
            "held_out_shape_correlation": [
                round(float(torch.corrcoef(torch.stack(pair))[0, 1]), 4)
                for pair in zip(guess.T, shapes.T, strict=True)
            ],
        }

    def look(self, training: Training) -> tuple[dict[str, float], Image.Image]:
        """Figures of what the networks make of the frames, and the contact sheet: the reference,
        what is wanted, what is made."""
        made = training.show(self._batch)
        error = made - self._batch.target / 255
        figures = {
            "held_out_l1": float(error.abs().mean()),
            "held_out_psnr": psnr(error),
            "held_out_mouth_psnr": psnr(error[self._mouth]),
        }
        evenly = _evenly(COLUMNS, len(made))
        rows = (self._batch.inputs[:, :3] / 255, self._batch.target / 255, made)
        return figures, _sheet([row[evenly] for row in rows])


def _evenly(count: int, length: int) -> Tensor:
    return torch.linspace(0, length - 1, min(count, length)).long()


def _sheet(rows: list[Tensor]) -> Image.Image:
    """Rows of (n, 3, 320, 320) planes B, G, R in [0, 1], small enough to be seen at once."""
    pictures = torch.stack(rows)[:, :, [2, 1, 0]].permute(0, 3, 1, 4, 2)  # rows, y, n, x, RGB
    r, y, n, x, _ = pictures.shape
    pixels = (pictures.reshape(r * y, n * x, 3) * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy()).resize((n * SIDE, r * SIDE), Image.Resampling.BOX)


def write_log(path: Path, log: list[dict], losses: list[float], about: dict) -> None:
    """The figures of every checkpoint and the loss of every step, as JSON."""
    content = {**about, "checkpoints": log, "losses": [round(loss, 6) for loss in losses]}
    write_whole(path, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))


def write_sheet(path: Path, sheet: Image.Image) -> None:
    write_whole(path, lambda partial: sheet.save(partial, "PNG"))
