"""Evaluate the demo avatar with trained networks: python -m examples.evaluate [CKPT.pth]

Renders held-out utterances (texts and voices that were not trained on) in float16 and compares
every frame with the drawing of its known mouth shape. Two baselines are measured the same way and
must be worse: a mouth that never moves, and the same speech 5 frames late.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from skimage.metrics import structural_similarity
from tqdm import tqdm

import kernels
from engine import Avatar, Pipeline
from engine.command import Parser, program, run
from engine.errors import InputError
from engine.files import Outputs, write_whole
from engine.loop import frame_numbers
from export import ExportError, export

from . import DEMO, KINDS, network_files
from .make_demo import FPS, FRAMES
from .person import Mouth, draw, face_box, idle, mouth_box
from .speech import REST, Recipe, Utterance, closing, corpus, make, mouths

NETWORKS = ("onnxruntime-fp16", "onnxruntime-fp32", "torch-fp32")
SEED = 2026
SILENCE = Recipe((), pauses=(5.0,))  # longer than the pauses between sentences
DELAY = 5  # frames by which the second baseline is late
LAGS = range(-10, 11)  # frames by which the openness is shifted to find the best correlation
CLOSED_BELOW = 0.008  # openness up to which lips count as closed
OPEN_ABOVE = 0.05  # openness above which they count as open
EDGE = 14  # pixels along the edge of the face box in which a seam would show

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Truth:
    """The right mouth in every frame of an utterance."""

    numbers: list[int]  # the avatar's frames
    boxes: list[Box]  # of the mouth in them
    shapes: np.ndarray  # (frames, 5), as `mouths` returns them
    pictures: list[np.ndarray]  # drawings of the mouth, (h, w, 3) uint8 RGB
    closures: set[int]  # frames in which the lips must be closed


def truth_of(utterance: Utterance, frames: int, *, first: int = 0) -> Truth:
    """Draw the mouth in every frame of a render of the utterance.

    Args:
        first: video frame in which the utterance begins.
    """
    shapes = mouths(utterance.phonemes, frames, FPS)
    cycle = frame_numbers(FRAMES, "pingpong", None)
    numbers = list(islice(cycle, first, first + len(shapes)))
    boxes = [mouth_box(idle(number / FPS)) for number in numbers]
    pictures = [
        draw(idle(number / FPS), Mouth(*shape.tolist()), region=box)
        for number, shape, box in zip(numbers, shapes, boxes, strict=True)
    ]
    return Truth(numbers, boxes, shapes, pictures, closures(utterance, shapes))


def closures(utterance: Utterance, shapes: np.ndarray) -> set[int]:
    """Return, for each p, b and m, the frame in which the lips are most closed."""
    return {
        min(near, key=lambda frame: float(shapes[frame, [0, 3, 4]].sum()))
        for near in closing(utterance.phonemes, len(shapes), FPS)
        if near
    }


def openness(picture: np.ndarray) -> float:
    """Return the fraction of a mouth's picture that shows its inside, 0 to 1.

    The inside is dark, or teeth, which are far less red than lips and skin.

    Args:
        picture: (h, w, 3) uint8 RGB, the mouth box.
    """
    picture = picture.astype(np.int32)
    dark = picture.sum(axis=2) < 190
    teeth = (picture.min(axis=2) > 120) & (picture[..., 0] - picture[..., 2] < 45)
    return float((dark | teeth)[:, 10:-10].mean())  # the sides of the box show hair and neck


class MouthMetrics:
    """Compares pictures of a mouth with the right ones, over any number of utterances."""

    def __init__(self) -> None:
        # One entry per frame.
        self._error: list[float] = []
        self._ssim: list[float] = []
        self._rests: list[bool] = []
        self._closes: list[bool] = []
        # One array per utterance: the openness of its frames.
        self._rendered: list[np.ndarray] = []
        self._drawn: list[np.ndarray] = []
        self._shape: list[np.ndarray] = []
        # One pair per frame in silence: the change since the frame before, rendered and drawn.
        self._changes: list[tuple[float, float]] = []

    def add(self, pictures: list[np.ndarray], truth: Truth) -> None:
        """Add an utterance.

        Args:
            pictures: the mouth box of every frame, (h, w, 3) uint8 RGB.
            truth: the right mouth in these frames.
        """
        rests = (truth.shapes == REST).all(axis=1)
        for number, (picture, drawn) in enumerate(zip(pictures, truth.pictures, strict=True)):
            self._error.append(float(np.mean((picture.astype(np.float64) - drawn) ** 2)))
            self._ssim.append(structural_similarity(picture, drawn, channel_axis=2))
            self._closes.append(number in truth.closures)
            # The head moves: only boxes of the same size can be compared pixel by pixel.
            same_size = number and picture.shape == pictures[number - 1].shape
            if same_size and rests[number] and rests[number - 1]:
                self._changes.append((_change(pictures, number), _change(truth.pictures, number)))
        self._rests += rests.tolist()
        self._rendered.append(np.array([openness(picture) for picture in pictures]))
        self._drawn.append(np.array([openness(picture) for picture in truth.pictures]))
        self._shape.append(truth.shapes[:, 0].astype(np.float64))

    def figures(self) -> dict:
        """Return the figures by their names in the table, None where nothing could be measured."""
        rendered, drawn = np.concatenate(self._rendered), np.concatenate(self._drawn)
        error, rests, closes = map(np.array, (self._error, self._rests, self._closes))
        psnr = _psnr(error)
        lags = {lag: self._correlation(lag) for lag in LAGS}
        known = {lag: value for lag, value in lags.items() if value is not None}
        changed, change = np.sum(self._changes, axis=0) if self._changes else (0, 0)
        opens = drawn > OPEN_ABOVE
        closed = rendered <= CLOSED_BELOW
        return {
            "frames": len(psnr),
            "PSNR, mean of frames": float(psnr.mean()),
            "PSNR, while speaking": float(psnr[~rests].mean()),
            "PSNR, of all pixels": float(_psnr(error.mean())),
            "PSNR, worst tenth": float(np.percentile(psnr, 10)),
            "SSIM": float(np.mean(self._ssim)),
            "openness, correlation": lags[0],
            "openness, correlation with the shape": _corrcoef(
                rendered, np.concatenate(self._shape)
            ),
            "openness, best lag": max(known, key=known.__getitem__) if known else None,
            "openness, slope": _ratio(np.cov(rendered, drawn)[0, 1], np.var(drawn, ddof=1)),
            "open when open": _ratio((rendered[opens] > drawn[opens] / 2).sum(), opens.sum()),
            "closed on p, b, m": _ratio(closed[closes].sum(), closes.sum()),
            "closures": int(closes.sum()),
            "closed in silence": _ratio(closed[rests].sum(), rests.sum()),
            "change in silence": _ratio(changed, change),
        }

    def _correlation(self, lag: int) -> float | None:
        """Return the correlation of frames i + lag with the drawings of frames i."""
        pairs = [
            (a[max(lag, 0) : len(a) + min(lag, 0)], b[max(-lag, 0) : len(b) + min(-lag, 0)])
            for a, b in zip(self._rendered, self._drawn, strict=True)
        ]
        rendered, drawn = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return _corrcoef(rendered, drawn)


def _change(pictures: list[np.ndarray], number: int) -> float:
    return float(np.abs(pictures[number].astype(int) - pictures[number - 1]).mean())


def _psnr(error: ArrayLike) -> np.ndarray:
    return 10 * np.log10(255**2 / np.maximum(error, 1e-2))


def _corrcoef(a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else None


def _ratio(a: float, b: float) -> float | None:
    return float(a / b) if b else None


def evaluate(
    generator: Path,
    audio_encoder: Path,
    *,
    seconds: float | None = None,
    seed: int = SEED,
    runtime: str | None = None,
) -> dict:
    """Measure the demo avatar with these networks, and the two baselines.

    Args:
        generator, audio_encoder: ONNX files or checkpoints.
        seconds: minimum length of the renders; by default the whole held-out corpus.
        seed: seed of the held-out utterances.
        runtime: see `Pipeline`.

    Returns:
        "seconds": the length of the renders; the figures of "speaks" and of the baselines "never
        moves" and "5 frames late"; the PSNR of the edge of the face box.
    """
    avatar = Avatar.load(DEMO, generator=generator, audio_encoder=audio_encoder)
    pipeline = Pipeline(avatar, runtime=runtime)
    speaks, still, late = MouthMetrics(), MouthMetrics(), MouthMetrics()
    edges: list[list[float]] = []
    with tqdm(desc="evaluate", unit=" frames", disable=None) as bar:
        for recipe in (*corpus(seed, held_out=True), SILENCE):
            if seconds is not None and len(edges) >= seconds * FPS:
                break
            utterance = make(recipe)
            pcm = torch.from_numpy(utterance.pcm)
            truth = truth_of(utterance, pipeline.frame_count(pcm))
            rendered, own, errors = _render(pipeline, pcm, truth)
            delayed = torch.cat([pcm.new_zeros(DELAY * kernels.SAMPLE_RATE // FPS), pcm])
            speaks.add(rendered, truth)
            still.add(own, truth)
            late.add(list(map(cut, _frames(pipeline, delayed), truth.boxes)), truth)
            edges += errors
            bar.update(len(errors))
    return {
        "seconds": len(edges) / FPS,
        "speaks": speaks.figures(),
        "never moves": still.figures(),
        f"{DELAY} frames late": late.figures(),
        "PSNR along the box's edge": float(_psnr(np.mean(edges))),
        "PSNR along its worst side": float(_psnr(np.mean(edges, axis=0).max())),
    }


def _render(
    pipeline: Pipeline, pcm: torch.Tensor, truth: Truth
) -> tuple[list[np.ndarray], list[np.ndarray], list[list[float]]]:
    """Return each frame's mouth as rendered, the mouth of the avatar's own frame, edge errors."""
    rendered, own, errors = [], [], []
    numbers = zip(truth.numbers, truth.boxes, strict=True)
    for frame, (number, box) in zip(_frames(pipeline, pcm), numbers, strict=True):
        frames, _, index = pipeline.avatar.batch([number])
        original = frames[index[0]].numpy()
        rendered.append(cut(frame, box))
        own.append(cut(original, box))
        errors.append(edge_errors(frame, original, face_box(idle(number / FPS))))
    return rendered, own, errors


def _frames(pipeline: Pipeline, pcm: torch.Tensor) -> Iterator[np.ndarray]:
    for batch in pipeline.render(pcm):
        yield from batch.numpy()


def cut(frame: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return frame[y0:y1, x0:x1].copy()


def edge_errors(rendered: np.ndarray, original: np.ndarray, box: Box) -> list[float]:
    """Return the mean squared error against the avatar's frame along each side of the face box."""
    x0, y0, x1, y1 = box
    error = (rendered[y0:y1, x0:x1].astype(np.float64) - original[y0:y1, x0:x1]) ** 2
    sides = error[:EDGE], error[-EDGE:], error[:, :EDGE], error[:, -EDGE:]
    return [float(side.mean()) for side in sides]


