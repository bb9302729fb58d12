"""How well the demo avatar speaks: python -m examples.judge

Renders utterances that were never trained on (other texts, other voices) through the pipeline, in
float16, and compares every frame with the drawing that knows what is said. Two others are judged by
the same measures and must lose: a mouth that never moves, and the same speech 5 frames late.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from tqdm import tqdm

from engine import Avatar, Pipeline
from engine.command import Parser, program, run
from engine.pipeline import frame_numbers
from export import export

from .make_demo import FPS, FRAMES
from .person import Mouth, draw, face_box, idle, mouth_box
from .speech import REST, Utterance, corpus, make, mouths
from .speech.targets import CLOSED, bare

DEMO = Path(__file__).parent / "demo"
SEED = 2026
LATE = 5  # frames, of the speech that must lose
LAGS = range(-5, 6)  # frames, at which the openness is compared
SHUT = 0.02  # of the mouth's box: less of the inside than this, and the lips are closed
MARGIN = 8  # pixels inside and outside the face box, in which a seam would show


def openness(picture: np.ndarray) -> float:
    """How much of a picture of the mouth, (h, w, 3) uint8 RGB, is its inside: 0 to 1.

    The dark of it and the teeth, which are far less red than lips and skin.
    """
    picture = picture.astype(np.int32)
    dark = picture.sum(axis=2) < 190
    teeth = (picture.min(axis=2) > 120) & (picture[..., 0] - picture[..., 2] < 45)
    return float((dark | teeth)[:, 10:-10].mean())  # hair and neck lie at the sides


class Judge:
    """Takes frames next to the truth, one after another, and measures.

    Args:
        name: of who is judged.
    """

    def __init__(self, name: str):
        self.name = name
        self._psnr: list[float] = []
        self._error: list[float] = []
        self._ssim: list[float] = []
        self._open: list[list[float]] = []
        self._truth: list[list[float]] = []
        self._shape: list[list[float]] = []
        self._shut: list[bool] = []
        self._still = np.zeros(2)
        self._border: list[float] = []

    def utterance(
        self, pictures: Iterator[np.ndarray], truths: list[np.ndarray], rows: np.ndarray, shut: set
    ) -> None:
        """One utterance: pictures of the mouth and the true ones, of the same frames."""
        opened, truly, last = [], [], None
        for number, (picture, truth) in enumerate(zip(pictures, truths, strict=True)):
            error = np.mean((picture.astype(np.float64) - truth) ** 2)
            self._error.append(error)
            self._psnr.append(10 * np.log10(255**2 / max(error, 1e-2)))
            self._ssim.append(structural_similarity(picture, truth, channel_axis=2))
            opened.append(openness(picture))
            truly.append(openness(truth))
            still = number and (rows[number] == REST).all() and (rows[number - 1] == REST).all()
            if still and last[0].shape == picture.shape:
                pair = (picture, last[0]), (truth, last[1])
                self._still += [np.abs(a.astype(int) - b).mean() for a, b in pair]
            last = picture, truth
            if number in shut:
                self._shut.append(opened[-1] <= SHUT)
        self._open.append(opened)
        self._truth.append(truly)
        self._shape.append(rows[:, 0].tolist())

    def figures(self) -> dict:
        """What it came to, by the names of the table."""
        lags = {lag: self._correlation(self._truth, lag) for lag in LAGS}
        return {
            "frames": len(self._psnr),
            "psnr": float(np.mean(self._psnr)),
            "psnr_of_all": float(10 * np.log10(255**2 / np.mean(self._error))),
            "ssim": float(np.mean(self._ssim)),
            "openness_correlation": lags[0],
            "openness_correlation_with_the_shape": self._correlation(self._shape, 0),
            "best_lag": max(lags, key=lags.__getitem__),
            "closed_on_p_b_m": float(np.mean(self._shut)),
            "closures": len(self._shut),
            "change_in_silence": float(self._still[0] / self._still[1]),
        }

    def _correlation(self, truth: list[list[float]], lag: int) -> float:
        """Of the openness at frame i + lag with the truth at frame i."""
        pairs = [
            (a[max(lag, 0) : len(a) + min(lag, 0)], b[max(-lag, 0) : len(b) + min(-lag, 0)])
            for a, b in zip(self._open, truth, strict=True)
        ]
        made, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return float(np.corrcoef(made, true)[0, 1])


def closures(utterance: Utterance, rows: np.ndarray) -> set[int]:
    """The frame of each p, b and m in which the lips are most closed."""
    found = set()
    for phoneme in utterance.phonemes:
        if bare(phoneme.name) in CLOSED:
            first, last = int(phoneme.start * FPS), int(np.ceil(phoneme.end * FPS))
            near = range(max(first - 1, 0), min(last + 1, len(rows)))
            if near:
                found.add(min(near, key=lambda frame: float(rows[frame, [0, 3, 4]].sum())))
    return found


def judge(
    generator: Path,
    audio_encoder: Path,
    *,
    seconds: float | None = None,
    runtime: str | None = None,
) -> dict:
    """Figures of the demo avatar with these networks, and of the two that must lose.

    Args:
        generator, audio_encoder: ONNX files or checkpoints.
        seconds: how much to render at least; all of the held-out corpus, unless given.
        runtime: as `Pipeline` takes it.
    """
    avatar = Avatar.load(DEMO, generator=generator, audio_encoder=audio_encoder)
    pipeline = Pipeline(avatar, runtime=runtime)
    avatar_mouths = [mouth_box(idle(number / FPS)) for number in range(FRAMES)]
    speaks, still, late = Judge("speaks"), Judge("never moves"), Judge(f"{LATE} frames late")
    borders, done = [], 0
    with tqdm(desc="judge", unit=" frames", disable=None) as bar:
        for recipe in corpus(SEED, held_out=True):
            if seconds is not None and done >= seconds * FPS:
                break
            utterance = make(recipe)
            pcm = torch.from_numpy(utterance.pcm)
            rows = mouths(utterance.phonemes, pipeline.frame_count(pcm), FPS)
            cycle = frame_numbers(FRAMES, "pingpong", None)
            numbers = [next(cycle) for _ in rows]
            boxes = [avatar_mouths[number] for number in numbers]
            truths = [
                draw(idle(number / FPS), Mouth(*row.tolist()), region=box)
                for number, row, box in zip(numbers, rows, boxes, strict=True)
            ]
            shut = closures(utterance, rows)
            made, own = [], []
            for batch in pipeline.render(pcm):
                frames, _, _ = avatar.batch(numbers[len(made) : len(made) + len(batch)])
                for finished, frame in zip(batch.numpy(), frames.numpy(), strict=True):
                    number = numbers[len(made)]
                    made.append(_cut(finished, boxes[len(made)]))
                    own.append(_cut(frame, boxes[len(own)]))
                    borders.append(_border_error(finished, frame, face_box(idle(number / FPS))))
                bar.update(len(batch))
            speaks.utterance(iter(made), truths, rows, shut)
            still.utterance(iter(own), truths, rows, shut)
            delayed = torch.cat([pcm.new_zeros(LATE * 16000 // FPS), pcm])
            wrong = [
                _cut(frame, box)
                for frame, box in zip(_frames(pipeline, delayed), boxes, strict=False)
            ]
            late.utterance(iter(wrong), truths, rows, shut)
            done += len(rows)
    return {
        "seconds": done / FPS,
        **{judged.name: judged.figures() for judged in (speaks, still, late)},
        "border_psnr": float(10 * np.log10(255**2 / np.mean(borders))),
    }


def _frames(pipeline: Pipeline, pcm: torch.Tensor) -> Iterator[np.ndarray]:
    for batch in pipeline.render(pcm):
        yield from batch.numpy()


def _cut(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    return frame[y0:y1, x0:x1].copy()


def _border_error(made: np.ndarray, frame: np.ndarray, box: tuple[int, int, int, int]) -> float:
    """Mean squared difference from the avatar's own frame along the edge of the face box."""
    x0, y0, x1, y1 = box
    inner, outer = MARGIN, 0
    difference = (made.astype(np.float64) - frame) ** 2
    band = np.zeros(frame.shape[:2], bool)
    band[y0 - outer : y1 + outer, x0 - outer : x1 + outer] = True
    band[y0 + inner : y1 - inner, x0 + inner : x1 - inner] = False
    return float(difference[band].mean())


