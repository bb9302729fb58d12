"""Run a command: a user's mistake ends in one line and an exit code, never in a traceback."""

import argparse
import io
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn, ParamSpec, Self, TypeVar

from .errors import InputError, printable

ENDING = (signal.SIGTERM, signal.SIGHUP)
P = ParamSpec("P")
T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line and exits with 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)} (--help lists the options)\n")


def run(work: Callable[[], object], *, interrupted: object) -> int:
    """Do a command's work, and print errors and warnings as one line each on stderr.

    Args:
        work: raises InputError or OSError for errors that a user can fix.
        interrupted: a description of the state after Ctrl-C, which is made a text then.

    Returns:
        The exit code: 0 done, 2 an error, 130 Ctrl-C.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(
                printable(f"warning: {message}"), file=sys.stderr
            )
            work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, a full disk
        where = f"{error.filename}: " if error.filename else ""
        print(printable(f"error: {where}{error.strerror or error}"), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:  # PyTorch's is a RuntimeError
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        print("error: there is too little memory", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(printable(f"interrupted: {interrupted}"), file=sys.stderr)
        return 130
    return 0


class Apart:
    """Makes calls in a thread of its own, and waits for each.

    For calls into PyAV, which may swallow what a signal's handler raises, so that Ctrl-C is lost.
    Handlers run in the main thread, which waits here meanwhile. A context manager; at its end it
    waits for the call that a signal interrupted.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "viseme-apart")
        # Started before the first call: one that is interrupted while it starts is not waited for.
        self._thread.submit(int).result()

    def __call__(self, call: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        return self._thread.submit(call, *arguments, **options).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)


def program(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main`, which returns an exit code, as a program.

    SIGTERM and SIGHUP (the terminal was closed) unwind the stack, so that temporary files are
    removed. Characters that the locale cannot print are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None if the parent process closed it
            stream.reconfigure(errors="backslashreplace")
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, _end)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `engine/__init__.py`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:  # before or after the command's work
        code = 130
    # If a KeyboardInterrupt has left exec() of a text, as in `dataclass` or PyTorch's exporter,
    # CPython ends by SIGINT instead of with the exit code, even if the exception was caught. The
    # next exec() of a text clears that.
    exec("")
    sys.exit(code)


def _end(number: int, _: object) -> NoReturn:
    # Of a closed terminal, two SIGHUPs may come, from the shell and from the kernel. The second one
    # must not interrupt the removal of files.
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)
    sys.exit(128 + number)
