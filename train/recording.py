"""What the networks learn from: a person who speaks, picture by picture, with what was heard."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import kernels
from engine.avatar import Avatar
from engine.errors import InputError

SPOKEN = "aud.wav"  # where the SyncTalk 2D family keeps the speech of a recording
APART = 0.4  # seconds that speech and frames may differ: encoders pad, cameras start late
HELD_OUT = 0.05  # of a recording, its end: never trained on
MOUTH = (0.22, 0.36, 0.78, 0.84)  # x0, y0, x1, y1 of a ROI: where a face box has the mouth


class Speech:
    """What the audio encoder hears of one speech.

    Attributes:
        windows: (M, 1, 80, 16) float32 mel windows.
        frames: N, the video frames that a render of this speech has.
    """

    def __init__(self, pcm: Tensor, fps: float):
        """pcm: (S,) float32 at 16 kHz, at least 3000 samples; fps: of the recording."""
        self.windows = kernels.mel_windows(kernels.log_mel(pcm), fps=fps)
        self.frames = kernels.frame_count(len(self.windows))

    def heard(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """What `count` video frames from `first` on hear: consecutive frames share all but one.

        Returns:
            windows (count + 15, 1, 80, 16), and which of them are there, (count + 15,) float32, 0
            or 1: rows first - 8 to first + count + 6 of P, as `kernels.feature_windows` has it.
        """
        half = kernels.FEATURES_PER_FRAME // 2
        row = torch.arange(first - half, first + count + half - 1)
        inside = (row >= 0) & (row < len(self.windows) + 2)
        return self.windows[(row - 1).clamp(0, len(self.windows) - 1)], inside.float()


class Recording(Protocol):
    """A person filmed while speaking.

    Attributes:
        name: for people.
        speeches: what was said.
        train, held_out: (n, 2) int64: speech and video frame of all that may be trained on, and of
            what never is.
        mouth: x0, y0, x1, y1 around the mouth, as parts of the ROI.
        shapes: where the shape of the mouth is known, (N, k) float32 for each speech, about -1 to
            1; None where it is not.
    """

    name: str
    speeches: list[Speech]
    train: Tensor
    held_out: Tensor
    mouth: tuple[float, float, float, float]
    shapes: list[Tensor] | None

    def pictures(
        self, speech: int, frame: int, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """The generator's picture input for a video frame, with a reference drawn by `random`, and
        what it has to make of it.

        Returns:
            (6, 320, 320) and (3, 320, 320), uint8, planes B, G, R: over 255 they are what
            `kernels.face_input` makes.
        """
        ...


def roi(frame: Tensor, box: Tensor) -> Tensor:
    """The ROI of a frame (H, W, 3) uint8 RGB: (3, 320, 320) uint8, planes B, G, R."""
    inputs, _ = kernels.face_input(frame[None], box[None], torch.zeros(1, dtype=torch.int64))
    return (inputs[0, :3] * 255).round().to(torch.uint8)


def picture_input(reference: Tensor, roi: Tensor) -> Tensor:
    """A reference, and the ROI with its mouth masked: two (3, 320, 320) uint8 -> (6, 320, 320)."""
    masked = roi.clone()
    masked[:, slice(*kernels.MASK_ROWS), slice(*kernels.MASK_COLUMNS)] = 0
    return torch.cat([reference, masked])


def fingerprint(recording: Recording) -> str:
    """Tells recordings apart, by what is said in them and what is trained on."""
    digest = hashlib.sha256(recording.name.encode())
    for speech in recording.speeches:
        digest.update(speech.windows.numpy())
    digest.update(recording.train.numpy())
    return digest.hexdigest()


class FilmRecording:
    """An avatar folder with the speech that was spoken in it: frame i shows what frame i of a
    render hears.

    The reference is another frame, any that may be trained on, as the SyncTalk 2D family has it:
    the network must take from it how the mouth looks, and not where it is.

    Every frame is decoded once, in order; the ROIs lie in a temporary file without a name, 0.3 MB
    each, of which the system keeps in memory what it can.

    Args:
        folder: an avatar of any layout.
        audio: the speech, if it is not the folder's `aud.wav`. Of a film, which has a picture too,
            the sound is taken from its first frame on: that is frame 0 of the avatar.
        audio_track: which audio track of it, as in `read_speech`.
        progress: show a bar while frames are read.

    Raises:
        InputError: no speech, speech and frames of different lengths, no face boxes, too short, a
            frame that cannot be decoded.
        OSError: there is no room for the ROIs.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        audio: str | os.PathLike | None = None,
        *,
        audio_track: int | None = None,
        progress: bool = False,
    ):
        from engine.media.speech import read_speech  # here: what is drawn needs no FFmpeg

        folder = Path(folder)
        avatar = Avatar.load(folder, networks=False)
        self.name, fps, frames = avatar.name, avatar.fps, len(avatar)
        path = Path(audio) if audio is not None else folder / SPOKEN
        if not path.exists():
            hint = "" if audio is not None else ", the speech of the recording (or --audio FILE)"
            raise InputError(f"{path} does not exist{hint}")
        pcm = read_speech(path, track=audio_track, from_first_frame=True)
        if len(pcm) < kernels.MIN_SAMPLES:
            least = kernels.MIN_SAMPLES / kernels.SAMPLE_RATE
            raise InputError(f"{path} has {len(pcm) / 16000:.2f} s, at least {least:.2f} s needed")
        speech = Speech(pcm, float(fps))
        seen, spoken = frames / fps, len(pcm) / kernels.SAMPLE_RATE
        if abs(seen - spoken) > APART:
            raise InputError(
                f"{path} has {spoken:.2f} s of speech for {float(seen):.2f} s of frames "
                f"({frames} at {float(fps):g} a second): they may differ by {APART} s"
            )
        usable = min(speech.frames, frames)
        apart = kernels.FEATURES_PER_FRAME  # what is held out is not heard in training either
        kept = max(round(HELD_OUT * usable), 8)
        if usable < kept + apart + 8:
            raise InputError(
                f"{folder} has {usable} frames with speech, at least {kept + apart + 8} are needed"
            )
        self.speeches, self.shapes, self.mouth = [speech], None, MOUTH
        self.train = _frames_of(0, 0, usable - kept - apart)
        self.held_out = _frames_of(0, usable - kept, usable)
        self._rois = _room(usable)
        for number in tqdm(range(usable), desc="read", disable=None if progress else True):
            pixels, boxes, _ = avatar.batch([number])
            self._rois[number] = roi(pixels[0], boxes[0])

    def pictures(
        self, speech: int, frame: int, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        other = int(random.integers(len(self.train) - 1))
        other += other >= frame  # not the frame itself
        target = self._rois[frame].clone()
        return picture_input(self._rois[other], target), target


def _room(count: int) -> Tensor:
    """(count, 3, 320, 320) uint8 in a file that is gone with the process."""
    shape = (count, 3, kernels.ROI_SIZE, kernels.ROI_SIZE)
    with tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))  # a full disk shows here
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=shape))


def _frames_of(speech: int, first: int, end: int) -> Tensor:
    frames = torch.arange(first, end)
    return torch.stack([torch.full_like(frames, speech), frames], dim=1)
