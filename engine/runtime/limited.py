"""Run a module in a process of its own, also on a file that may come from anyone."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import InputError, printable

MAX_BYTES = 16 << 30  # of memory, of a process that reads a file that may come from anyone
KILLED = 10  # seconds that a process which was killed may take to end: one may hang in a driver


def run_module(
    module: str, *arguments: str, folder: Path, seconds: float, memory: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` of this checkout, in a process that ends with this one.

    Args:
        folder: its working folder. Nothing is imported from it.
        seconds: when to end it.
        memory: bytes that it can write.

    Raises:
        subprocess.TimeoutExpired: it was ended.
    """
    home = str(Path(__file__).resolve().parents[2])
    search = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {"PYTHONPATH": os.pathsep.join(search), "PYTHONIOENCODING": "utf-8"}
    script = Path(__file__).resolve().with_name("limited_process.py")
    # An export.py or onnx.py in the user's working folder must not be run. Therefore -P, which
    # keeps Python from searching beside the script, and absolute entries in PYTHONPATH.
    command = [sys.executable, "-P", str(script), str(os.getpid()), str(memory or 0), module]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="backslashreplace",
    )
    try:
        out, said = process.communicate(timeout=seconds)
    except BaseException:  # Ctrl-C too
        process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILLED)
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, said)


def run_limited(
    module: str, *arguments: str, file: Path, path: Path, made: Path, aim: str, seconds: float
) -> None:
    """Run a module on a file that may come from anyone. Its memory is limited too.

    Args:
        module, arguments, seconds: see `run_module`.
        file: what it reads.
        path: what errors call this file.
        made: the file that it writes, whose folder is its working folder.
        aim: what is to be done, for errors: "exported to ONNX".

    Raises:
        InputError: it failed, and why.
    """
    try:
        done = run_module(module, *arguments, folder=made.parent, seconds=seconds, memory=MAX_BYTES)
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
