"""How well the demo avatar speaks with trained networks: python -m examples.judge

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

import kernels
from engine import Avatar, Pipeline
from engine.command import Parser, program, run
from engine.errors import InputError
from engine.files import write_whole
from engine.pipeline import frame_numbers
from export import ExportError, export

from .make_demo import FPS, FRAMES
from .networks import DEMO, KINDS, paths
from .person import Mouth, draw, face_box, idle, mouth_box
from .speech import REST, Recipe, Utterance, closing, corpus, make, mouths

NETWORKS = ("onnxruntime-fp16", "onnxruntime-fp32", "torch-fp32")
SEED = 2026
SILENCE = Recipe((), pauses=(5.0,))  # more of it than between sentences
LATE = 5  # frames, of the speech that must lose
LAGS = range(-10, 11)  # frames, at which the openness is compared
SHUT = 0.008  # of the mouth's box: less of the inside than this, and the lips are closed
OPEN = 0.05  # more of it, and they are open
BAND = 14  # pixels inside the face box, in which a seam would show: the mask begins in it


def openness(picture: np.ndarray) -> float:
    """How much of a picture of the mouth, (h, w, 3) uint8 RGB, is its inside: 0 to 1.

    The dark of it and the teeth, which are far less red than lips and skin.
    """
    picture = picture.astype(np.int32)
    dark = picture.sum(axis=2) < 190
    teeth = (picture.min(axis=2) > 120) & (picture[..., 0] - picture[..., 2] < 45)
    return float((dark | teeth)[:, 10:-10].mean())  # hair and neck lie at the sides


class Judge:
    """Takes pictures of a mouth next to the truth, one utterance after another, and measures.

    Args:
        name: of who is judged.
    """

    def __init__(self, name: str):
        self.name = name
        # of every frame: squared error, SSIM, whether the mouth is at rest, whether it should
        # be closed for a p, b or m
        self._error: list[float] = []
        self._ssim: list[float] = []
        self._rests: list[bool] = []
        self._closes: list[bool] = []
        # of every utterance, its frames' openness: as made, as drawn, as the shape has it
        self._made: list[np.ndarray] = []
        self._drawn: list[np.ndarray] = []
        self._shape: list[np.ndarray] = []
        self._changes: list[tuple[float, float]] = []  # made and drawn, in silence

    def utterance(
        self,
        pictures: list[np.ndarray],
        truths: list[np.ndarray],
        rows: np.ndarray,
        closed: set[int],
    ) -> None:
        """One utterance.

        Args:
            pictures, truths: of the mouth, (h, w, 3) uint8 RGB of the same frames.
            rows: (frames, 5), the true shapes.
            closed: frames that must show closed lips.
        """
        rests = (rows == REST).all(axis=1)
        for number, (picture, truth) in enumerate(zip(pictures, truths, strict=True)):
            self._error.append(float(np.mean((picture.astype(np.float64) - truth) ** 2)))
            self._ssim.append(structural_similarity(picture, truth, channel_axis=2))
            self._closes.append(number in closed)
            # the head moves: pictures of another size or place cannot be compared pixel by pixel
            if number and rests[number] and rests[number - 1]:
                before = number - 1
                if pictures[before].shape == picture.shape:
                    made = np.abs(picture.astype(int) - pictures[before]).mean()
                    drawn = np.abs(truth.astype(int) - truths[before]).mean()
                    self._changes.append((float(made), float(drawn)))
        self._rests += rests.tolist()
        self._made.append(np.array([openness(picture) for picture in pictures]))
        self._drawn.append(np.array([openness(truth) for truth in truths]))
        self._shape.append(rows[:, 0].astype(np.float64))

    def figures(self) -> dict:
        """What it came to, by the names of the table; None where there is nothing to measure."""
        made, drawn = np.concatenate(self._made), np.concatenate(self._drawn)
        error, rests, closes = map(np.array, (self._error, self._rests, self._closes))
        psnr = _psnr(error)
        lags = {lag: self._correlation(lag) for lag in LAGS}
        known = {lag: value for lag, value in lags.items() if value is not None}
        changed, change = np.sum(self._changes, axis=0) if self._changes else (0, 0)
        opens = drawn > OPEN
        return {
            "frames": len(psnr),
            "PSNR, mean of frames": float(psnr.mean()),
            "PSNR, while speaking": float(psnr[~rests].mean()),
            "PSNR, of all pixels": float(_psnr(error.mean())),
            "PSNR, worst tenth": float(np.percentile(psnr, 10)),
            "SSIM": float(np.mean(self._ssim)),
            "openness, correlation": lags[0],
            "openness, correlation with the shape": _corrcoef(made, np.concatenate(self._shape)),
            "openness, best lag": max(known, key=known.__getitem__) if known else None,
            "openness, slope": _ratio(np.cov(made, drawn)[0, 1], np.var(drawn, ddof=1)),
            "open when open": _ratio((made[opens] > drawn[opens] / 2).sum(), opens.sum()),
            "closed on p, b, m": _ratio((made[closes] <= SHUT).sum(), closes.sum()),
            "closures": int(closes.sum()),
            "closed in silence": _ratio((made[rests] <= SHUT).sum(), rests.sum()),
            "change in silence": _ratio(changed, change),
        }

    def _correlation(self, lag: int) -> float | None:
        """Of the openness at frame i + lag with the truth at frame i."""
        pairs = [
            (a[max(lag, 0) : len(a) + min(lag, 0)], b[max(-lag, 0) : len(b) + min(-lag, 0)])
            for a, b in zip(self._made, self._drawn, strict=True)
        ]
        return _corrcoef(*(np.concatenate(part) for part in zip(*pairs, strict=True)))


def _psnr(error):
    return 10 * np.log10(255**2 / np.maximum(error, 1e-2))


def _corrcoef(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else None


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b else None


def closures(utterance: Utterance, rows: np.ndarray) -> set[int]:
    """The frame of each p, b and m in which the lips are most closed."""
    return {
        min(near, key=lambda frame: float(rows[frame, [0, 3, 4]].sum()))
        for near in closing(utterance.phonemes, len(rows), FPS)
        if near
    }


def judge(
    generator: Path,
    audio_encoder: Path,
    *,
    seconds: float | None = None,
    seed: int = SEED,
    runtime: str | None = None,
) -> dict:
    """Figures of the demo avatar with these networks, and of the two that must lose.

    Args:
        generator, audio_encoder: ONNX files or checkpoints.
        seconds: how much to render at least; all of the held-out corpus, unless given.
        seed: of the held-out utterances.
        runtime: as `Pipeline` takes it.
    """
    avatar = Avatar.load(DEMO, generator=generator, audio_encoder=audio_encoder)
    pipeline = Pipeline(avatar, runtime=runtime)
    avatar_mouths = [mouth_box(idle(number / FPS)) for number in range(FRAMES)]
    speaks, still, late = Judge("speaks"), Judge("never moves"), Judge(f"{LATE} frames late")
    borders, done = [], 0
    with tqdm(desc="judge", unit=" frames", disable=None) as bar:
        for recipe in (*corpus(seed, held_out=True), SILENCE):
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
            speaks.utterance(made, truths, rows, shut)
            still.utterance(own, truths, rows, shut)
            delayed = torch.cat([pcm.new_zeros(LATE * kernels.SAMPLE_RATE // FPS), pcm])
            wrong = [
                _cut(frame, box)
                for frame, box in zip(_frames(pipeline, delayed), boxes, strict=False)
            ]
            late.utterance(wrong, truths, rows, shut)
            done += len(rows)
    return {
        "seconds": done / FPS,
        **{judged.name: judged.figures() for judged in (speaks, still, late)},
        "PSNR along the box's edge": float(_psnr(np.mean(borders))),
        "PSNR along its worst side": float(_psnr(np.mean(borders, axis=0).max())),
    }


def _frames(pipeline: Pipeline, pcm: torch.Tensor) -> Iterator[np.ndarray]:
    for batch in pipeline.render(pcm):
        yield from batch.numpy()


def _cut(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    x0, y0, x1, y1 = box
    return frame[y0:y1, x0:x1].copy()


def _border_error(made: np.ndarray, frame: np.ndarray, box: tuple[int, ...]) -> list[float]:
    """Mean squared difference from the avatar's own frame along each side of the face box."""
    x0, y0, x1, y1 = box
    error = (made[y0:y1, x0:x1].astype(np.float64) - frame[y0:y1, x0:x1]) ** 2
    sides = error[:BAND], error[-BAND:], error[:, :BAND], error[:, -BAND:]
    return [float(side.mean()) for side in sides]


