"""Avatar folders: find out the layout, and the files of each part."""

import os
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ..errors import InputError, shortened
from ..media.frame_rate import MAX_FPS, MIN_FPS, allowed
from .boxes import read_json
from .pairing import in_order, number_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
NETWORK_SUFFIXES = (".onnx", ".plan", ".pth", ".pt", ".safetensors")
# A frame rate as text. Exponents are excluded, because Fraction would compute all digits of
# "1e999999999".
RATE = re.compile(r"\+?\d{1,9}(\.\d{0,30}|/\d{1,9})?")


@dataclass(frozen=True)
class Parts:
    """The files and the frame rate of an avatar folder, before any file is opened.

    If the generator is None, the newest of `checkpoints` is used.
    """

    name: str
    frames: Path  # a video or a folder of numbered images
    boxes: Path  # a JSON file or a folder of landmarks
    fps: Fraction | None = None
    generator: Path | None = None
    audio_encoder: Path | None = None
    checkpoints: tuple[Path, ...] = ()


def find_networks(
    path: str | os.PathLike,
    *,
    generator: str | os.PathLike | None = None,
    audio_encoder: str | os.PathLike | None = None,
) -> dict[str, Path]:
    """Return the files of an avatar's two networks by name: "generator", "audio_encoder".

    The arguments are those of `Avatar.load`. Frames and boxes are not opened.

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
        f"{root} is not an avatar folder; expected one of avatar.json (native), "
        "dataset_manifest.json (package 2.0), full_body_img/ (SyncTalk 2D), frames/ (CPU server)"
    )


def _native(root: Path) -> Parts:
    path = root / "avatar.json"
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path} contains a {type(record).__name__}; expected an object")
    for key in ("fps", "frames", "boxes", "generator", "audio_encoder"):
        if key not in record:
            raise InputError(f"{path} has no {key!r}")

    def inside(key: str) -> Path:
        value = record[key]
        if not isinstance(value, str) or not value or "\0" in value:
            raise InputError(f"{path}: {key} is {shortened(value)}; expected a path")
        target = root / value
        try:
            lies_inside = target.resolve().is_relative_to(root.resolve())
            target.exists()
        except (OSError, ValueError, RuntimeError):  # too long, not Unicode, circular links
            raise InputError(f"{path}: {key} is {shortened(value)}; expected a path") from None
        if not lies_inside:
            raise InputError(
                f"{path}: {key} is {shortened(value)}; expected a path inside the avatar folder"
            )
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
    return Parts(
        name=root.resolve().name,
        frames=root / "full_body_img",
        boxes=_first(root, ("landmarks",), "face boxes"),
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
        checkpoints=tuple(path for path in visible(root / "checkpoint") if path.suffix == ".pth"),
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
        raise InputError(f"{root} has no {what}; expected one of {', '.join(names)}")
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
    found = parts.generator
    if generator is None and parts.checkpoints:
        found = newest(parts.checkpoints)
    return {
        "generator": _network(root, found, generator, "generator"),
        "audio_encoder": _network(root, parts.audio_encoder, audio_encoder, "audio encoder"),
    }


def _network(root: Path, found: Path | None, given: str | os.PathLike | None, what: str) -> Path:
    path = Path(given) if given is not None else found
    if path is None:
        option = what.replace(" ", "-")
        raise InputError(f"{root} has no {what}; give its file (--{option} FILE)")
    if not path.is_file():
        fault = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} ({what}) {fault}")
    if path.suffix.lower() not in NETWORK_SUFFIXES:
        allowed = ", ".join(NETWORK_SUFFIXES)
        raise InputError(f"{path} ({what}) ends in {path.suffix!r}; expected one of {allowed}")
    return path


def newest(checkpoints: tuple[Path, ...]) -> Path:
    """Return the checkpoint that was trained longest by its name: 195.pth, not 95.pth or best.pth.

    Names without a number are only considered if no name has one.

    Raises:
        InputError: the names do not tell, because two have the same number, none has one, or some
            count epochs and others steps.
    """
    trained = {path: training(path.stem) for path in checkpoints}
    known = {path: found for path, found in trained.items() if found is not None}
    units = {unit for unit, _ in known.values()}
    last = max(known.values(), default=None)
    candidates = [path for path in checkpoints if trained[path] == last]
    if len(candidates) > 1 or len(units) > 1:
        listed = sorted(known if len(units) > 1 else candidates)
        names = ", ".join(shortened(path.name) for path in listed[:8])
        names += f" and {len(listed) - 8} more" if len(listed) > 8 else ""
        raise InputError(
            f"{listed[0].parent}: the names do not tell which checkpoint is the newest: {names}. "
            "Give the one to use (--generator FILE)"
        )
    return candidates[0]


def training(stem: str) -> tuple[str, int] | None:
    """Read from a checkpoint's name, without its suffix, how long it was trained.

    The SyncTalk 2D family uses the epoch alone (195). In other names it follows a word
    (epoch_9_loss_0.0123, step-9000), or is the first whole number.

    Returns:
        "epoch" or "step", and the number; None if the name has no whole number.
    """
    number = r"(\d{1,18})(?!\.?\d)"
    for unit, words in (("epoch", "epochs?|ep"), ("step", "steps?|iters?|iterations?")):
        found = re.search(rf"(?<![a-z])(?:{words})[-_=. ]*{number}", stem, re.IGNORECASE)
        if found:
            return unit, int(found[1])
    found = re.search(rf"(?<!\d)(?<!\d\.){number}", stem)
    return ("epoch", int(found[1])) if found else None


def _fps(path: Path, value: object) -> Fraction:
    """Convert a frame rate, given as a number (25, 29.97) or as a fraction ("30000/1001")."""
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        if isinstance(value, str) and not RATE.fullmatch(value.strip()):
            raise ValueError
        fps = Fraction(value).limit_denominator(1001)
        if not allowed(fps):
            raise ValueError
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        raise InputError(
            f"{path}: fps is {shortened(value)}; expected a number from {MIN_FPS} to {MAX_FPS}"
        ) from None
    # 29.97 and the like are abbreviations of television's rates
    television = Fraction(round(fps * Fraction(1001, 1000)) * 1000, 1001)
    return television if 0 < abs(fps - television) < Fraction(1, 200) and fps % 1 else fps


def visible(folder: Path) -> list[Path]:
    """List a folder by name, without the names that start with a dot; [] if it does not exist.

    macOS writes a "._0.png" beside every 0.png that it copies to another file system.
    """
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def numbered(folder: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], int]:
    """List the files of a folder in the order of the numbers that their names end in.

    Returns:
        The files, and the first number, 0 or 1.

    Raises:
        InputError: there are no such files, a number is missing, or two files have the same number.
    """
    names = [
        path.name
        for path in visible(folder)
        if path.suffix.lower() in suffixes and number_of(path.name) is not None
    ]
    if not names:
        raise InputError(f"{folder} has no numbered files ending in {', '.join(suffixes)}")
    first, names = in_order(names, folder, "files")
    return [folder / name for name in names], first
