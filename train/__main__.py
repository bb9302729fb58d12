"""The command: python -m train --avatar DIR | --drawn -o CKPT"""

import argparse
import importlib
import json
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tqdm import tqdm

from engine.command import Parser, program, run
from engine.errors import InputError
from models import checkpoint

from .batches import batches
from .plan import Plan
from .progress import HeldOut, write_log, write_sheet
from .recording import FilmRecording, Recording
from .training import Training, read

DRAWN = "examples.speaking"  # the module whose `recording(seed)` draws a person who speaks
# What may change when a training goes on.
AHEAD = ("steps", "batch", "rate", "close_ups", "settle")
LATELY = 50  # steps that a loss shown is the mean of


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    return run(
        lambda: print(train(options)),
        interrupted=f"{options.output} is of the last checkpoint, if there was one (--resume)",
    )


def train(options: argparse.Namespace) -> str:
    """Do what the options say, and return the lines that sum it up."""
    output = _output(options.output)
    kept = read(output) if options.resume else None
    if kept is None and output.exists():
        raise InputError(f"{output} exists: --resume goes on with it, another name starts anew")
    plan = _plan(options, kept)
    recording = _recording(options, plan)
    if recording.shapes is None and plan.listen:
        if options.listen:
            raise InputError(
                f"listen is {options.listen}, it must be 0 for a film: the shapes of its mouth "
                "are not known"
            )
        plan = Plan(**{**asdict(plan), "listen": 0})
    given = {
        kind: _load(path, kind)
        for kind in ("generator", "audio_encoder")
        if (path := getattr(options, kind))
    }
    training = Training(plan, recording, _device(options.device), **given)
    if kept:
        try:
            training.restore(kept)
        except InputError as error:
            raise InputError(f"{output} cannot be resumed: {error}") from None
    if training.step >= plan.end:
        raise InputError(f"{output} has done its {plan.end} steps already (more: --steps)")
    return _run(training, recording, output, options)


def _run(
    training: Training, recording: Recording, output: Path, options: argparse.Namespace
) -> str:
    plan, held_out = training.plan, HeldOut(recording, training.plan.seed)
    log = _log(output) if options.resume else []
    loader = batches(recording, plan, training.step)
    about = {"recording": recording.name, "plan": asdict(plan), "device": str(training.device)}
    about |= {"precision": str(training.dtype).removeprefix("torch."), "torch": torch.__version__}
    begin = last = time.monotonic()
    seconds = log[-1]["seconds"] if log else 0.0

    def lately() -> float:
        """The loss of the last steps, of one phase: those that listen have another one."""
        phase = 0 if training.step <= plan.listen else plan.listen
        last = training.losses[phase:][-LATELY:]
        return sum(last) / len(last)

    def keep() -> dict:
        figures = held_out.listen(training) if recording.shapes else {}
        if not training.listening:
            pictured, sheet = held_out.look(training)
            figures |= pictured
            write_sheet(output.with_suffix(".png"), sheet)
        spent = seconds + time.monotonic() - begin
        ahead = {name: getattr(plan, name) for name in AHEAD}
        log.append(
            {"step": training.step, "loss": lately(), **figures, "seconds": spent, "plan": ahead}
        )
        training.save(output)
        write_log(output.with_suffix(".json"), log, training.losses, about)
        return log[-1]

    with tqdm(
        total=plan.end,
        initial=training.step,
        unit=" steps",
        disable=None if options.progress else True,
        mininterval=1,
    ) as bar:
        for batch in loader:
            training.learn(batch)
            bar.update()
            bar.set_postfix_str(f"loss {lately():.4f}", refresh=False)
            due = time.monotonic() - last >= 60 * options.every or training.step == plan.listen
            if due and training.step < plan.end:
                figures = keep()
                last = time.monotonic()
                bar.write(_line(figures), file=sys.stderr)
        figures = keep()
    sheet, figured = output.with_suffix(".png"), output.with_suffix(".json")
    return (
        f"{output}: {_line(figures)}, {figures['seconds'] / 60:.1f} min on {training.device} in "
        f"{about['precision']}\n"
        f"{sheet}: held-out frames: reference, target, output\n"
        f"{figured}: the loss of every step, figures of every checkpoint"
    )


def _line(figures: dict) -> str:
    line = f"step {figures['step']}, loss {figures['loss']:.4f}"
    if "held_out_shape_error" in figures:
        line += f", held out: shapes off by {figures['held_out_shape_error']:.4f}"
        line += f", correlation {figures['held_out_shape_correlation']}"
    if "held_out_psnr" in figures:
        line += f", held out: PSNR {figures['held_out_psnr']:.2f} dB"
        line += f", of the mouth {figures['held_out_mouth_psnr']:.2f} dB"
    return line


def _log(output: Path) -> list[dict]:
    try:
        return json.loads(output.with_suffix(".json").read_text())["checkpoints"]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # it is for people: a training goes on without


