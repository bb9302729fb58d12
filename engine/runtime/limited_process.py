"""Run a module with limits: `limited` runs this file in a process of its own.

It imports nothing of ours, so that the limits hold before anything else is loaded.
"""

import ctypes
import os
import resource
import runpy
import signal
import sys

# Of the memory that a process can write. A limit of its addresses would also count the libraries of
# PyTorch and the reserves of CUDA.
MAX_BYTES = 16 << 30
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Take the parent's process ID and the module, then the arguments of `python -m MODULE`."""
    parent, module = int(sys.argv.pop(1)), sys.argv.pop(1)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the end of the parent ends this
    if os.getppid() != parent:  # it ended before
        sys.exit(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = MAX_BYTES if soft == resource.RLIM_INFINITY else min(MAX_BYTES, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
