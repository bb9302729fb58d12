"""Training data from a filmed person: an avatar folder and its speech."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import kernels
from engine.avatar import Avatar
from engine.errors import InputError
from engine.media.speech import read_speech

from .data import MouthBox, Speech, face_images

SPEECH_FILE = "aud.wav"  # where the SyncTalk 2D family keeps the speech of the frames
# Seconds that the lengths of speech and frames may differ: encoders pad, cameras start late.
MAX_LENGTH_DIFFERENCE = 0.4
HELD_OUT_FRACTION = 0.05  # of the frames, at the end: never trained on
MIN_PART = 8  # frames to train on, and frames held out, at least
MOUTH_BOX: MouthBox = (0.22, 0.36, 0.78, 0.84)  # where a face box has the mouth


class FilmedPerson:
    """`train.data.TrainingData` of an avatar folder whose frames go with a speech.

    Frame i of the avatar is the target for frame i of a render of the speech. The reference is
    another frame, any of those to train on, as in the SyncTalk 2D family: the network has to take
    the look of the mouth from it, and not its position.

    Every frame is decoded once, in order. The ROIs lie in a temporary file without a name, 0.3 MB
    each; the operating system caches what fits in memory.

    Args:
        folder: an avatar of any layout.
        audio: the speech, if it is not the folder's `aud.wav`. The sound of a video file starts at
            its first picture, which is frame 0 of the avatar.
        audio_track: which audio track of it, as in `read_speech`.
        progress: show a bar while frames are read.

    Raises:
        InputError: there is no speech, no face boxes or too few frames, speech and frames have
            different lengths, or a frame cannot be decoded.
        OSError: the disk has no room for the ROIs.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        audio: str | os.PathLike[str] | None = None,
        *,
        audio_track: int | None = None,
        progress: bool = False,
    ):
        folder = Path(folder)
        avatar = Avatar.load(folder, networks=False)
        path = Path(audio) if audio is not None else folder / SPEECH_FILE
        if not path.exists():
            hint = "" if audio else "; put the speech of the frames there, or give --audio FILE"
            raise InputError(f"{path} does not exist{hint}")
        pcm = read_speech(path, track=audio_track, from_first_frame=True)
        _check_length(path, pcm, avatar)
        speech = Speech(pcm, float(avatar.fps))

        usable = min(speech.frames, len(avatar))
        held_out = max(round(HELD_OUT_FRACTION * usable), MIN_PART)
        gap = kernels.FEATURES_PER_FRAME  # these frames share speech with the held-out ones
        if usable < MIN_PART + gap + held_out:
            raise InputError(
                f"{folder} has {usable} frames with speech; "
                f"expected at least {MIN_PART + gap + held_out}"
            )
        self.name = avatar.name
        self.speeches, self.mouth = [speech], MOUTH_BOX
        self.shapes: list[Tensor] | None = None
        self.train = _examples(0, usable - held_out - gap)
        self.held_out = _examples(usable - held_out, usable)
        self._rois = _temporary_rois(usable)
        for number in tqdm(range(usable), desc="read", disable=None if progress else True):
            frames, boxes, _ = avatar.batch([number])
            self._rois[number] = face_images(frames[0], boxes[0])[:3]

    def images(self, speech: int, frame: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """See `TrainingData.images`."""
        reference = int(random.integers(len(self.train) - 1))
        reference += reference >= frame  # never the frame itself
        target = self._rois[frame].clone()
        # Masked here, because `kernels.face_input` masks the frame that it also takes as the
        # reference. Keeping its masked ROIs too would double the temporary file.
        masked = target.clone()
        masked[:, slice(*kernels.MASK_ROWS), slice(*kernels.MASK_COLUMNS)] = 0
        return torch.cat([self._rois[reference], masked]), target


def _check_length(path: Path, pcm: Tensor, avatar: Avatar) -> None:
    """Raise InputError unless the speech is long enough and about as long as the frames."""
    spoken, filmed = len(pcm) / kernels.SAMPLE_RATE, float(len(avatar) / avatar.fps)
    if len(pcm) < kernels.MIN_SAMPLES:
        least = kernels.MIN_SAMPLES / kernels.SAMPLE_RATE
        raise InputError(f"{path} has {spoken:.2f} s of speech; expected at least {least:.2f} s")
    if abs(filmed - spoken) > MAX_LENGTH_DIFFERENCE:
        raise InputError(
            f"{path} has {spoken:.2f} s of speech for {filmed:.2f} s of frames ({len(avatar)} at "
            f"{float(avatar.fps):g} a second); expected lengths that differ by at most "
            f"{MAX_LENGTH_DIFFERENCE} s"
        )


def _temporary_rois(count: int) -> Tensor:
    """Return (count, 3, 320, 320) uint8 in a file that is deleted when the process ends."""
    shape = (count, 3, kernels.ROI_SIZE, kernels.ROI_SIZE)
    with tempfile.TemporaryFile() as file:
        # Without this, a disk that is full would kill the process at a write to the memory map.
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))


def _examples(first: int, end: int) -> Tensor:
    """Return (end - first, 2) int64: speech 0 and frames `first` to `end` (exclusive)."""
    frames = torch.arange(first, end)
    return torch.stack([torch.zeros_like(frames), frames], dim=1)