def _output(path: Path) -> Path:
    if path.suffix != ".pth":
        raise InputError(f"{path} must end in .pth")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder")
    return path


def _plan(options: argparse.Namespace, kept: dict | None) -> Plan:
    given = {f.name: value for f in fields(Plan) if (value := getattr(options, f.name)) is not None}
    if kept is not None:
        fixed = {name for name in ("generator", "audio_encoder") if getattr(options, name)}
        fixed |= given.keys() - set(AHEAD)
        if fixed:
            name = min(fixed).replace("_", "-")
            raise InputError(
                f"--{name} cannot be given with --resume: the plan is the checkpoint's, but for "
                f"{', '.join('--' + name.replace('_', '-') for name in AHEAD)}"
            )
        return Plan(**kept["training"]["plan"] | given)
    if options.freeze_audio_encoder and not options.audio_encoder:
        raise InputError("--freeze-audio-encoder needs one that has learned: --audio-encoder FILE")
    return Plan(**given)


def _recording(options: argparse.Namespace, plan: Plan) -> Recording:
    if options.avatar is not None:
        return FilmRecording(
            options.avatar,
            options.audio,
            audio_track=options.audio_track,
            progress=options.progress,
        )
    for option in ("audio", "audio_track"):
        if getattr(options, option) is not None:
            raise InputError(
                f"--{option.replace('_', '-')} is of an avatar (--avatar DIR): "
                "a drawn person speaks by herself"
            )
    try:
        drawing = importlib.import_module(options.drawn)
    except ModuleNotFoundError as error:
        raise InputError(f"{options.drawn} cannot be drawn: {error}") from error
    if not hasattr(drawing, "recording"):
        raise InputError(f"{options.drawn} cannot be drawn: it has no function `recording`")
    return drawing.recording(plan.seed, progress=options.progress)


def _load(path: Path, kind: str) -> torch.nn.Module:
    try:
        return checkpoint.load(path, kind)
    except checkpoint.CheckpointError as error:
        raise InputError(str(error)) from error


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch finds no CUDA GPU here")
    return torch.device(name)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m train",
        description="Train the generator and the audio encoder for a person who was filmed (or "
        "is drawn) speaking.",
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--avatar", type=Path, metavar="DIR", help="an avatar folder whose frames go with aud.wav"
    )
    what.add_argument(
        "--drawn",
        nargs="?",
        const=DRAWN,
        metavar="MODULE",
        help=f"a person drawn while training ({DRAWN})",
    )
    add(
        "--audio",
        type=Path,
        metavar="FILE",
        help="the speech of the avatar's frames (aud.wav), or the film they are from",
    )
    add(
        "--audio-track",
        type=int,
        metavar="N",
        help="which audio track of it, from 0 on (the one marked as the default)",
    )
    add("-o", "--output", type=Path, required=True, metavar="CKPT.pth", help="both networks")
    add("--resume", action="store_true", help="go on with CKPT.pth, as if it had not ended")
    add("--generator", type=Path, metavar="FILE", help="a checkpoint to start from")
    add("--audio-encoder", type=Path, metavar="FILE", help="a checkpoint to start from")
    add(
        "--freeze-audio-encoder",
        action="store_true",
        default=None,
        help="leave the audio encoder as it is",
    )
    add("--steps", type=_at_least(1), metavar="N", help=f"default {Plan.steps}")
    add(
        "--listen",
        type=_at_least(0),
        metavar="N",
        help=f"steps before them, for the ear alone, where mouth shapes are known: {Plan.listen}",
    )
    add("--batch", type=_at_least(2), metavar="N", help=f"frames a step, default {Plan.batch}")
    add("--stretches", type=_at_least(2), metavar="N", help=argparse.SUPPRESS)
    add("--rate", type=_rate, metavar="LR", help=f"highest learning rate, default {Plan.rate:g}")
    add("--listen-rate", type=_rate, metavar="LR", help=f"default {Plan.listen_rate:g}")
    add(
        "--close-ups",
        type=_part,
        metavar="PART",
        help=f"of the steps, from the first on, that see close-ups: {Plan.close_ups:g}",
    )
    add(
        "--settle",
        type=_part,
        metavar="PART",
        help=f"of the steps, up to the last, with norms at rest: {Plan.settle:g}",
    )
    add("--seed", type=_at_least(0), metavar="N", help=f"default {Plan.seed}")
    add("--every", type=float, default=5, metavar="MINUTES", help="between checkpoints (5)")
    add("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(arguments)


def _at_least(least: int):
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"is {text}, it must be a whole number from {least} on"
            )
        return int(text)

    return number


def _rate(text: str) -> float:
    try:
        rate = float(text)
        if not 0 < rate < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text}, it must be above 0 and below 1") from None
    return rate


def _part(text: str) -> float:
    try:
        part = float(text)
        if not 0 <= part <= 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text}, it must be from 0 to 1") from None
    return part


if __name__ == "__main__":
    program(main)
