"""Refuse WAV files whose samples FFmpeg would read as noise."""

import os
import struct
from contextlib import suppress

from ..errors import InputError
from ..reading import open_regular

NAMES = (b"RIFF", b"RF64", b"BW64")
EXTENSIBLE = 0xFFFE
MOST_CHUNKS = 1000  # to search for the format, which usually is the first one


def check_wave_format(path: str | os.PathLike) -> None:
    """Check a WAV file's format; another file is not looked at.

    WAVE_FORMAT_EXTENSIBLE has two numbers of bits: those that a sample takes, and those that are
    valid. FFmpeg takes the second for the first.

    Raises:
        InputError: they are not the same number of bytes.
    """
    form = b""
    with suppress(OSError), open_regular(path) as file:  # FFmpeg gives a better error
        head = file.read(12)
        if not head.startswith(NAMES) or head[8:] != b"WAVE":
            return
        for _ in range(MOST_CHUNKS):
            chunk = file.read(8)
            if len(chunk) < 8:
                return
            name, size = struct.unpack("<4sI", chunk)
            if name == b"fmt ":
                break
            file.seek(size + size % 2, os.SEEK_CUR)
        form = file.read(20)
    if len(form) < 20:
        return
    tag, *_, bits, _, valid = struct.unpack("<HHIIHHHH", form)
    if tag == EXTENSIBLE and valid and (valid + 7) // 8 != (bits + 7) // 8:
        raise InputError(
            f"{path} has {valid} valid bits in samples of {bits} bits, which FFmpeg cannot read; "
            f"expected {bits}; sox IN.wav OUT.wav writes such a file"
        )
