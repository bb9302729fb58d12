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
    search = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {"PYTHONPATH": os.pathsep.join(search), "PYTHONIOENCODING": "utf-8"}
    # a folder of its own, so that nothing stays of an export that is killed with us
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder).resolve() / target.name
        # Neither -m (for which there is -P) nor PYTHONPATH may find modules in the user's working
        # folder: an export.py or onnx.py that lies there would be run.
        command = [sys.executable, "-P", "-m", "export", kind, str(path.resolve()), "-o", str(made)]
        done = subprocess.run(
            [*command, "--precision", precision],
            cwd=folder,
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        lines = done.stderr.strip().splitlines() or [f"export ended with {done.returncode}"]
        if done.returncode != 0:
            raise InputError(lines[-1].removeprefix("error: "))
        if not made.exists():
            raise InputError(f"{path} was not exported: {lines[-1]}")
        made.replace(target)
    return target
