"""A recording that is made of nothing, and its training: for tests with and without a GPU."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import kernels
from train.batches import batches
from train.plan import Plan
from train.recording import Speech
from train.training import Training

CPU = torch.device("cpu")


class Known:
    """A recording of one speech whose mouth shapes and pictures are functions of the frame."""

    name, mouth = "known", (0.25, 0.25, 0.75, 0.75)

    def __init__(self, speech: torch.Tensor):
        self.speeches = [Speech(speech, kernels.FPS)]
        frames = torch.arange(self.speeches[0].frames)
        self.train = self.held_out = torch.stack([torch.zeros_like(frames), frames], dim=1)
        self.shapes = [torch.stack([torch.sin(frames / 3), torch.cos(frames / 5)], dim=1)]

    def pictures(self, speech, frame, random):
        inputs = torch.from_numpy(random.integers(0, 200, (6, 320, 320), np.uint8))
        return inputs, inputs[:3] + frame % 50


def run(training: Training, save_at: Iterable[int] = (), folder: Path | None = None) -> list[float]:
    """The losses of the steps that are left; before a step in `save_at`, folder/STEP.pth."""
    losses = []
    for batch in batches(training.recorded, training.plan, training.step):
        if training.step in save_at:
            training.save(folder / f"{training.step}.pth")
        losses.append(training.learn(batch))
    return losses


def begun(plan: Plan, known: Known, device: torch.device = CPU) -> Training:
    training = Training(plan, known, device)
    training.recorded = known
    return training
