"""The drawn person speaking: what `python -m train --drawn` learns from.

The reference of every picture is a frame of the demo avatar, decoded from its video, and the target
is the same pose drawn with the mouth that fits the speech. That is what a render asks for: it has
a frame of the avatar, whose mouth is shut, and wants another mouth in it. (A film cannot have both;
there the reference is another frame.) Along its edges the target is the frame itself: a drawing has
no traces of a video's compression, and where it begins, a seam would show.
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
from train.recording import Speech, picture_input, roi

from .make_demo import FPS, FRAMES
from .networks import DEMO
from .person import Mouth, Pose, draw, face_box, idle, mouth_box
from .speech import Phoneme, closing, corpus, make, mouths

SHUT = 0.05  # of the openness: less of it, and lips are closed
OFTEN = 3  # more times are frames seen whose lips are closed for a p, b or m: they are few
REST = 3  # every third frame of silence is enough
# A row of `mouths` as the audio side learns it: how far the mouth is open counts most.
SCALE = torch.tensor([2.0, 1.0, 1.0, 1.0, 1.0])
# Pixels from the edge of the ROI: up to the first the frame, from the second on the drawing.
EDGE = 20, 40


class Speaking:
    """A `train.recording.Recording`.

    Args:
        seed: of what is said, and how.
        minutes: of speech to train on.
        progress: show a bar while it is spoken.
    """

    def __init__(self, seed: int, minutes: float = 24, *, progress: bool = False):
        cv2.setNumThreads(1)  # the threads of a process that forks are missed in the other one
        self.name, self.mouth = "drawn person", _mouth_in_roi()
        self.speeches: list[Speech] = []
        self.shapes: list[Tensor] = []
        self._mouths: list[np.ndarray] = []
        said = [(recipe, False) for recipe in corpus(seed, minutes)]
        said += [(recipe, True) for recipe in corpus(seed, held_out=True)]
        parts: dict[bool, list[Tensor]] = {False: [], True: []}
        for recipe, held_out in tqdm(
            said, desc="speak", unit=" utterances", disable=None if progress else True
        ):
            utterance = make(recipe)
            speech = Speech(torch.from_numpy(utterance.pcm), FPS)
            rows = mouths(utterance.phonemes, speech.frames, FPS)
            still = np.zeros(len(rows), bool)
            still[1:] = (rows[1:] == rows[:-1]).all(axis=1)
            wanted = ~still | (np.arange(len(rows)) % REST == 0)
            chosen = np.flatnonzero(wanted)
            if not held_out:
                shut = sorted(closed(utterance.phonemes, rows))
                chosen = np.concatenate([chosen, *[np.array(shut, np.int64)] * OFTEN])
            frames = torch.from_numpy(chosen)
            number = torch.full_like(frames, len(self.speeches))
            parts[held_out].append(torch.stack([number, frames], dim=1))
            self.speeches.append(speech)
            self._mouths.append(rows)
            self.shapes.append(torch.from_numpy(rows) * SCALE)
        self.train, self.held_out = torch.cat(parts[False]), torch.cat(parts[True])
        self._drawn = _drawn_part()
        self._inputs  # noqa: B018  read before other processes share the video

    @cached_property
    def _inputs(self) -> Tensor:
        """(FRAMES, 6, 320, 320) uint8: what a render gives the generator of the avatar's frames."""
        avatar = Avatar.load(DEMO, networks=False)
        inputs = torch.empty(FRAMES, 6, kernels.ROI_SIZE, kernels.ROI_SIZE, dtype=torch.uint8)
        for number in range(FRAMES):
            frames, boxes, _ = avatar.batch([number])
            own = roi(frames[0], boxes[0])
            inputs[number] = picture_input(own, own)
        return inputs

    def pictures(
        self, speech: int, frame: int, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        number = int(random.integers(FRAMES))
        mouth = Mouth(*self._mouths[speech][frame].tolist())
        inputs, drawn = self._inputs[number], drawn_roi(idle(number / FPS), mouth)
        return inputs, torch.lerp(inputs[:3].float(), drawn.float(), self._drawn).round().byte()


def closed(phonemes: Sequence[Phoneme], rows: np.ndarray) -> set[int]:
    """The frames of p, b and m whose lips are shut; rows: as `mouths` has them."""
    near = chain.from_iterable(closing(phonemes, len(rows), FPS))
    return {frame for frame in near if rows[frame, 0] < SHUT}


def drawn_roi(pose: Pose, mouth: Mouth) -> Tensor:
    """The ROI as it is drawn: (3, 320, 320) uint8, planes B, G, R."""
    box = face_box(pose)
    face = torch.from_numpy(draw(pose, mouth, region=box))
    side = box[2] - box[0]
    return roi(face, torch.tensor([0, 0, side, side], dtype=torch.int32))


def _drawn_part() -> Tensor:
    """(320, 320) float32: 0 where a target is the avatar's frame, 1 where it is drawn."""
    at = torch.arange(kernels.ROI_SIZE)
    depth = torch.minimum(at, kernels.ROI_SIZE - 1 - at)
    depth = torch.minimum(depth[:, None], depth[None, :])
    return ((depth - EDGE[0]) / (EDGE[1] - EDGE[0])).clamp(0, 1)


def _mouth_in_roi() -> tuple[float, float, float, float]:
    """The mouth's bounding box as parts of the ROI, head at rest."""
    x0, y0, x1, _ = face_box(Pose())
    margin = (kernels.CROP_SIZE - kernels.ROI_SIZE) / 2
    scale = kernels.CROP_SIZE / (x1 - x0)
    left, top, right, bottom = mouth_box(Pose())
    a, b, c, d = (
        ((edge - origin) * scale - margin) / kernels.ROI_SIZE
        for edge, origin in ((left, x0), (top, y0), (right, x0), (bottom, y0))
    )
    return a, b, c, d


def recording(seed: int, *, progress: bool = False) -> Speaking:
    """What `train` asks a module for."""
    return Speaking(seed, progress=progress)
