"""Decode a media file with limits: `serve.decoding` runs this file in a process of its own.

It imports nothing of ours at its top but the limits, so that they hold before anything else is
loaded.
"""

import errno
import json
import os
import sys
import types
import warnings

from serve.child_limits import limit

MAX_BYTES = 2 << 30
LIMITS = {
    "memory": MAX_BYTES,
    "cpu_seconds": 60,
    "file_bytes": (1 << 30) + 4096,
    "files": 64,
}


def main() -> None:
    """Take the parent's process ID, the descriptors of the file, of what is written (PCM, and sound
    or -1), and the most seconds."""
    parent, source, pcm, sound, seconds = sys.argv[1:]
    limit(int(parent), **LIMITS)
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
