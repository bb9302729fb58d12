"""Run a module on a file that may come from anyone, in a process with limits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from ..errors import InputError, printable


def run_limited(
    module: str, *arguments: str, file: Path, path: Path, made: Path, aim: str, seconds: float
) -> None:
    """Run `python -m MODULE ARGUMENTS` of this checkout. Its memory is limited too.

    Args:
        file: what it reads.
        path: what errors call this file.
        made: the file that it writes, whose folder is its working folder.
        aim: what is to be done, for errors: "exported to ONNX".
        seconds: when to end it.

    Raises:
        InputError: it failed, and why.
    """
    home = str(Path(__file__).resolve().parents[2])
    search = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {"PYTHONPATH": os.pathsep.join(search), "PYTHONIOENCODING": "utf-8"}
    script = Path(__file__).resolve().with_name("limited_process.py")
    # An export.py or onnx.py in the user's working folder must not be run. Therefore -P, which
    # keeps Python from searching beside the script, and absolute entries in PYTHONPATH.
    command = [sys.executable, "-P", str(script), str(os.getpid()), module, *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=made.parent,
            env={**os.environ, **environment},
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{path} was not {aim} within {seconds / 60:g} minutes") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise InputError(
            f"{path} was not {aim}: its process was ended by {name}, perhaps because of too "
            "little memory"
        )
    lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
    line = lines[-1].removeprefix("error: ")
    line = line.replace(printable(file.resolve()), str(path))
    if done.returncode == 2:
        raise InputError(line)
    if done.returncode != 0 or not made.exists():
        raise InputError(f"{path} was not {aim}: {line}")
