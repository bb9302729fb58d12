"""Training data without a person, and a training on it: for tests with and without a GPU."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import kernels
from train.batches import batches
from train.checkpoint import write_checkpoint
from train.data import Speech
from train.training import Training

CPU = torch.device("cpu")


class SyntheticData:
    """One speech whose mouth shapes and images are functions of the frame."""

    name, mouth = "synthetic", (0.25, 0.25, 0.75, 0.75)

    def __init__(self, speech: Tensor):
        self.speeches = [Speech(speech, kernels.FPS)]
        frames = torch.arange(self.speeches[0].frames)
        self.train = self.held_out = torch.stack([torch.zeros_like(frames), frames], dim=1)
        self.shapes = [torch.stack([torch.sin(frames / 3), torch.cos(frames / 5)], dim=1)]

    def images(self, speech, frame, random):
        inputs = torch.from_numpy(random.integers(0, 200, (6, 320, 320), np.uint8))
        return inputs, inputs[:3] + frame % 50


def train_to_end(
    training: Training, data: SyntheticData, save_at: Iterable[int] = (), folder: Path | None = None
) -> list[float]:
    """Do the steps that are left and return their losses.

    Before a step in `save_at`, folder/STEP.pth is written.
    """
    losses = []
    for batch in batches(data, training.config, training.step):
        if training.step in save_at:
            write_checkpoint(folder / f"{training.step}.pth", training.state_dict())
        losses.append(training.train_step(batch))
    return losses
