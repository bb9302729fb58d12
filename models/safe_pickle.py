"""Read pickles of training checkpoints without running any code in them.

`torch.load(weights_only=True)` refuses objects that trainers keep beside the weights, such as NumPy
scalars and paths. Here they are replaced by placeholders. So no code of NumPy or another library
runs on the file's data, a Windows path can be read on Linux, and the NumPy version that wrote the
file does not matter.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import torch


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
        pickle.UnpicklingError: the file contains other objects, see `refused_global`.
        Exception: `torch.load` raises others for broken files.
    """
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
    name = re.search(r"GLOBAL (\S+)", str(error))
    return name[1] if name else None
