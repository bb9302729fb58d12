"""Install trained networks in the demo avatar: python -m examples.install_networks CKPT.pth

CKPT.pth is a checkpoint of `python -m train`. Both networks are written in float16.
"""

import tempfile
from pathlib import Path

from engine.command import Parser, program, run
from engine.errors import InputError
from engine.runtime.torch import load_checkpoint
from models import checkpoint

from . import DEMO, KINDS, network_files


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m examples.install_networks",
        description="Install trained networks in the demo avatar.",
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CKPT.pth", help="checkpoint that holds both networks")
    add("-o", "--output", type=Path, default=DEMO, metavar="DIR", help="default: the demo avatar")
    options = parser.parse_args(arguments)
    return run(
        lambda: install(options.checkpoint, options.output), interrupted="no network was replaced"
    )


def install(trained: Path, folder: Path) -> None:
    """Write both networks of a checkpoint into an avatar's folder, in float16.

    Either both files are replaced or none, because the networks only work together.

    Raises:
        InputError: the checkpoint cannot be used, or the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected the folder of an avatar")
    networks = {kind: load_checkpoint(trained, kind) for kind in KINDS}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".networks-") as scratch:
        try:
            for kind, path in network_files(Path(scratch)).items():
                checkpoint.save(networks[kind], path, precision="fp16")
        except ValueError as error:
            raise InputError(f"{trained}: {error}") from error
        for path in network_files(folder).values():
            (Path(scratch) / path.name).replace(path)


if __name__ == "__main__":
    program(main)
