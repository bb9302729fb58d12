"""Interrupt renders of one process, each at another moment, and print what they leave.

Run as `python -m tests.engine.interrupted_renders AVATAR AUDIO FOLDER COUNT`. The moments are calls
of the engine's functions in any of its threads: the first and the last ones, and others at equal
distances. It prints a line of JSON for each.
"""

import contextlib
import gc
import io
import itertools
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from engine import render
from engine.command import program
from tests.conftest import ROOT

KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The first and the last moments, of which none is left out. Among the last ones is that between the
# renaming of the mp4 and that of the folder of images.
FIRST, LAST = 5, 15


class Moments:
    """Counts the calls of the engine's functions, and sends a signal at one of them.

    Args:
        at: number of the call, from 1; 0 for none.
    """

    def __init__(self, at: int, kind: int):
        self.count, self.place = 0, ""
        self._at, self._kind, self._numbers = at, kind, itertools.count(1)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(f"{ROOT}/engine/"):
            return
        if code.co_name.startswith("<"):  # a generator expression is called for each of its values
            return
        number = self.count = next(self._numbers)
        if number == self._at:
            self.place = f"{Path(code.co_filename).stem}.{code.co_name}"
            os.kill(os.getpid(), self._kind)

    def watch(self, work) -> Any:
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            return work()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def interrupted(arguments: list[str], folder: Path, at: int, kind: int) -> dict[str, Any]:
    """Render into a new folder, and return what happened and what is left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in KINDS:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    outputs = ["-o", str(folder / "o.mp4"), "--frames", str(folder / "frames")]
    moments, errors, code = Moments(at, kind), io.StringIO(), None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            program(lambda: moments.watch(lambda: render.main([*arguments, *outputs])))
        except SystemExit as ended:
            code = ended.code
    # What is interrupted before the first line of its closing is removed when its objects are freed,
    # at the latest when the process ends.
    gc.collect()
    return {
        "at": at,
        "count": moments.count,
        "place": moments.place,
        "kind": kind,
        "code": code,
        "errors": errors.getvalue(),
        "left": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "threads": [each.name for each in threading.enumerate() if each.name.startswith("viseme")],
    }


def main(avatar: str, audio: str, folder: str, count: int) -> None:
    arguments = ["--avatar", avatar, "--audio", audio, "--device", "cpu", "--no-progress"]
    for _ in range(2):  # the first one imports more
        whole = interrupted(arguments, Path(folder), 0, 0)
    last, between = whole["count"], count - FIRST - LAST
    step = (last - LAST - FIRST) / (between + 1)
    numbers = [*range(1, FIRST + 1), *(round(FIRST + n * step) for n in range(1, between + 1))]
    numbers += range(last - LAST + 1, last + 1)
    print(json.dumps(whole), flush=True)
    for number, kind in zip(numbers, itertools.cycle(KINDS)):
        print(json.dumps(interrupted(arguments, Path(folder), number, kind)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
