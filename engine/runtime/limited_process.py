"""Run a module with limits: `limited` runs this file in a process of its own.

It imports nothing of ours, so that the limits hold before anything else is loaded.
"""

import ctypes
import os
import resource
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Take the parent's process ID, bytes of memory (0: no limit) and the module, then the
    arguments of `python -m MODULE`."""
    parent, memory, module = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the end of the parent ends this
    if os.getppid() != parent:  # it ended before
        sys.exit(1)
    # Of the memory that a process can write. A limit of its addresses would also count the
    # libraries of PyTorch and the reserves of CUDA.
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if memory:
        most = memory if soft == resource.RLIM_INFINITY else min(memory, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it may crash with all of its memory
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
