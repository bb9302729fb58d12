"""Pickles of training checkpoints, read without running anything that is in them.

`torch.load(weights_only=True)` refuses what trainers keep beside the weights, such as NumPy scalars
and paths. Here stand-ins take the place of such objects, so that no code of NumPy or another
library runs on the file's data, a Windows path can be read on Linux, and the NumPy version that
wrote the file does not matter.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import torch


class _Ignored:
    """Stands for an object that is no weight: takes whatever it is made of and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _dict(*_: object) -> dict[Any, Any]:
    """Stands for a defaultdict: its items may be weights, its factory is not needed."""
    return {}


def _list(*_: object) -> list[Any]:
    """Stands for a deque, without its maximum length."""
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
# PyTorch has one list of safe globals for all threads: it must not change while a file is read.
_lock = Lock()


def read_pickle(path: Path) -> object:
    """The content of a file that `torch.save` wrote: tensors, plain values, and stand-ins.

    Raises `pickle.UnpicklingError` for anything else, see `refused_global`, and whatever else
    `torch.load` raises for a broken file.
    """
    with _lock:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = refused_global(error)
            # PyTorch's message leaves out the module of what is in `builtins`.
            if name not in _STAND_INS and f"builtins.{name}" not in _STAND_INS:
                raise
        safe: list[Callable[..., Any] | tuple[Callable[..., Any], str]]
        safe = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)


def refused_global(error: pickle.UnpicklingError) -> str | None:
    """The class or function whose use was refused, None if the error is another one."""
    name = re.search(r"GLOBAL (\S+)", str(error))
    return name[1] if name else None
