"""What the fuzzer needs to know of a kind of files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import Mutate, mutate_bytes


@dataclass(frozen=True)
class Target:
    """One kind of files.

    Attributes:
        read: reads a file, as the engine does. Called in the child process.
        seeds: makes files to begin with. Gets a folder for temporary files.
        suffix: of the files' names, or a function of their content.
        mutate: changes a file.
        allowed: exceptions that are right for a damaged file.
        prepare: called once in the child, before its memory is limited.
    """

    read: Callable[[Path], object]
    seeds: Callable[[Path], list[bytes]]
    suffix: str | Callable[[bytes], str]
    mutate: Mutate = mutate_bytes
    allowed: tuple[type[Exception], ...] = ()
    prepare: Callable[[], object] = lambda: None

    def suffix_of(self, data: bytes) -> str:
        return self.suffix if isinstance(self.suffix, str) else self.suffix(data)
