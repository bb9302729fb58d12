"""The files of a prepared avatar, besides frames and speech."""

import hashlib
import json
import os
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ..avatar import Avatar
from ..avatar.layouts import MAX_NAME
from ..cache import VERSION
from .figures import FaceFigures, SoundFigures
from .film import Film
from .following import Found


def write_avatar(
    folder: Path, name: str, film: Film, found: Found, kept: np.ndarray, copied: Path | None
) -> None:
    """Write avatar.json, boxes.json and prepare.png.

    Args:
        name: of the avatar.
        kept: (N,) bool: the frames of the avatar.
        copied: the copy of the film that has its frames; None if they are in frames.mp4.
    """
    fps = film.fps
    manifest = {
        "name": name[:MAX_NAME],
        "fps": int(fps) if fps.denominator == 1 else str(fps),
        "frames": "frames.mp4" if copied is None else copied.name,
        "boxes": "boxes.json",
    }
    (folder / "avatar.json").write_text(json.dumps(manifest, indent=2) + "\n")
    rows = ",\n".join(json.dumps(row) for row in found.boxes.boxes[kept].tolist())
    (folder / "boxes.json").write_text(f"[\n{rows}\n]\n")
    found.sheet.draw(found.boxes.boxes, float(fps)).save(folder / "prepare.png")


def write_record(
    folder: Path,
    film: Film,
    face: FaceFigures,
    sound: SoundFigures | None,
    *,
    frames: int,
    copied: bool,
    options: dict[str, Any],
    networks: dict[str, str],
    warnings: list[str],
) -> None:
    """Write prepare.json: the film, versions, options, and all figures.

    Args:
        frames: how many the avatar has.
        networks: the hashes of those that find faces.
    """
    stream = film.video.stream
    record = {
        "source": {
            "name": Path(film.path).name,
            "sha256": sha256(film.path),
            "bytes": os.path.getsize(film.path),
            "container": film.video.container,
            "codec": film.video.codec,
            "height": stream.height,
            "width": stream.width,
            "pixel_aspect": str(stream.pixel_aspect),
            "bits": stream.bits,
            "transfer": stream.transfer,
            "primaries": stream.primaries,
            "interlaced": stream.interlaced,
            "fps": None if stream.fps is None else str(stream.fps),
            "frames": len(film.video),
        },
        "versions": {
            "viseme": VERSION,
            "av": metadata.version("av"),
            "onnxruntime": onnxruntime.__version__,
            "networks": networks,
        },
        "options": options,
        "frames": {
            "count": frames,
            "fps": str(film.fps),
            "height": film.height,
            "width": film.width,
            "copied": copied,
            "doubled": film.doubled,
            "left_out": film.left_out,
            "damaged": len(film.damaged),
            "cut_out": len(film) - frames,
        },
        "face": asdict(face),
        "sound": None if sound is None else asdict(sound),
        "warnings": warnings,
    }
    (folder / "prepare.json").write_text(json.dumps(record, indent=2) + "\n")


def check_avatar(folder: Path, count: int) -> None:
    """Open the avatar as training and rendering do."""
    opened = Avatar.load(folder, networks=False)
    if len(opened) != count:
        raise RuntimeError(f"{len(opened)} frames were written, instead of {count}")


def sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
