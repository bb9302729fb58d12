"""Trained networks into the demo avatar: python -m examples.networks CKPT.pth

CKPT.pth is what `python -m train --drawn` made: both networks are written in float16.
"""

import tempfile
from pathlib import Path

import torch

from engine.command import Parser, program, run
from engine.errors import InputError
from models import checkpoint

DEMO = Path(__file__).parent / "demo"
KINDS = ("generator", "audio_encoder")


def paths(folder: Path = DEMO) -> dict[str, Path]:
    """The files of both networks, by what they are."""
    return {kind: folder / f"{kind}.safetensors" for kind in KINDS}


def networks() -> dict[str, torch.nn.Module]:
    """The demo's networks, in float32 and ready to infer."""
    return {kind: checkpoint.load(path, kind) for kind, path in paths().items()}


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m examples.networks", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="CKPT.pth", help="both networks")
    parser.add_argument("-o", "--output", type=Path, default=DEMO, metavar="DIR")
    options = parser.parse_args(arguments)
    return run(
        lambda: _write(options.checkpoint, options.output), interrupted="nothing half-written"
    )


def _write(trained: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    try:
        read = {kind: checkpoint.load(trained, kind) for kind in KINDS}
    except checkpoint.CheckpointError as error:
        raise InputError(str(error)) from error
    with tempfile.TemporaryDirectory(dir=folder, prefix=".networks-") as scratch:
        try:
            for kind, path in paths(Path(scratch)).items():
                checkpoint.save(read[kind], path, precision="fp16")
        except ValueError as error:
            raise InputError(f"{trained}: {error}") from error
        for path in paths(folder).values():  # both or none: they learned together
            (Path(scratch) / path.name).replace(path)


if __name__ == "__main__":
    program(main)
