"""Check how many samples an mp4 or a mov claims, before FFmpeg makes its index of them.

The index takes about 45 bytes a sample, and a few bytes can claim any number of samples.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from ..errors import InputError
from ..reading import open_regular

# Boxes of ISO/IEC 14496-12 that contain others, and in which FFmpeg looks for sample tables.
OUTER = frozenset(b"moov trak mdia minf stbl moof traf edts mvex udta dinf wave".split())
DEPTH = 10  # FFmpeg's own limit
# Samples that any file may have.
FEW = 1_000_000
# Samples a byte that a file may have. QuickTime's compressed sound has the most, about eleven.
PER_BYTE = 16


def check_sample_tables(path: str | os.PathLike) -> None:
    """Refuse a file that claims more samples than its bytes can hold. Files of other formats pass.

    Raises:
        InputError: the claim is too large, or the header is compressed.
    """
    with suppress(OSError), open_regular(path) as file:  # FFmpeg gives a better error
        size = os.fstat(file.fileno()).st_size
        for claim in _claims(path, file.fileno(), size):
            if claim > max(PER_BYTE * size, FEW):
                raise InputError(
                    f"{path} is damaged: it claims {claim:.0f} samples, but has only {size} bytes"
                )


def _claims(path: str | os.PathLike, file: int, size: int) -> Iterator[float]:
    """Yield what each table of the file claims, or several of them together."""
    chunks, per_chunk, in_fragments = 0, np.zeros((0, 3), np.uint32), 0
    for kind, begin, end in _boxes(file, 0, size):
        if kind == b"trak":
            chunks, per_chunk = 0, per_chunk[:0]
        elif kind in (b"stsz", b"stz2"):
            yield _number(file, begin + 8)
        elif kind in (b"stco", b"co64"):
            chunks = _number(file, begin + 4)
            yield _in_chunks(per_chunk, chunks)
        elif kind == b"stsc":
            rows = min(_number(file, begin + 4), max(end - begin - 8, 0) // 12)
            table = os.pread(file, 12 * rows, begin + 8)
            per_chunk = np.frombuffer(table[: len(table) // 12 * 12], ">u4").reshape(-1, 3)
            yield _in_chunks(per_chunk, chunks)
        elif kind == b"trun":
            in_fragments += _number(file, begin + 4)
            yield in_fragments
        elif kind == b"cmov":
            raise InputError(f"{path} has a compressed header; copy it with: ffmpeg -c copy")


def _in_chunks(table: np.ndarray, chunks: int) -> float:
    """Return the samples of all chunks. A row of the table has the first chunk, from 1, of a run,
    and the samples of each chunk in it."""
    if not len(table):
        return 0
    first, count = table[:, 0].astype(float), table[:, 1].astype(float)
    runs = np.diff(first, append=chunks + 1)
    if first[0] != 1 or runs.min() < 0:
        return float(count.max() * chunks)
    return float(count @ runs)


def _boxes(file: int, at: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """Yield the type of each box, and the begin and end of its content."""
    while at + 8 <= end:
        head = os.pread(file, 16, at)
        if len(head) < 8:
            return
        size, kind = struct.unpack_from(">I4s", head)
        begin = at + 8
        if size == 1 and len(head) == 16:
            size, begin = *struct.unpack_from(">Q", head, 8), at + 16
        size = size or end - at
        if size < begin - at:
            return
        stop = min(at + size, end)
        yield kind, begin, stop
        if kind in OUTER and depth < DEPTH:
            yield from _boxes(file, begin, stop, depth + 1)
        at += size


def _number(file: int, at: int) -> int:
    return int.from_bytes(os.pread(file, 4, at))
