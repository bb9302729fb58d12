"""Decode a media file with limits: `serve.decoding` runs this file in a process of its own.

It imports nothing of ours at its top, so that the limits hold before anything else is loaded.
"""

import ctypes
import errno
import json
import os
import resource
import signal
import sys
import types
import warnings

MAX_BYTES = 2 << 30  # of memory that the process can write
MAX_CPU_SECONDS = 60
MAX_FILE_BYTES = (1 << 30) + 4096
MAX_FILES = 64
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38


def limit(parent: int) -> None:
    """Set what this process may use, for good.

    Args:
        parent: process ID; if that one ends, so does this.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        sys.exit(1)
    os.nice(10)  # live sessions go first
    for what, most in (
        (resource.RLIMIT_DATA, MAX_BYTES),
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def main() -> None:
    """Take the parent's process ID, the descriptors of the file, of what is written (PCM, and sound
    or -1), and the most seconds."""
    parent, source, pcm, sound, seconds = sys.argv[1:]
    limit(int(parent))
    leave_out_torch()
    from engine.errors import InputError

    try:
        said = decode(int(source), int(pcm), int(sound), float(seconds))
    except InputError as error:
        said = {"error": str(error).replace(f"/proc/self/fd/{source}", "file")}
    except MemoryError:
        said = {"error": f"the file takes more than {MAX_BYTES >> 30} GB of memory to decode"}
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = {"full": True}  # which is not the file's fault
    print(json.dumps(said), flush=True)
    os._exit(0)  # nothing is left to be done, and libraries take their time


def leave_out_torch() -> None:
    """Make `engine.media` importable without the packages' own `__init__`, which import PyTorch:
    that takes ten times as long as decoding a speech does."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for name in ("engine", "kernels"):
        package = types.ModuleType(name)
        package.__path__ = [os.path.join(root, name)]
        sys.modules[name] = package


def decode(source: int, pcm: int, sound: int, seconds: float) -> dict[str, object]:
    """Decode a file, see `serve.decoding.decode`.

    Returns:
        "rate" and "channels" of the sound, "warnings".
    """
    import numpy as np

    from engine.errors import InputError
    from engine.media.speech import audio_blocks, read_samples

    path = f"/proc/self/fd/{source}"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        _write(pcm, read_samples(path, max_seconds=seconds).astype("<f4").tobytes())
    notes = [str(note.message).replace(path, "file")[:300] for note in caught][:5]
    said: dict[str, object] = {"rate": 16000, "channels": 1, "warnings": notes}
    if sound < 0:
        return said
    written = 0
    for samples, rate, _ in audio_blocks(path):
        said["rate"], said["channels"] = rate, len(samples)
        data = np.ascontiguousarray(samples.T, "<f4").tobytes()
        written += len(data)
        if written > 1 << 30:
            raise InputError(
                f"file has {len(samples)} channels at {rate} Hz, which take more than 1 GB; "
                "expected less"
            )
        _write(sound, data)
    return said


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    main()
