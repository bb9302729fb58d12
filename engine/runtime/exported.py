"""Export checkpoints to ONNX, once each, and keep the files in the cache folder."""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from ..cache import CHUNK, cache_folder, checksum, find_undamaged, remove_leftovers
from ..errors import InputError, printable
from ..reading import open_regular
from .limited import run_limited
from .signature import Signature

MAX_BYTES = 2 << 30  # of a checkpoint, as in `models.checkpoint`
TIMEOUT = 20 * 60  # seconds; an export takes less than one minute on two cores


def exported(signature: Signature, path: Path, precision: str) -> Path:
    """Return the ONNX file of a checkpoint. If it is not in the cache, run `python -m export`.

    The name of the file in the cache has the SHA-256 of the checkpoint and the CRC-32 of its own
    content. A file with another content is removed and made again.

    Raises:
        InputError: the checkpoint cannot be exported, or the cache folder cannot be used.
    """
    folder = cache_folder()
    try:
        with open_regular(path, MAX_BYTES) as file:
            source = hashlib.file_digest(file, "sha256").hexdigest()
        found = find_undamaged(folder, _stem(signature, source, precision))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    return found or _export(signature, path, precision, folder)


def _stem(signature: Signature, source: str, precision: str) -> str:
    """Return the beginning of a file's name, which is followed by the checksum of its content."""
    return f"{signature.kind}-{source[:32]}-{precision}"


def _export(signature: Signature, path: Path, precision: str, folder: Path) -> Path:
    """Export a checkpoint to the cache folder, and return the file."""
    remove_leftovers(folder)
    print(printable(f"exporting {path} to ONNX, once: {folder}"), file=sys.stderr)
    try:
        # In a temporary folder, so that no partial file stays if the export is killed.
        with tempfile.TemporaryDirectory(
            prefix=".export.", suffix=".partial", dir=folder
        ) as temporary:
            # A copy is exported, because the checkpoint may change after it was hashed. It has the
            # checkpoint's name, for errors.
            copy = Path(temporary) / f"checkpoint{path.suffix}"
            source = _copy(path, copy)
            made = Path(temporary) / "made.onnx"
            _run(signature, path, copy, made, precision)
            with made.open("rb") as file:
                os.fsync(file.fileno())
            target = folder / f"{_stem(signature, source, precision)}-{checksum(made)}.onnx"
            made.replace(target)
    except OSError as error:  # a full disk
        raise InputError(
            f"{path} cannot be exported to {folder}: {error.strerror or error}"
        ) from error
    return target


def _copy(path: Path, copy: Path) -> str:
    """Copy a checkpoint, and return the SHA-256 of what was copied."""
    digest = hashlib.sha256()
    with open_regular(path, MAX_BYTES) as source, copy.open("wb") as target:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()


def _run(signature: Signature, path: Path, copy: Path, made: Path, precision: str) -> None:
    """Export `copy`, which errors call `path`, in a process of its own.

    Raises:
        InputError: it cannot be exported.
    """
    source, target = str(copy.resolve()), str(made.resolve())
    run_limited(
        "export",
        *(signature.option, source, "-o", target, "--precision", precision),
        file=copy,
        path=path,
        made=made,
        aim="exported to ONNX",
        seconds=TIMEOUT,
    )
