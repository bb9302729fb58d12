"""The drawn person as a film: speaking, at half of the demo's size.

Drawing is slow, so the film is kept: python -m tests.engine.preparing.people writes it.
"""

import json
import wave
from pathlib import Path

import cv2
import numpy as np

from engine.media.video import Video
from examples.person import Mouth, draw, face_box, idle
from examples.speech import Phoneme, mouths
from tests.conftest import DEMO, ROOT
from tests.engine.preparing.films import write_film

TALK = ROOT / "tests" / "cases" / "talk.mp4"
SCALE = 2  # the demo's frames are so many times as large
SECONDS = 4


def speech(t: np.ndarray) -> np.ndarray:
    """Return the demo's speech at these times; silence after it."""
    with wave.open(str(DEMO / "speech.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    return np.interp(t, np.arange(len(samples)) / 16000, samples, left=0, right=0)


def drawings(seconds: float = SECONDS) -> list[np.ndarray]:
    """Draw the person who says the demo's speech, (640, 360, 3) uint8 each.

    Only the lower face is drawn, into the frames of the demo, which is quick.
    """
    phonemes = [Phoneme(*row) for row in json.loads((DEMO / "phonemes.json").read_text())]
    rows = mouths(phonemes, round(25 * seconds), 25)
    frames, video = [], Video(DEMO / "frames.mp4")
    for (number, frame), row in zip(video.frames(), rows, strict=False):
        pose = idle(number / 25)
        x0, y0, x1, y1 = face_box(pose)
        picture = video.pixels(frame).copy()
        picture[y0:y1, x0:x1] = draw(pose, Mouth(*row.tolist()), region=(x0, y0, x1, y1))
        frames.append(cv2.resize(picture, (360, 640), interpolation=cv2.INTER_AREA))
    return frames


def drawn() -> list[np.ndarray]:
    """Return the drawings of the kept film."""
    video = Video(TALK)
    return [video.pixels(frame).copy() for _, frame in video.frames()]


def true_boxes(count: int) -> np.ndarray:
    """Return the boxes with which the person is drawn, (count, 4) float."""
    return np.array([face_box(idle(i / 25)) for i in range(count)]) / SCALE


def write_talk(path: Path, frames: list[np.ndarray], late: float = 0, **options) -> Path:
    """Write a film of drawings whose sound is `late` by so many seconds."""
    return write_film(
        path,
        seconds=len(frames) / 25,
        scene=lambda t: frames[min(round(25 * t), len(frames) - 1)],
        sound=lambda t: speech(t - late),
        **options,
    )


if __name__ == "__main__":
    write_talk(TALK, drawings(), options={"preset": "slow", "crf": "20", "bf": "0"})
