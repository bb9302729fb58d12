"""Measure what a shorter prebuffer costs: python -m examples.prebuffer

Held-out utterances go into live sessions of the demo avatar as a microphone delivers them. With
less than 0.45 s of speech ahead, a frame is made while speech that it depends on is missing.
"""

import argparse

import numpy as np
from tqdm import tqdm

from engine import Avatar
from engine.command import Parser, program, run
from engine.errors import InputError
from engine.live import Live

from . import DEMO
from .evaluate import SEED, MouthMetrics, cut, truth_of
from .make_demo import FPS
from .speech import Utterance, corpus, make

PREBUFFERS = (0.45, 0.35, 0.25, 0.15, 0.05)  # seconds
STEP = 320  # samples that the microphone delivers at once, 20 ms
COLUMNS = (
    "openness, correlation",
    "openness, best lag",
    "closed on p, b, m",
    "PSNR, while speaking",
)


class _Clock:
    """A clock that is moved by hand: nothing waits, and no frame is late."""

    time = 0.0

    def __call__(self) -> float:
        return self.time


def measure(prebuffers: tuple[float, ...], *, seconds: float) -> dict[float, dict]:
    """Return the figures of `MouthMetrics` for each prebuffer.

    Args:
        seconds: minimum length of the speech.
    """
    clock = _Clock()
    metrics = {prebuffer: MouthMetrics() for prebuffer in prebuffers}
    avatar = Avatar.load(DEMO)
    with (
        Live(avatar, now=clock, start=False) as live,
        tqdm(desc="prebuffer", unit=" frames", disable=None) as bar,
    ):
        measured = 0
        for recipe in corpus(SEED, held_out=True):
            if measured >= seconds * FPS:
                break
            utterance = make(recipe)
            for prebuffer, figures in metrics.items():
                first, frames = _speak(live, clock, utterance, prebuffer)
                truth = truth_of(utterance, len(frames), first=first)
                figures.add(list(map(cut, frames, truth.boxes)), truth)
                bar.update(len(frames))
            measured += len(frames)
    return {prebuffer: figures.figures() for prebuffer, figures in metrics.items()}


def _speak(
    live: Live, clock: _Clock, utterance: Utterance, prebuffer: float
) -> tuple[int, list[np.ndarray]]:
    """Return the number of the first frame of an utterance, and its frames, (H, W, 3) uint8."""
    first, frames = 0, list[np.ndarray]()
    with live.open(prebuffer=prebuffer) as session:
        parts = iter(np.split(utterance.pcm, range(STEP, len(utterance.pcm), STEP)))
        while True:
            part = next(parts, None)
            if part is None:
                session.flush()
            else:
                session.push(part)
            while live.scheduler.step() == 0:
                pass
            clock.time += STEP / 16000
            while (piece := session.take(timeout=0)) is not None:
                if piece.speaking:
                    first = piece.number if not frames else first
                    frames.append(piece.frames[0].numpy())
                if piece.end:
                    return first, frames


def table(figures: dict[float, dict]) -> str:
    """Format the figures as text."""
    lines = ["prebuffer, s  " + "  ".join(COLUMNS)]
    for prebuffer, values in figures.items():
        cells = (f"{values[name]:{len(name)}.3f}" for name in COLUMNS)
        lines.append(f"{prebuffer:12.2f}  " + "  ".join(cells))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m examples.prebuffer",
        description="Measure the lips of live sessions that wait for less speech.",
    )
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="S", help="minimum length of the speech (60)"
    )
    options = parser.parse_args(arguments)
    return run(lambda: print(_run(options)), interrupted="nothing was measured")


def _run(options: argparse.Namespace) -> str:
    if not options.seconds > 0:
        raise InputError(f"seconds is {options.seconds:g}; expected more than 0")
    return table(measure(PREBUFFERS, seconds=options.seconds))


if __name__ == "__main__":
    program(main)
