"""What the commands share: a user's mistake is one line and an exit code, never a traceback."""

import argparse
import io
import signal
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from .errors import InputError, printable


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)} (--help lists the options)\n")


def run(work: Callable[[], object], *, interrupted: str) -> int:
    """Do a command's work, and say what went wrong: 0 done, 2 an error, 130 Ctrl-C.

    A warning is a line on stderr.

    Args:
        interrupted: what Ctrl-C left behind, for people.
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
    except OSError as error:  # a folder that may not be read, a disk that is full
        where = f"{error.filename}: " if error.filename else ""
        print(printable(f"error: {where}{error.strerror or error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(printable(f"interrupted: {interrupted}"), file=sys.stderr)
        return 130
    return 0


def program(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` as a program, which cleans up when it is asked to end.

    Printing does not fail: a character that the locale does not have is printed as its escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where whoever started us closed it
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
