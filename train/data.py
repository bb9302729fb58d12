"""Training data: speech, the frames that go with it, and the images of each frame."""

import hashlib
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

import kernels

MouthBox: TypeAlias = tuple[float, float, float, float]  # x0, y0, x1, y1 in fractions of the ROI


class Speech:
    """The mel windows of one speech.

    Attributes:
        windows: (M, 1, 80, 16) float32 mel windows.
        frames: N, the number of video frames that a render of this speech has.
    """

    def __init__(self, pcm: Tensor, fps: float):
        """Compute the mel windows.

        Args:
            pcm: (S,) float32 at 16 kHz, at least 3000 samples.
            fps: video frames per second.
        """
        self.windows = kernels.mel_windows(kernels.log_mel(pcm), fps=fps)
        self.frames = kernels.frame_count(len(self.windows))

    def windows_of(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the mel windows of consecutive video frames, which share most of them.

        Row r stands for row first - 8 + r of P in `kernels.feature_windows`.

        Args:
            first: the first video frame.
            count: how many frames.

        Returns:
            windows: (count + 15, 1, 80, 16) float32.
            valid: (count + 15,) float32, 0 for rows beyond the speech and 1 for the others.
        """
        half = kernels.FEATURES_PER_FRAME // 2
        row = torch.arange(first - half, first + count + half - 1)
        valid = (row >= 0) & (row < len(self.windows) + 2)
        return self.windows[(row - 1).clamp(0, len(self.windows) - 1)], valid.float()


class TrainingData(Protocol):
    """One person speaking: speeches, and images of every video frame.

    Attributes:
        name: name of the data, for messages.
        speeches: the speeches; those below are numbered as they are here.
        train: (n, 2) int64, speech and video frame of each training example.
        held_out: (n, 2) int64, the same of the frames that are never trained on.
        mouth: box around the mouth.
        shapes: for each speech the mouth shapes, (N, k) float32 from about -1 to 1; None where
            they are not known.
    """

    name: str
    speeches: list[Speech]
    train: Tensor
    held_out: Tensor
    mouth: MouthBox
    shapes: list[Tensor] | None

    def images(self, speech: int, frame: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the generator's picture input for a video frame, and the target.

        Args:
            speech: number of the speech.
            frame: video frame of the speech.
            random: chooses the reference.

        Returns:
            inputs: (6, 320, 320) uint8, planes B, G, R of the reference and of the masked ROI.
                Divided by 255 they are as `kernels.face_input` makes them.
            target: (3, 320, 320) uint8, planes B, G, R.
        """
        ...


def face_images(frame: Tensor, box: Tensor) -> Tensor:
    """Return the generator's picture input for a frame, with the frame itself as the reference.

    Args:
        frame: (H, W, 3) uint8 RGB.
        box: (4,) int32 face box.

    Returns:
        (6, 320, 320) uint8, planes B, G, R of the ROI and of the ROI with a masked mouth.
    """
    inputs, _ = kernels.face_input(frame[None], box[None], torch.zeros(1, dtype=torch.int64))
    return (inputs[0] * 255).round().to(torch.uint8)


def fingerprint(data: TrainingData) -> str:
    """Return a hash of the speech and of the choice of training frames."""
    digest = hashlib.sha256(data.name.encode())
    for speech in data.speeches:
        digest.update(speech.windows.numpy().data)
    digest.update(data.train.numpy().data)
    return digest.hexdigest()
