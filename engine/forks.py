"""Refuse to compute in a process that was forked from one that has computed.

The threads of PyTorch, ONNX Runtime and FFmpeg do not exist in the child. Without this check, it
would wait for them without end.
"""

import ctypes
import os
from weakref import WeakSet

from .errors import InputError

_computed = False  # in this process
_threads_lost = False  # because its parent had computed before it was forked

_kept: WeakSet[object] = WeakSet()  # see `keep_in_children`


def keep_in_children(user: object) -> None:
    """Never free an object in processes that are forked from this one: FFmpeg or ONNX Runtime would
    wait for its threads, at the latest when the process ends."""
    _kept.add(user)


def note_computing() -> None:
    """Note that this process now has threads, and check it as `check_fork` does."""
    global _computed
    check_fork()
    _computed = True


def check_fork() -> None:
    """Check that this process has the threads that its libraries started.

    Raises:
        InputError: its parent had computed before it was forked.
    """
    if _threads_lost:
        raise InputError(
            f"process {os.getpid()} was forked from one that had rendered, whose threads it does "
            "not have; fork before the first render, or start processes with "
            'multiprocessing.get_context("spawn")'
        )


def _in_child() -> None:
    global _threads_lost
    _threads_lost = _computed
    for user in _kept:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(user))


os.register_at_fork(after_in_child=_in_child)