def table(figures: dict) -> str:
    """The figures as lines to read."""
    judged = [name for name, value in figures.items() if isinstance(value, dict)]
    rows = [[f"{figures['seconds']:.0f} s never trained on", *judged]]
    for name in figures[judged[0]]:
        values = [figures[one][name] for one in judged]
        rows.append([name, *map(_cell, values)])
    width = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(w) if i else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, width, strict=True))
        )
        for row in rows
    ]
    edges = [
        f"{name}: {value:.1f} dB"
        for name, value in figures.items()
        if "edge" in name or "side" in name
    ]
    return "\n".join([*lines, *edges])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.judge", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CKPT.pth",
        help="both networks, from train --drawn; the demo's own by default",
    )
    add("--networks", choices=NETWORKS, default=NETWORKS[0], help="what runs them, and how exactly")
    add("--seconds", type=float, metavar="S", help="at least so much; all by default")
    add("--seed", type=int, default=SEED, metavar="N", help="of what is said")
    add("-o", "--output", type=Path, metavar="FILE.json", help="the figures as JSON too")
    options = parser.parse_args(arguments)
    return run(lambda: print(_run(options)), interrupted="nothing was written")


def _run(options: argparse.Namespace) -> str:
    if options.seconds is not None and not options.seconds > 0:
        raise InputError(f"seconds is {options.seconds:g}, it must be above 0")
    if options.output and not options.output.parent.is_dir():
        raise InputError(f"{options.output.parent} is not a folder")
    networks = dict.fromkeys(KINDS, options.checkpoint) if options.checkpoint else paths()
    runtime, precision = options.networks.split("-")
    with tempfile.TemporaryDirectory() as folder:
        if runtime == "onnxruntime":
            try:
                for kind, source in networks.items():
                    networks[kind] = Path(folder) / f"{kind}.onnx"
                    export(kind, source, networks[kind], precision=precision)
            except (ValueError, ExportError) as error:
                raise InputError(str(error)) from error
        figures = judge(**networks, seconds=options.seconds, seed=options.seed, runtime=runtime)
    if options.output:
        written = {"networks": options.networks, "seed": options.seed, **figures}
        text = json.dumps(written, indent=1) + "\n"
        write_whole(options.output, lambda partial: partial.write_text(text))
    return table(figures)


if __name__ == "__main__":
    program(main)
