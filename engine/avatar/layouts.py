"""Avatar folders: which layout one has, and where its parts are."""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..errors import InputError
from ..media.frame_rate import MAX_FPS, MIN_FPS, allowed
from .boxes import read_json

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
NETWORK_SUFFIXES = (".onnx", ".plan", ".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Parts:
    """What a layout says of a folder, before it is opened."""

    name: str
    frames: Path  # a video or a folder of numbered images
    boxes: Path  # a JSON file or a folder of landmarks
    fps: Fraction | None = None
    generator: Path | None = None
    audio_encoder: Path | None = None


def find_networks(
    path: str | os.PathLike,
    *,
    generator: str | os.PathLike | None = None,
    audio_encoder: str | os.PathLike | None = None,
) -> dict[str, Path]:
    """The files of an avatar's two networks, "generator" and "audio_encoder".

    The arguments are those of `Avatar.load`, but neither frames nor boxes are opened.

    Raises:
        InputError: the folder is not an avatar's, or one of the files is missing.
    """
    return choose_networks(Path(path), find_layout(Path(path)), generator, audio_encoder)


def find_layout(root: Path) -> Parts:
    if not root.is_dir():
        raise InputError(f"{root} {'is not a folder' if root.exists() else 'does not exist'}")
    if (root / "avatar.json").exists():
        return _native(root)
    if (root / "dataset_manifest.json").exists():
        return _package(root)
    if (root / "full_body_img").is_dir():
        return _synctalk(root)
    if (root / "frames").is_dir():
        return _cpu_server(root)
    raise InputError(
        f"{root} is not an avatar folder: it holds none of avatar.json (native), "
        "dataset_manifest.json (package 2.0), full_body_img/ (SyncTalk 2D), frames/ (CPU server)"
    )


def _native(root: Path) -> Parts:
    path = root / "avatar.json"
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path} holds a {type(record).__name__}, it must be an object")
    for key in ("fps", "frames", "boxes", "generator", "audio_encoder"):
        if key not in record:
            raise InputError(f"{path} has no {key!r}")

    def inside(key: str) -> Path:
        value = record[key]
        if not isinstance(value, str) or not value or "\0" in value:
            raise InputError(f"{path}: {key} is {value!r}, it must be a path")
        target = root / value
        if not target.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{path}: {key} is {value!r}, which lies outside the avatar folder")
        return target

    return Parts(
        name=str(record.get("name", root.resolve().name)),
        frames=_existing(inside("frames")),
        boxes=_existing(inside("boxes")),
        fps=_fps(path, record["fps"]),
        generator=inside("generator"),
        audio_encoder=inside("audio_encoder"),
    )


def _package(root: Path) -> Parts:
    manifest = root / "dataset_manifest.json"
    record = read_json(manifest)
    record = record if isinstance(record, dict) else {}
    return Parts(
        name=str(record.get("name", root.resolve().name)),
        frames=_first(root, ("full_body_video.mp4", "full_body_img"), "frames"),
        boxes=_first(
            root, ("crop_rects.json", "cache/crop_rectangles.json", "landmarks"), "face boxes"
        ),
        fps=_fps(manifest, record["fps"]) if "fps" in record else None,
        generator=_maybe(root, ("checkpoint/model_best.onnx", "models/generator.onnx")),
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
    )


def _synctalk(root: Path) -> Parts:
    def number(path: Path) -> int:
        digits = re.findall(r"\d+", path.stem)
        return int(digits[-1]) if digits else -1

    checkpoints = sorted((root / "checkpoint").glob("*.pth"), key=number)
    return Parts(
        name=root.resolve().name,
        frames=root / "full_body_img",
        boxes=_first(root, ("landmarks",), "face boxes"),
        generator=checkpoints[-1] if checkpoints else None,
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
    )


def _cpu_server(root: Path) -> Parts:
    return Parts(
        name=root.resolve().name,
        frames=root / "frames",
        boxes=_first(root, ("crop_rects.json",), "face boxes"),
        generator=_maybe(root, ("checkpoint/model_best.onnx",)),
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
    )


def _first(root: Path, names: tuple[str, ...], what: str) -> Path:
    found = _maybe(root, names)
    if found is None:
        raise InputError(f"{root} has no {what}: it holds none of {', '.join(names)}")
    return found


def _maybe(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    return path


def choose_networks(
    root: Path,
    parts: Parts,
    generator: str | os.PathLike | None,
    audio_encoder: str | os.PathLike | None,
) -> dict[str, Path]:
    return {
        "generator": _network(root, parts.generator, generator, "generator"),
        "audio_encoder": _network(root, parts.audio_encoder, audio_encoder, "audio encoder"),
    }


def _network(root: Path, found: Path | None, given: str | os.PathLike | None, what: str) -> Path:
    path = Path(given) if given is not None else found
    if path is None:
        option = what.replace(" ", "-")
        raise InputError(f"{root} has no {what}: give its file (--{option} FILE)")
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} ({what}) {fault}")
    if path.suffix.lower() not in NETWORK_SUFFIXES:
        raise InputError(f"{path} ({what}) must end in one of {', '.join(NETWORK_SUFFIXES)}")
    return path


def _fps(path: Path, value: object) -> Fraction:
    """Frames a second as a number (25, 29.97) or as a fraction ("30000/1001")."""
    try:
        fps = Fraction(value).limit_denominator(1001)  # type: ignore[arg-type]
        if isinstance(value, bool) or not allowed(fps):
            raise ValueError
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        raise InputError(
            f"{path}: fps is {value!r}, it must be a number from {MIN_FPS} to {MAX_FPS}"
        ) from None
    # 29.97 and its like are short for television's rates
    television = Fraction(round(fps * Fraction(1001, 1000)) * 1000, 1001)
    return television if 0 < abs(fps - television) < Fraction(1, 200) and fps % 1 else fps


def numbered(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of a folder in the order of the number their names end in, from 0 or 1 on."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        digits = re.search(r"(\d+)$", path.stem)
        if path.suffix.lower() not in suffixes or digits is None:
            continue
        number = int(digits[1])
        if number in found:
            raise InputError(f"{folder}: number {number} is {found[number].name} and {path.name}")
        found[number] = path
    if not found:
        raise InputError(f"{folder} has no numbered files ending in {', '.join(suffixes)}")
    first = 0 if 0 in found else 1
    for number in range(first, first + len(found)):
        if number not in found:
            raise InputError(f"{folder}: number {number} is missing (there are {len(found)} files)")
    return [found[number] for number in sorted(found)]
