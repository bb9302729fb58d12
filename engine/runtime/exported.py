"""Export checkpoints to ONNX, once each, and keep the files in the cache folder."""

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
    """Return the ONNX file of a checkpoint. If it is not in the cache, run `python -m export`.

    Raises:
        InputError: the checkpoint cannot be exported, or the cache folder cannot be created.
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
    # in a temporary folder, so that no partial file stays if the export is killed
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder).resolve() / target.name
        # An export.py or onnx.py in the user's working folder must not be run. Therefore -P, which
        # keeps -m from searching there, and absolute entries in PYTHONPATH.
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
