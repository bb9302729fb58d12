"""ONNX files made of checkpoints, once, and kept in the user's cache folder."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ..cache import cache_folder
from ..errors import InputError, printable
from .signature import Signature


def exported(signature: Signature, path: Path, precision: str) -> Path:
    """The ONNX file of a checkpoint, made by `python -m export` unless it was made before.

    Raises:
        InputError: what the export refuses, or a folder that cannot be made.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    target = cache_folder() / f"{signature.kind}-{digest}-{precision}.onnx"
    if target.exists():
        return target
    kind = signature.kind.replace("_", "-")
    print(printable(f"exporting {path} to ONNX, once: {target}"), file=sys.stderr)
    home = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join([home, os.environ.get("PYTHONPATH", "")])
    # a folder of its own, so that nothing stays of an export that is killed with us
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [sys.executable, "-m", "export", kind, str(path.resolve()), "-o", str(made)]
        done = subprocess.run(
            [*command, "--precision", precision],
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [f"export ended with {done.returncode}"]
            raise InputError(lines[-1].removeprefix("error: "))
        made.replace(target)
    return target
