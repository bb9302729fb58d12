"""Limits of the processes that read what strangers send.

They import this before anything else, so it imports nothing of ours.
"""

import ctypes
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NICE = 10


def limit(
    parent: int, *, memory: int, cpu_seconds: int, file_bytes: int, files: int | None = None
) -> None:
    """Set what this process may use, for good.

    Args:
        parent: process ID; if that one ends, so does this.
        memory: bytes that it can write.
        file_bytes: of each file that it writes.
        files: that are open at once; None for as many as the parent may open.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        sys.exit(1)
    os.nice(NICE)  # live sessions go first
    limits = {
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_CORE: 0,
    }
    if files is not None:
        limits[resource.RLIMIT_NOFILE] = files
    for what, most in limits.items():
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
