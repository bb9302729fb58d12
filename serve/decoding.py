"""Decode media files of clients, each in a process of its own that a bad file may only harm."""

import asyncio
import errno
import json
import os
import signal
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import InputError, one_line

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("decoding_process.py"))]
TIMEOUT = 120.0  # seconds; ten minutes of speech take one or two
MAX_MESSAGE = 1 << 16  # bytes that the process may say
SAMPLE_RATE = 16000
WAV_HEADER = 58  # bytes: RIFF, an 18-byte "fmt ", "fact", "data"
MAX_SOUND = 1 << 30  # bytes of a speech's own sound


@dataclass(frozen=True)
class Decoded:
    """Speech from a file.

    Attributes:
        pcm: (S,) float32 at 16 kHz, as `engine.media.speech.read_speech` gives it.
        warnings: lines that say what was odd about the file.
    """

    pcm: np.ndarray
    warnings: list[str]


async def decode(file: bytes, *, max_seconds: float, sound: Path | None = None) -> Decoded:
    """Decode a media file. If this is cancelled, the process ends at once.

    Args:
        file: the content of an audio or video file.
        max_seconds: of speech.
        sound: a WAV file to write, with the sound at its own rate in mono or stereo.

    Raises:
        InputError: it cannot be decoded, is too long, or its decoder crashed or took too much
            time or memory.
        OSError: what is decoded cannot be written, since the disk is full.
    """
    own_sound = nullcontext() if sound is None else _closed(_new(sound))
    async with _closed(_temporary()) as source, _closed(_temporary()) as pcm, own_sound as own:
        await asyncio.to_thread(_write, source, file)
        descriptors = [source.fileno(), pcm.fileno(), own.fileno() if own else -1]
        said = await _run([*map(str, descriptors), repr(max_seconds)], descriptors)
        samples = await asyncio.to_thread(_samples, pcm, max_seconds)
        if own is not None:
            await asyncio.to_thread(_write_header, own, said)
    return Decoded(samples, [one_line(line) for line in said.get("warnings", ())])


def write_wav(path: Path, sound: np.ndarray, rate: int) -> None:
    """Write (C, S) float32 sound as `decode` does."""
    with _new(path) as file:
        _write(file, np.ascontiguousarray(sound.T, "<f4").tobytes(), WAV_HEADER)
        _write_header(file, {"rate": rate, "channels": len(sound)})


async def _run(arguments: list[str], descriptors: list[int]) -> dict[str, Any]:
    """Run the process, and return what it says of the file."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        str(os.getpid()),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=[number for number in descriptors if number >= 0],
        cwd="/",
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for the server
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            said = b""
            while part := await process.stdout.read(MAX_MESSAGE):  # type: ignore[union-attr]
                said = (said + part)[:MAX_MESSAGE]
            code = await process.wait()
    except TimeoutError:
        raise InputError(f"the file was not decoded within {TIMEOUT:g} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await asyncio.shield(process.wait())
    return _answer(code, said)


def _environment() -> dict[str, str]:
    """Return the process's environment, without the server's secrets."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": os.defpath}
    # of hosts where Python's or FFmpeg's libraries are not where the system looks for them
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return environment | libraries


def _answer(code: int, said: bytes) -> dict[str, Any]:
    """Return what the process said, or raise it."""
    try:
        answer = json.loads(said) if said else {}
    except ValueError:
        answer = {}
    if isinstance(answer, dict) and "error" in answer:
        raise InputError(answer["error"])
    if isinstance(answer, dict) and answer.get("full"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), tempfile.gettempdir())
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        raise InputError(f"the file cannot be decoded: its decoder ended with {name}")
    if code or not isinstance(answer, dict) or "rate" not in answer:
        raise InputError("the file cannot be decoded: its decoder failed")
    return answer


def _samples(file: FileIO, max_seconds: float) -> np.ndarray:
    """Read what the process wrote, which may be anything."""
    size = os.fstat(file.fileno()).st_size
    if size % 4 or not 0 < size <= 4 * (max_seconds * SAMPLE_RATE):
        raise InputError(f"the file cannot be decoded: its decoder wrote {size} bytes")
    file.seek(0)
    return np.fromfile(file, "<f4")


def _write_header(file: FileIO, said: dict[str, Any]) -> None:
    """Write the header of a WAV file of float32 samples that are there.

    Args:
        said: "rate" and "channels", from the process.
    """
    rate, channels = int(said["rate"]), int(said["channels"])
    size = os.fstat(file.fileno()).st_size - WAV_HEADER
    if not (0 < size <= MAX_SOUND and channels in (1, 2) and 0 < rate < 1 << 20):
        raise InputError("the file cannot be decoded: its decoder wrote no sound")
    block = 4 * channels
    form = struct.pack("<HHIIHHH", 3, channels, rate, rate * block, block, 32, 0)
    header = b"RIFF" + struct.pack("<I", size + WAV_HEADER - 8) + b"WAVE"
    header += b"fmt " + struct.pack("<I", len(form)) + form
    header += b"fact" + struct.pack("<II", 4, size // block)
    header += b"data" + struct.pack("<I", size)
    os.pwrite(file.fileno(), header, 0)


def _temporary() -> FileIO:
    """Open a file without a name."""
    return tempfile.TemporaryFile(buffering=0)


@asynccontextmanager
async def _closed(file: FileIO) -> AsyncIterator[FileIO]:
    """Close a file in a thread, because for one without a name that frees all that it holds."""
    try:
        yield file
    finally:
        await asyncio.shield(asyncio.to_thread(file.close))


def _new(path: Path) -> FileIO:
    """Open a new file, with room for the header."""
    file = open(path, "xb", buffering=0)  # noqa: SIM115
    file.seek(WAV_HEADER)
    return file


def _write(file: FileIO, data: bytes, at: int = 0) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file.fileno(), view, at)
        view, at = view[written:], at + written