def table(figures: dict) -> str:
    """The figures as lines to read."""
    judged = [name for name, value in figures.items() if isinstance(value, dict)]
    rows = [[f"{figures['seconds']:.0f} s never trained on", *judged]]
    for name in figures[judged[0]]:
        values = [figures[one][name] for one in judged]
        rows.append([name, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values)])
    width = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, width, strict=True))
        )
        for row in rows
    ]
    return "\n".join([*lines, f"along the face box's edge: PSNR {figures['border_psnr']:.1f} dB"])


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.judge", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--generator", type=Path, default=DEMO / "generator.safetensors", metavar="FILE")
    add("--audio-encoder", type=Path, default=DEMO / "audio_encoder.safetensors", metavar="FILE")
    add("--precision", choices=("fp16", "fp32"), default="fp16")
    add("--seconds", type=float, metavar="S", help="at least so much; all by default")
    add("-o", "--output", type=Path, metavar="FILE.json", help="the figures as JSON too")
    options = parser.parse_args(arguments)
    return run(lambda: print(_run(options)), interrupted="nothing was written")


def _run(options: argparse.Namespace) -> str:
    with tempfile.TemporaryDirectory() as folder:
        networks = {}
        for kind in ("generator", "audio_encoder"):
            networks[kind] = Path(folder) / f"{kind}.onnx"
            source = getattr(options, kind)
            export(kind, source, networks[kind], precision=options.precision)
        figures = judge(**networks, seconds=options.seconds)
    figures["precision"] = options.precision
    if options.output:
        partial = options.output.with_name(f".{options.output.name}.partial")
        partial.write_text(json.dumps(figures, indent=1) + "\n")
        partial.replace(options.output)
    return table(figures)


if __name__ == "__main__":
    program(main)
