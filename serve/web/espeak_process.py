"""Speak a text with espeak-ng: `serve.web.voice` runs this file in a process of its own.

The library keeps its state in globals, and reads texts of strangers with C code. The text comes on
stdin. On stdout go the sample rate, as an int32, and int16 samples as they are made.

It imports nothing of ours but the limits, so that it starts quickly.
"""

import ctypes
import os
import sys
from typing import Any

from serve.child_limits import limit

LIMITS = {"memory": 512 << 20, "cpu_seconds": 60, "file_bytes": 0}
NO_LIBRARY, NO_DATA, NO_VOICE = 3, 4, 5  # exit codes

# of speak_lib.h
SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT
DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report a missing data folder
RATE, PITCH = 1, 3  # espeak_PARAMETER
UTF8 = 1
SEED = 1

CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def main() -> None:
    """Take the parent's process ID, the paths of the library and of its data ("" for its own), the
    voice, words a minute, and the pitch."""
    parent, path, data, voice, rate, pitch = sys.argv[1:]
    limit(int(parent), **LIMITS)
    text = sys.stdin.buffer.read()
    try:
        library = ctypes.CDLL(path)
    except OSError:
        sys.exit(NO_LIBRARY)
    sample_rate = library.espeak_Initialize(SYNCHRONOUS, 0, data.encode() or None, DONT_EXIT)
    if sample_rate <= 0:
        sys.exit(NO_DATA)
    if hasattr(library, "espeak_ng_SetRandSeed"):  # 1.52 and newer, which seed by the time of day
        library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))

    @CALLBACK  # type: ignore[untyped-decorator]  # a type of ctypes
    def collect(samples: Any, count: int, _: Any) -> int:
        if samples and count:
            write(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(voice.encode()):
        sys.exit(NO_VOICE)
    library.espeak_SetParameter(RATE, int(rate), 0)
    library.espeak_SetParameter(PITCH, int(pitch), 0)
    write(ctypes.string_at(ctypes.byref(ctypes.c_int32(sample_rate)), 4))
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, UTF8, None, None)
    library.espeak_Synchronize()
    os._exit(0)


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


if __name__ == "__main__":
    main()
