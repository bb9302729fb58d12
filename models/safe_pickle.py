"""Read pickles of training checkpoints without running any code in them.

`torch.load(weights_only=True)` refuses objects that trainers keep beside the weights, such as NumPy
scalars and paths. Here they are replaced by placeholders. So no code of NumPy or another library
runs on the file's data, a Windows path can be read on Linux, and the NumPy version that wrote the
file does not matter.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import IO, Any

import torch

MAX_BYTES = 2 << 30  # of a file, and of its uncompressed content
MAX_ENTRIES = 100_000  # of an archive or of all mappings in it
MAX_PICKLE = 4 << 20  # bytes of an archive's pickle, in which the values of tensors are not
MAX_STEPS = 500_000  # of a pickle; PyTorch takes a microsecond and up to 100 bytes for each
# Characters of a class's name, and of another text. PyTorch searches its own error messages, which
# contain them, in a time that grows with the square.
MAX_CLASS_NAME, MAX_TEXT = 200, 100_000


class TooLarge(ValueError):
    """A file exceeds a limit. The message says which, without the file's name."""


class _Ignored:
    """A placeholder for an object that is not a weight. It accepts any arguments and keeps
    nothing."""

    __slots__ = ()

    def __new__(cls, *_: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _dict(*_: object) -> dict[Any, Any]:
    """Replace a defaultdict, whose items may be weights. Its factory is not needed."""
    return {}


def _list(*_: object) -> list[Any]:
    """Replace a deque. Its maximum length is not needed."""
    return []


_IGNORED = {
    "argparse": ["Namespace"],
    "builtins": ["bool", "dict", "float", "frozenset", "int", "list", "range", "slice", "str"],
    "datetime": ["date", "datetime", "time", "timedelta", "timezone"],
    "decimal": ["Decimal"],
    "fractions": ["Fraction"],
    "numpy": ["dtype", "ndarray"],
    "numpy._core.multiarray": ["_reconstruct", "scalar"],
    "numpy.core.multiarray": ["_reconstruct", "scalar"],  # written by NumPy 1
    "types": ["SimpleNamespace"],
    "uuid": ["UUID"],
    "pathlib": ["PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"],
    "pathlib._local": ["PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"],  # 3.13
}
_STAND_INS = {
    "collections.defaultdict": _dict,
    "collections.deque": _list,
    **{f"{module}.{name}": _Ignored for module, names in _IGNORED.items() for name in names},
}
# PyTorch's list of safe globals is shared by all threads, and must not change while a file is read.
_lock = Lock()


def read_pickle(path: Path) -> object:
    """Read a file that `torch.save` wrote.

    Returns:
        Its content: tensors, plain values, and placeholders.

    Raises:
        TooLarge: the content is too large, or could become so.
        pickle.UnpicklingError: the file contains other objects, see `refused_global`.
        Exception: `zipfile` and `torch.load` raise others for broken files.
    """
    _check_sizes(path)
    with _lock:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = refused_global(error)
            # PyTorch's message omits the module name `builtins`.
            if name not in _STAND_INS and f"builtins.{name}" not in _STAND_INS:
                raise
        safe: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
        safe = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)


def refused_global(error: pickle.UnpicklingError) -> str | None:
    """Return the class or function that was refused; None if the error has another cause."""
    name = re.search(r"GLOBAL (\S{1,200})", str(error))
    return name[1] if name else None


class _DirectoryReader(io.FileIO):
    """A file for `zipfile`, which reads an archive's directory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 100 * MAX_ENTRIES:
            raise TooLarge(f"its archive's directory has {size} bytes; expected fewer")
        return super().read(size) or b""


def _check_sizes(path: Path) -> None:
    """Raise TooLarge if the content is too large, before any of it is allocated."""
    with _DirectoryReader(path) as file:
        if file.read(4) != b"PK\x03\x04":  # the format before zip, whose content is the file
            with path.open("rb") as older:
                for _ in range(5):  # the weights come after five pickles
                    if not older.peek(1):
                        break  # of another program, which PyTorch refuses
                    _check_pickle(older)
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise TooLarge(f"has {len(entries)} entries; expected at most {MAX_ENTRIES}")
            total = sum(entry.file_size for entry in entries)
            if total > MAX_BYTES:
                raise TooLarge(
                    f"has {total / 2**30:.2f} GiB uncompressed; expected at most "
                    f"{MAX_BYTES / 2**30:.0f} GiB"
                )
            for entry in entries:
                # PyTorch ignores the case of names.
                if not entry.orig_filename.lower().endswith("data.pkl"):
                    continue
                if entry.file_size > MAX_PICKLE:
                    raise TooLarge(
                        f"has {entry.file_size} bytes of names and other values beside the "
                        f"weights; expected at most {MAX_PICKLE}"
                    )
                del entry.CRC  # which is not checked, because PyTorch can leave it out
                _check_pickle(io.BytesIO(archive.read(entry)))


def _check_pickle(file: IO[bytes]) -> None:
    """Read the steps of a pickle, up to its end, without running them.

    Raises:
        TooLarge: there are too many, or one names or creates something that may be too large.
        ValueError: it is broken.
    """
    for step, (code, argument, _) in enumerate(pickletools.genops(file)):
        if step == MAX_STEPS:
            raise TooLarge(f"has more than {MAX_STEPS} values beside the weights")
        if code.name == "GLOBAL" and isinstance(argument, str):
            if len(argument) > MAX_CLASS_NAME:
                raise TooLarge(f"contains a class whose name has {len(argument)} characters")
            if argument.endswith(" bytearray"):
                raise TooLarge("contains a bytearray, which may have any size")
        elif isinstance(argument, str | bytes) and len(argument) > MAX_TEXT:
            raise TooLarge(
                f"has a text of {len(argument)} characters beside the weights; expected at most "
                f"{MAX_TEXT}"
            )
