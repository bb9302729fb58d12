"""The drawn person speaking: python -m train --data examples.drawn_person:DrawnPerson

The reference of every example is a frame of the demo avatar, decoded from its video. The target is
the same pose, drawn with the mouth that fits the speech. A render has the same task: it replaces
the closed mouth of an avatar's frame. (Film cannot provide such pairs, so there the reference is
another frame.) Along its edges the target is the avatar's frame, because the drawing has no
compression artefacts and a network trained on it would produce a visible seam.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import kernels
from engine.avatar import Avatar
from train.data import MouthBox, Speech, face_images

from . import DEMO
from .make_demo import FPS, FRAMES
from .person import Mouth, Pose, draw, face_box, idle, mouth_box
from .speech import Phoneme, closing, corpus, make, mouths

CLOSED_BELOW = 0.05  # `Mouth.openness` below which lips count as closed
EXTRA_CLOSURES = 3  # extra copies of frames with lips closed for a p, b or m, which are rare
SILENCE_STEP = 3  # only every third frame of silence is used
# Factors on the fields of `Mouth` as training targets: openness matters most.
SHAPE_SCALE = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
# Distances from the edge of the ROI in pixels: the target is the avatar's frame up to the first,
# the drawing from the second on, and a blend in between.
EDGE = 20, 40


class DrawnPerson:
    """`train.data.TrainingData` of the drawn person speaking a corpus.

    Args:
        seed: seed of the corpus.
        minutes: length of the speech for training.
        progress: show a progress bar while the corpus is spoken.
    """

    def __init__(self, seed: int, minutes: float = 24, *, progress: bool = False):
        cv2.setNumThreads(1)  # OpenCV's thread pool does not survive the fork of the data loader
        self.name, self.mouth = "drawn person", _mouth_in_roi()
        self.speeches: list[Speech] = []
        self.shapes: list[Tensor] = []
        self._mouths: list[np.ndarray] = []
        recipes = [(recipe, False) for recipe in corpus(seed, minutes)]
        recipes += [(recipe, True) for recipe in corpus(seed, held_out=True)]
        parts: dict[bool, list[Tensor]] = {False: [], True: []}
        for recipe, held_out in tqdm(
            recipes, desc="speak", unit=" utterances", disable=None if progress else True
        ):
            utterance = make(recipe)
            speech = Speech(torch.from_numpy(utterance.pcm), FPS)
            rows = mouths(utterance.phonemes, speech.frames, FPS)
            still = np.zeros(len(rows), bool)
            still[1:] = (rows[1:] == rows[:-1]).all(axis=1)
            chosen = np.flatnonzero(~still | (np.arange(len(rows)) % SILENCE_STEP == 0))
            if not held_out:
                closures = np.array(sorted(closed(utterance.phonemes, rows)), np.int64)
                chosen = np.concatenate([chosen, *[closures] * EXTRA_CLOSURES])
            frames = torch.from_numpy(chosen)
            number = torch.full_like(frames, len(self.speeches))
            parts[held_out].append(torch.stack([number, frames], dim=1))
            self.speeches.append(speech)
            self._mouths.append(rows)
            self.shapes.append(torch.from_numpy(rows) * SHAPE_SCALE)
        self.train, self.held_out = torch.cat(parts[False]), torch.cat(parts[True])
        self._drawn = _drawn_weight()
        self._inputs  # noqa: B018  computed before the data loader forks

    @cached_property
    def _inputs(self) -> Tensor:
        """The generator's picture input of every avatar frame, (FRAMES, 6, 320, 320) uint8."""
        avatar = Avatar.load(DEMO, networks=False)
        inputs = torch.empty(FRAMES, 6, kernels.ROI_SIZE, kernels.ROI_SIZE, dtype=torch.uint8)
        for number in range(FRAMES):
            frames, boxes, _ = avatar.batch([number])
            inputs[number] = face_images(frames[0], boxes[0])
        return inputs

    def images(self, speech: int, frame: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the picture input and the target of a video frame, for a random avatar frame.

        Returns:
            (6, 320, 320) and (3, 320, 320) uint8, planes B, G, R.
        """
        number = int(random.integers(FRAMES))
        mouth = Mouth(*self._mouths[speech][frame].tolist())
        inputs, drawn = self._inputs[number], drawn_roi(idle(number / FPS), mouth)
        return inputs, torch.lerp(inputs[:3].float(), drawn.float(), self._drawn).round().byte()


def closed(phonemes: Sequence[Phoneme], rows: np.ndarray) -> set[int]:
    """Return the frames of p, b and m in which the lips are closed.

    Args:
        phonemes: in order.
        rows: the mouth shapes of all frames, from `mouths`.
    """
    near = chain.from_iterable(closing(phonemes, len(rows), FPS))
    return {frame for frame in near if rows[frame, 0] < CLOSED_BELOW}


def drawn_roi(pose: Pose, mouth: Mouth) -> Tensor:
    """Draw the ROI: (3, 320, 320) uint8, planes B, G, R."""
    box = face_box(pose)
    face = torch.from_numpy(draw(pose, mouth, region=box))
    side = box[2] - box[0]
    return face_images(face, torch.tensor([0, 0, side, side], dtype=torch.int32))[:3]


def _drawn_weight() -> Tensor:
    """Return the weight of the drawing in a target, 0 to 1: (320, 320) float32."""
    at = torch.arange(kernels.ROI_SIZE)
    depth = torch.minimum(at, kernels.ROI_SIZE - 1 - at)
    depth = torch.minimum(depth[:, None], depth[None, :])
    return ((depth - EDGE[0]) / (EDGE[1] - EDGE[0])).clamp(0, 1)


def _mouth_in_roi() -> MouthBox:
    """Return the mouth's bounding box, head at rest, as fractions of the ROI's side."""
    x0, y0, x1, _ = face_box(Pose())
    margin = (kernels.CROP_SIZE - kernels.ROI_SIZE) / 2
    scale = kernels.CROP_SIZE / (x1 - x0)
    left, top, right, bottom = mouth_box(Pose())
    a, b, c, d = (
        ((edge - origin) * scale - margin) / kernels.ROI_SIZE
        for edge, origin in ((left, x0), (top, y0), (right, x0), (bottom, y0))
    )
    return a, b, c, d
