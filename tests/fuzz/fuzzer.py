"""Mutate files, have a child process read them, and keep those that break something."""

import importlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .child import ROOT

# Bytes of memory that reading one of our small files may need.
MUCH_MEMORY = 1 << 30
RESTART = 2000  # cases after which the child is started anew, so that it stays small


@dataclass(frozen=True)
class Finding:
    """The first of all cases that break the same thing."""

    target: str
    name: str
    """What happened and where, such as "KeyError at engine/avatar/boxes.py:40"."""
    file: Path
    text: str


@dataclass
class Corpus:
    """A target's files: its seeds, and what ran code that nothing before it ran."""

    files: list[bytes]
    seeds: int
    edges: set[int] = field(default_factory=set)
    cases: int = 0


class Child:
    """The process that reads; started when it is needed, and killed when it hangs.

    Args:
        module: that has the targets.
        folder: for its temporary files.
    """

    def __init__(self, module: str, folder: str):
        command = [sys.executable, "-m", "tests.fuzz.child", module]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["PYTHONHASHSEED"] = "0"  # the hashes of lines are compared between processes
        environment["TMPDIR"] = folder
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, closed by `close`
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(self._process.stdout, selectors.EVENT_READ)
        if self._line(120) != "ready":
            raise RuntimeError(f"the child does not start: {self.last_words()}")

    def read(self, target: str, path: Path, timeout: float) -> dict[str, Any]:
        """Return the answer to a case: see `tests.fuzz.child`."""
        self._process.stdin.write(json.dumps([target, str(path)]).encode() + b"\n")
        self._process.stdin.flush()
        line = self._line(timeout)
        if line is None:
            return {"name": f"no end after {timeout:g} s", "text": "", "ended": True}
        if not line:
            code = self._process.wait()
            what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return {"name": what, "text": self.last_words(), "ended": True}
        return json.loads(line)

    def _line(self, timeout: float) -> str | None:
        """Return a line; "" if the process has ended, None if there is none in time."""
        data, end = b"", time.monotonic() + timeout
        while not data.endswith(b"\n"):
            if not self._waiting.select(max(end - time.monotonic(), 0)):
                return None
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                return ""
            data += part
        return data.decode().strip()

    def last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-4000:].decode(errors="replace")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self.errors, self._waiting):
            file.close()


class Fuzzer:
    """Reads mutated files of some targets in turns, each in the child process.

    A context manager.

    Args:
        names: of targets.
        seed: of all random numbers. Together with the same libraries it gives the same cases.
        folder: where files that break something are kept; made when there is one.
        timeout: seconds that reading one file may take.
        module: that has the targets, in `TARGETS`.
    """

    def __init__(
        self,
        names: list[str],
        *,
        seed: int,
        folder: Path,
        timeout: float = 10,
        module: str = "tests.fuzz.targets",
    ):
        targets = importlib.import_module(module).TARGETS
        self._targets = {name: targets[name] for name in names}
        self._module, self._folder, self._timeout = module, folder, timeout
        self._random = random.Random(seed)
        self._scratch = tempfile.TemporaryDirectory()
        self._child: Child | None = None
        self._read_since_start = 0
        self.findings: dict[tuple[str, str], Finding] = {}
        self.corpora = {}
        for name, target in self._targets.items():
            files = target.seeds(Path(self._scratch.name))
            self.corpora[name] = Corpus(list(files), len(files))

    def run(self, until: Callable[[], bool]) -> None:
        """Read all seeds, then mutated files, one of each target in turn, until told."""
        for name, corpus in self.corpora.items():
            for data in corpus.files[: corpus.seeds]:
                self._case(name, data, keep=False)
        for name in self._turns():
            if until():
                return
            corpus, target = self.corpora[name], self._targets[name]
            # half of the time a seed, else one that found something new
            newest = self._random.random() < 0.5
            data = self._random.choice(corpus.files if newest else corpus.files[: corpus.seeds])
            for _ in range(self._random.choice((1, 1, 1, 2, 4))):
                data = target.mutate(data, corpus.files, self._random)
            self._case(name, data, keep=True)

    def _turns(self) -> Iterator[str]:
        while True:
            yield from self._targets

    def _case(self, name: str, data: bytes, *, keep: bool) -> None:
        corpus, target = self.corpora[name], self._targets[name]
        path = Path(self._scratch.name) / f"case{target.suffix_of(data)}"
        path.write_bytes(data)
        if self._child is None:
            self._child, self._read_since_start = Child(self._module, self._scratch.name), 0
        answer = self._child.read(name, path, self._timeout)
        corpus.cases += 1
        self._read_since_start += 1
        what = answer.get("name")
        if what is None and answer["bytes"] > MUCH_MEMORY:
            what = f"more than {MUCH_MEMORY >> 20} MiB"
            answer["text"] = f"{answer['bytes'] >> 20} MiB"
        if what is not None:
            self._note(name, what, data, path.suffix, answer["text"])
        new = set(answer.get("edges", ())) - corpus.edges
        corpus.edges |= new
        if keep and new and what is None and len(data) < 1 << 20:
            corpus.files.append(data)
        if answer.get("ended") or self._read_since_start >= RESTART:
            self._child.close()
            self._child = None

    def _note(self, name: str, what: str, data: bytes, suffix: str, text: str) -> None:
        if (name, what) in self.findings:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        file = (self._folder / f"{name}-{len(self.findings)}{suffix}").absolute()
        file.write_bytes(data)
        file.with_name(f"{file.name}.txt").write_text(f"{what}\n{text}\n")
        self.findings[name, what] = Finding(name, what, file, text)

    def report(self) -> list[str]:
        """Return a line for each target, and two for each finding."""
        lines = [
            f"{name}: {corpus.seeds} seeds, {corpus.cases} cases, {len(corpus.edges)} pairs of "
            f"lines, {len(corpus.files) - corpus.seeds} files with new ones"
            for name, corpus in self.corpora.items()
        ]
        for finding in self.findings.values():
            lines.append(f"{finding.target}: {finding.name}")
            command = f"python -m tests.fuzz.child {self._module} {finding.target} {finding.file}"
            lines.append(f"    {command}")
        return lines

    def __enter__(self) -> "Fuzzer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.close()
        self._scratch.cleanup()
