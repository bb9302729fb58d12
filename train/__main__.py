"""`python -m train`: train the generator and the audio encoder for one person."""

import argparse
import importlib
import math
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Literal, overload

import torch

from engine.command import Parser, program, run
from engine.errors import InputError
from engine.runtime.torch import load_checkpoint
from models import AudioEncoder, Generator

from .checkpoint import Checkpoint, NetworkKind, read_checkpoint
from .config import TrainConfig
from .data import TrainingData
from .film import FilmedPerson
from .loop import CHANGEABLE, run_loop
from .training import Training

# Options whose name is not that of their field in `TrainConfig`.
SHORT_OPTIONS = {"crop_fraction": "--crops", "frozen_norm_fraction": "--frozen-norms"}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return run(
        lambda: print(train(options)),
        interrupted=f"{options.output} has the last checkpoint, if one was written (--resume)",
    )


def train(options: argparse.Namespace) -> str:
    """Train as the options say, and return the lines that sum it up.

    Raises:
        InputError: an option or a file cannot be used, or the loss is not finite.
        OSError: a file cannot be written.
    """
    output: Path = options.output
    _check_output(output)
    resumed = read_checkpoint(output) if options.resume else None
    if resumed is None and output.exists():
        raise InputError(f"{output} exists; continue it with --resume, or give another name")
    config = _config(options, resumed)
    data = _data(options, config)
    if data.shapes is None and config.audio_steps:
        if options.audio_steps:
            raise InputError(
                f"--audio-steps is {options.audio_steps}; expected 0 for data without mouth shapes"
            )
        config = TrainConfig(**{**asdict(config), "audio_steps": 0})
    generator = _load(options.generator, "generator")
    audio_encoder = _load(options.audio_encoder, "audio_encoder")
    training = Training(config, data, _device(options.device), generator, audio_encoder)
    if resumed is not None:
        try:
            training.load_state_dict(resumed)
        except InputError as error:
            raise InputError(f"{output} cannot be resumed: {error}") from None
    if training.step >= config.total_steps:
        raise InputError(
            f"{output} has done its {config.total_steps} steps; give more with --steps"
        )
    return run_loop(
        training,
        data,
        output,
        every=options.every,
        resume=options.resume,
        progress=options.progress,
    )


def _check_output(path: Path) -> None:
    if path.suffix != ".pth":
        raise InputError(f"output is {path}; expected a name that ends in .pth")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent} is not a folder; create it first")


def _config(options: argparse.Namespace, resumed: Checkpoint | None) -> TrainConfig:
    """Return the configuration of the options, on top of the resumed checkpoint's if there is one.

    Raises:
        InputError: options that do not go together.
    """
    names = [field.name for field in fields(TrainConfig)]
    given = {name: value for name in names if (value := getattr(options, name, None)) is not None}
    if resumed is not None:
        fixed = {name for name in ("generator", "audio_encoder") if getattr(options, name)}
        fixed |= given.keys() - set(CHANGEABLE)
        if fixed:
            raise InputError(
                f"{_option(min(fixed))} cannot be given with --resume; only these may change: "
                f"{', '.join(map(_option, CHANGEABLE))}"
            )
        return TrainConfig(**resumed["training"]["config"] | given)
    if options.freeze_audio_encoder and not options.audio_encoder:
        raise InputError(
            "--freeze-audio-encoder is given without a trained one; add --audio-encoder FILE"
        )
    return TrainConfig(**given)


def _option(field: str) -> str:
    return SHORT_OPTIONS.get(field, f"--{field.replace('_', '-')}")


def _data(options: argparse.Namespace, config: TrainConfig) -> TrainingData:
    if options.avatar is not None:
        return FilmedPerson(
            options.avatar,
            options.audio,
            audio_track=options.audio_track,
            progress=options.progress,
        )
    for name in ("audio", "audio_track"):
        if getattr(options, name) is not None:
            raise InputError(
                f"{_option(name)} is given with --data, which has speech of its own; "
                "expected --avatar DIR"
            )
    return _function(options.data)(config.seed, progress=options.progress)