def table(figures: dict) -> str:
    """Format the figures of `evaluate` as text."""
    columns = {name: value for name, value in figures.items() if isinstance(value, dict)}
    rows = [[f"{figures['seconds']:.0f} s held out", *columns]]
    for name in figures["speaks"]:
        rows.append([name, *(_cell(column[name]) for column in columns.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    psnr = (name for name in figures if name.startswith("PSNR"))
    return "\n".join([*lines, *(f"{name}: {figures[name]:.1f} dB" for name in psnr)])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m examples.evaluate",
        description="Compare renders of held-out speech with the drawn mouth, and with baselines.",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=Path,
        nargs="?",
        metavar="CKPT.pth",
        help="checkpoint of python -m train with both networks (default: the demo's)",
    )
    add("--networks", choices=NETWORKS, default=NETWORKS[0], help="runtime and precision")
    add("--seconds", type=float, metavar="S", help="minimum length (default: the whole corpus)")
    add("--seed", type=int, default=SEED, metavar="N", help="seed of the held-out utterances")
    add("-o", "--output", type=Path, metavar="FILE.json", help="write the figures as JSON too")
    options = parser.parse_args(arguments)
    return run(lambda: print(_run(options)), interrupted=Outputs(options.output))


def _run(options: argparse.Namespace) -> str:
    if options.seconds is not None and not options.seconds > 0:
        raise InputError(f"seconds is {options.seconds:g}; expected more than 0")
    if options.output and not options.output.parent.is_dir():
        raise InputError(f"{options.output.parent} is not a folder; create it first")
    files = dict.fromkeys(KINDS, options.checkpoint) if options.checkpoint else network_files()
    runtime, precision = options.networks.split("-")
    with tempfile.TemporaryDirectory() as folder:
        if runtime == "onnxruntime":
            try:
                for kind, source in files.items():
                    files[kind] = Path(folder) / f"{kind}.onnx"
                    export(kind, source, files[kind], precision=precision)
            except (ValueError, ExportError) as error:
                raise InputError(str(error)) from error
        figures = evaluate(**files, seconds=options.seconds, seed=options.seed, runtime=runtime)
    if options.output:
        results = {"networks": options.networks, "seed": options.seed, **figures}
        text = json.dumps(results, indent=1) + "\n"
        write_whole(options.output, lambda partial: partial.write_text(text))
    return table(figures)


if __name__ == "__main__":
    program(main)
