"""Draw the demo avatar: python -m examples.make_demo [-o examples/demo] [--speech]

Writes `avatar.json`, `boxes.json` and `frames.mp4`: ten seconds of the person in `examples.person`,
at rest. With `--speech` it also writes `speech.wav` (16 kHz mono, 16 bit), spoken by espeak-ng, and
`phonemes.json`, the times of its phonemes.
"""

import json
from fractions import Fraction
from functools import partial
from pathlib import Path

from tqdm import tqdm

from engine.command import Parser, program, run
from engine.files import write_whole
from engine.media.mp4 import Mp4Writer

from . import DEMO
from .person import SIZE, draw, face_box, idle, idle_mouth
from .speech import Recipe, Utterance, make, write_wav

FPS = 25
FRAMES = 250
TEXT = "Welcome to Viseme! Give me a voice and a few seconds of video, and I will speak your words."
SPOKEN = Recipe((TEXT,), pauses=(0.14, 0.14), voice="en-us", variant="f4", rate=160, pitch=46)
MANIFEST = {
    "name": "demo",
    "fps": FPS,
    "frames": "frames.mp4",
    "boxes": "boxes.json",
    "generator": "generator.safetensors",
    "audio_encoder": "audio_encoder.safetensors",
}


def write_frames(path: Path) -> None:
    """Write the idle loop as H.264, limited-range BT.709, with one keyframe per second."""
    # Without CABAC and deblocking (fastdecode), decoding takes a third of the time. A single thread
    # makes the file the same everywhere, because x264's rate control depends on it.
    x264 = {"crf": "18", "preset": "slow", "tune": "fastdecode", "bf": "0", "g": str(FPS)}
    width, height = SIZE
    with Mp4Writer(
        path, height=height, width=width, fps=Fraction(FPS), x264=x264, threads=1
    ) as writer:
        for i in tqdm(range(FRAMES), desc="frames", unit="frame"):
            writer.write_frame(draw(idle(i / FPS), idle_mouth(i / FPS)))


def write_phonemes(path: Path, utterance: Utterance) -> None:
    """Write [[name, start, end], ...], times in seconds."""
    lines = ",\n".join(json.dumps([p.name, p.start, p.end]) for p in utterance.phonemes)
    path.write_text(f"[\n{lines}\n]\n")


def make_demo(folder: Path, *, speech: bool) -> None:
    """Write the avatar into a folder, which is created if needed.

    Args:
        speech: write `speech.wav` and `phonemes.json` too.

    Raises:
        InputError: espeak-ng is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if speech:
        utterance = make(SPOKEN)
        write_whole(folder / "speech.wav", partial(write_wav, utterance=utterance))
        write_whole(folder / "phonemes.json", partial(write_phonemes, utterance=utterance))
    write_frames(folder / "frames.mp4")
    boxes = ",\n".join(json.dumps(list(face_box(idle(i / FPS)))) for i in range(FRAMES))
    write_whole(folder / "boxes.json", lambda path: path.write_text(f"[\n{boxes}\n]\n"))
    manifest = json.dumps(MANIFEST, indent=2) + "\n"
    write_whole(folder / "avatar.json", lambda path: path.write_text(manifest))


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.make_demo", description="Draw the demo avatar.")
    add = parser.add_argument
    add("-o", "--output", type=Path, default=DEMO, metavar="DIR", help="default: examples/demo")
    add("--speech", action="store_true", help="write speech.wav and phonemes.json too")
    options = parser.parse_args(arguments)
    return run(
        lambda: make_demo(options.output, speech=options.speech),
        interrupted="finished files stay, unfinished ones are removed",
    )


if __name__ == "__main__":
    program(main)