def _function(name: str) -> Callable[..., TrainingData]:
    """Import MODULE:FUNCTION.

    Raises:
        InputError: there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InputError(f"--data is {name}; expected MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"--data is {name}, which cannot be imported: {error}") from error
    function: Callable[..., TrainingData] | None = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"--data is {name}; {module_name} has no function {function_name}")
    return function


@overload
def _load(path: Path | None, kind: Literal["generator"]) -> Generator | None: ...
@overload
def _load(path: Path | None, kind: Literal["audio_encoder"]) -> AudioEncoder | None: ...
def _load(path: Path | None, kind: NetworkKind) -> torch.nn.Module | None:
    if path is None:
        return None
    return load_checkpoint(path, kind)


def _device(name: Literal["cpu", "cuda"] | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda; PyTorch finds no CUDA GPU here, so expected cpu")
    return torch.device(name)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    default = TrainConfig()
    parser = Parser(
        prog="python -m train",
        description="Train the generator and the audio encoder for one person.",
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--avatar", type=Path, metavar="DIR", help="avatar folder whose frames go with aud.wav"
    )
    source.add_argument(
        "--data",
        metavar="MODULE:FUNCTION",
        help="Python function that makes the training data",
    )
    add(
        "--audio",
        type=Path,
        metavar="FILE",
        help="speech of the avatar's frames (aud.wav), or the film that they are from",
    )
    add(
        "--audio-track",
        type=int,
        metavar="N",
        help="audio track of that file, counted from 0 (the one marked as the default)",
    )
    add("-o", "--output", type=Path, required=True, metavar="CKPT.pth", help="both networks")
    add("--resume", action="store_true", help="continue with CKPT.pth")
    add("--generator", type=Path, metavar="FILE", help="checkpoint to start from")
    add("--audio-encoder", type=Path, metavar="FILE", help="checkpoint to start from")
    add(
        "--freeze-audio-encoder",
        action="store_true",
        default=None,
        help="do not train the audio encoder",
    )
    add("--steps", type=_at_least(1), metavar="N", help=f"steps on images ({default.steps})")
    add(
        "--audio-steps",
        type=_at_least(0),
        metavar="N",
        help="steps before them that pretrain the audio side, where mouth shapes are known "
        f"({default.audio_steps})",
    )
    add("--batch", type=_at_least(2), metavar="N", help=f"frames a step ({default.batch})")
    add("--rate", type=_rate, metavar="LR", help=f"highest learning rate ({default.rate:g})")
    add(
        "--audio-rate",
        type=_rate,
        metavar="LR",
        help=f"highest learning rate of the audio steps ({default.audio_rate:g})",
    )
    add(
        "--crops",
        dest="crop_fraction",
        type=_fraction,
        metavar="FRACTION",
        help=f"fraction of the steps, at the beginning, on crops ({default.crop_fraction:g})",
    )
    add(
        "--frozen-norms",
        dest="frozen_norm_fraction",
        type=_fraction,
        metavar="FRACTION",
        help="fraction of the steps, at the end, with frozen batch norms "
        f"({default.frozen_norm_fraction:g})",
    )
    add(
        "--seed",
        type=_at_least(0),
        metavar="N",
        help=f"seed of the weights and the batches ({default.seed})",
    )
    add("--every", type=float, default=5, metavar="MINUTES", help="time between checkpoints (5)")
    add("--device", choices=("cpu", "cuda"), help="cuda if there is a GPU")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(arguments)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"is {text}; expected a whole number of at least {least}"
            )
        return int(text)

    return number


def _rate(text: str) -> float:
    rate = _number(text)
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"is {text}; expected a number above 0 and below 1")
    return rate


def _fraction(text: str) -> float:
    fraction = _number(text)
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"is {text}; expected a number from 0 to 1")
    return fraction


def _number(text: str) -> float:
    """Convert to a number; NaN, which is in no range, if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


if __name__ == "__main__":
    program(main)
