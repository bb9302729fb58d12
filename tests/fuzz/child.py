"""The process that reads the files: it may crash, hang or be killed.

It gets one case a line, a target's name and a file's, and answers each with a line of JSON: the
exception, if it is not one that the target may raise, the memory that was needed, and the pairs of
lines of our code that this process ran for the first time.
"""

import importlib
import json
import resource
import sys
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / room}/" for room in ("engine", "models", "tests"))
LIMIT = 2 << 30  # bytes of memory, beyond what the libraries take

_known: set[int] = set()  # pairs of lines that an answer had


class Coverage:
    """Notes which line of our code was run after which, as hashes."""

    def __init__(self) -> None:
        self.edges: set[int] = set()

    def __call__(self, frame: types.FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        last, code = frame.f_lineno, hash(frame.f_code.co_filename) ^ frame.f_code.co_firstlineno

        def line(frame: types.FrameType, event: str, _: Any) -> Any:
            nonlocal last
            if event == "line":
                self.edges.add(code * 31 + (last << 16 ^ frame.f_lineno) & 0xFFFFFFFFFFFF)
                last = frame.f_lineno
            return line

        return line


def status(name: str) -> int:
    """Return a size from the kernel's status of this process, in bytes; 0 if there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(name)), 0)


def run(target: Any, path: Path) -> dict[str, object]:
    """Read one file, and return what happened."""
    coverage, before = Coverage(), status("VmRSS")
    answer: dict[str, object] = {}
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again here
    except OSError:
        before = status("VmHWM")
    try:
        sys.settrace(coverage)
        target.read(path)
    except target.allowed as error:
        if "\n" in str(error) or len(str(error)) > 2000:
            answer = {"name": "long message", "text": str(error)[:4000]}
    except BaseException as error:
        places = traceback.extract_tb(error.__traceback__)
        ours = [place for place in places if place.filename.startswith(OURS)]
        last = ours[-1] if ours else places[-1]
        place = f"{last.filename.removeprefix(f'{ROOT}/')}:{last.lineno}"
        text = "".join(traceback.format_exception(error))
        answer = {"name": f"{type(error).__name__} at {place}", "text": text[-8000:]}
    finally:
        sys.settrace(None)
    new = coverage.edges - _known
    _known.update(new)
    return {**answer, "bytes": status("VmHWM") - before, "edges": sorted(new)}


def main(module: str, *case: str) -> None:
    targets = importlib.import_module(module).TARGETS
    warnings.simplefilter("ignore")
    for target in targets.values():
        target.prepare()
    if limit := status("VmData"):
        resource.setrlimit(resource.RLIMIT_DATA, (limit + LIMIT, limit + LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if case:
        name, path = case
        print(json.dumps(run(targets[name], Path(path)), indent=1))
        return
    # what libraries print must not get between the answers
    answers = sys.stdout
    sys.stdout = sys.stderr
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, path = json.loads(line)
        print(json.dumps(run(targets[name], Path(path))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
