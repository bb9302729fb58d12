"""A tiny film of a person, and synthetic training data."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import kernels
from tests.train.synthetic import SyntheticData

SIDE = 140  # pixels of the tiny film's frames
SECONDS = 3


def write_landmarks(path: Path, x0: int, y0: int, x1: int) -> None:
    points = [(0, 0)] * 110
    points[1], points[31], points[52] = (x0, 0), (x1, 0), (0, y0)
    path.write_text("".join(f"{x} {y}\n" for x, y in points))


def write_speech(path: Path, pcm: torch.Tensor) -> None:
    import scipy.io.wavfile  # GPU hosts may not have it

    scipy.io.wavfile.write(path, kernels.SAMPLE_RATE, pcm.numpy())


@pytest.fixture(scope="session")
def film(tmp_path_factory, person, speech) -> Path:
    """A folder in the layout of SyncTalk 2D: 3 s of the person, with the speech in `aud.wav`."""
    folder = tmp_path_factory.mktemp("film") / "person"
    for part in ("full_body_img", "landmarks"):
        (folder / part).mkdir(parents=True)
    for number in range(SECONDS * kernels.FPS):
        face = Image.fromarray(person[number % len(person)].numpy()).crop((200, 440, 520, 760))
        face.resize((SIDE, SIDE)).save(folder / "full_body_img" / f"{number}.jpg", quality=95)
        write_landmarks(folder / "landmarks" / f"{number}.lms", 14 + number % 3, 16, 116)
    write_speech(folder / "aud.wav", speech[: SECONDS * kernels.SAMPLE_RATE])
    return folder


@pytest.fixture(scope="module")
def synthetic(speech) -> SyntheticData:
    return SyntheticData(speech)
