"""Avatar folders: find out the layout, and the files of each part."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from ..errors import InputError, shortened
from ..media.frame_rate import MAX_FPS, MIN_FPS, allowed
from .folder import Folder
from .pairing import in_order, number_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
NETWORK_SUFFIXES = (".onnx", ".plan", ".pth", ".pt", ".safetensors")
# A frame rate as text. Exponents are excluded, because Fraction would compute all digits of
# "1e999999999".
RATE = re.compile(r"\+?\d{1,9}(\.\d{0,30}|/\d{1,9})?")
MAX_RECORD_BYTES = 1_000_000  # of avatar.json and dataset_manifest.json
MAX_NAME = 200  # characters


@dataclass(frozen=True)
class Parts:
    """The files and the frame rate of an avatar folder, before any file is opened.

    If the generator is None, the newest file of `checkpoints` is used.
    """

    folder: Folder
    name: str
    frames: Path  # a video or a folder of numbered images
    boxes: Path  # a JSON file or a folder of landmarks
    fps: Fraction | None = None
    generator: Path | None = None
    audio_encoder: Path | None = None
    checkpoints: Path | None = None  # a folder
    masks: Path | None = None  # a folder of numbered images


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
    return choose_networks(find_layout(Folder(path)), generator, audio_encoder)


def with_parsing(parts: Parts) -> Parts:
    """Return the parts of an avatar with its masks: what `avatar.json` names, else `parsing/`.

    Raises:
        InputError: there are none.
    """
    masks = parts.masks or _first(parts.folder.root, ("parsing",), "masks")
    return replace(parts, masks=masks)


def find_layout(folder: Folder) -> Parts:
    root = folder.root
    if (root / "avatar.json").exists():
        return _native(folder)
    if (root / "dataset_manifest.json").exists():
        return _package(folder)
    if (root / "full_body_img").is_dir():
        return _synctalk(folder)
    if (root / "frames").is_dir():
        return _cpu_server(folder)
    raise InputError(
        f"{root} is not an avatar folder; expected one of avatar.json (native), "
        "dataset_manifest.json (package 2.0), full_body_img/ (SyncTalk 2D), frames/ (CPU server)"
    )


def parts_of_files(name: str, frames: Path, boxes: Path) -> Parts:
    """Return the parts of an avatar whose frames and boxes its user names, wherever they are.

    Raises:
        InputError: one of them does not exist.
    """
    frames, boxes = _existing(frames), _existing(boxes)
    folder = Folder(frames if frames.is_dir() else frames.parent, follow_links=True)
    return Parts(folder, name, frames=frames, boxes=boxes)


def _native(folder: Folder) -> Parts:
    path = folder.root / "avatar.json"
    record = folder.read_json(path, MAX_RECORD_BYTES)
    if not isinstance(record, dict):
        raise InputError(f"{path} contains a {type(record).__name__}; expected an object")
    for key in ("fps", "frames", "boxes"):
        if key not in record:
            raise InputError(f"{path} has no {key!r}")

    def inside(key: str) -> Path:
        value = record[key]
        if not isinstance(value, str) or not value:
            raise InputError(f"{path}: {key} is {shortened(value)}; expected a path")
        target = folder.root / value
        try:
            with suppress(FileNotFoundError, NotADirectoryError):
                os.stat(target)
        except ValueError:  # a NUL, a surrogate
            raise InputError(f"{path}: {key} is {shortened(value)}; expected a path") from None
        except OSError as error:  # too long, a circular link
            raise InputError(
                f"{path}: {key} is {shortened(value)}, which cannot be opened: {error.strerror}"
            ) from error
        # Only what the path itself says. Links are checked when the file is opened.
        leaves = os.path.normpath(value).split(os.sep)[0] in ("..", "")
        if leaves and not folder.contains(target):
            raise InputError(
                f"{path}: {key} is {shortened(value)}; expected a path inside the avatar folder"
            )
        return target

    return Parts(
        folder,
        name=_name(path, record, folder),
        frames=_existing(inside("frames")),
        boxes=_existing(inside("boxes")),
        fps=_fps(path, record["fps"]),
        generator=inside("generator") if "generator" in record else None,
        audio_encoder=inside("audio_encoder") if "audio_encoder" in record else None,
        masks=_existing(inside("masks")) if "masks" in record else None,
    )


def _package(folder: Folder) -> Parts:
    root = folder.root
    manifest = root / "dataset_manifest.json"
    record = folder.read_json(manifest, MAX_RECORD_BYTES)
    record = record if isinstance(record, dict) else {}
    return Parts(
        folder,
        name=_name(manifest, record, folder),
        frames=_first(root, ("full_body_video.mp4", "full_body_img"), "frames"),
        boxes=_first(
            root, ("crop_rects.json", "cache/crop_rectangles.json", "landmarks"), "face boxes"
        ),
        fps=_fps(manifest, record["fps"]) if "fps" in record else None,
        generator=_maybe(root, ("checkpoint/model_best.onnx", "models/generator.onnx")),
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
    )


def _synctalk(folder: Folder) -> Parts:
    root = folder.root
    return Parts(
        folder,
        name=folder.name,
        frames=root / "full_body_img",
        boxes=_first(root, ("landmarks",), "face boxes"),
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
        checkpoints=root / "checkpoint",
    )


def _cpu_server(folder: Folder) -> Parts:
    root = folder.root
    return Parts(
        folder,
        name=folder.name,
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
    parts: Parts,
    generator: str | os.PathLike | None,
    audio_encoder: str | os.PathLike | None,
) -> dict[str, Path]:
    folder, found = parts.folder, parts.generator
    if generator is None and parts.checkpoints is not None and parts.checkpoints.is_dir():
        names = folder.names(parts.checkpoints)
        saved = [parts.checkpoints / name for name in names if Path(name).suffix == ".pth"]
        found = newest(tuple(saved)) if saved else None
    if not any((parts.checkpoints, found, parts.audio_encoder, generator, audio_encoder)):
        named = ", or name them in its avatar.json" * (folder.root / "avatar.json").exists()
        raise InputError(
            f"{folder.root} has no networks; train them (python -m train --avatar DIR -o "
            "person.pth), and give them with --generator person.pth --audio-encoder person.pth"
            f"{named}"
        )
    return {
        "generator": _network(folder, found, generator, "generator"),
        "audio_encoder": _network(folder, parts.audio_encoder, audio_encoder, "audio encoder"),
    }


def _network(
    folder: Folder, found: Path | None, given: str | os.PathLike | None, what: str
) -> Path:
    path = Path(given) if given is not None else found
    if path is None:
        option = what.replace(" ", "-")
        raise InputError(f"{folder.root} has no {what}; give its file (--{option} FILE)")
    if not os.path.isfile(path):
        fault = "is not a file" if os.path.exists(path) else "does not exist"
        raise InputError(f"{path} ({what}) {fault}")
    if given is None:
        folder.check(path)
        plan, record = path.with_suffix(".plan"), path.with_suffix(".json")
        if plan.exists():  # it may be used instead
            folder.check(plan)
            if record.exists():
                folder.check(record)
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


def numbered(folder: Folder, path: Path, suffixes: tuple[str, ...]) -> tuple[list[Path], int]:
    """List the files of a folder in the order of the numbers that their names end in.

    Returns:
        The files, and the first number, 0 or 1.

    Raises:
        InputError: there are no such files, a number is missing, two files have the same number,
            or `folder.names` refuses the folder.
    """
    names = [
        name
        for name in folder.names(path)
        if os.path.splitext(name)[1].lower() in suffixes and number_of(name) is not None
    ]
    if not names:
        raise InputError(f"{path} has no numbered files ending in {', '.join(suffixes)}")
    first, names = in_order(names, path, "files")
    return [path / name for name in names], first


def _name(path: Path, record: dict, folder: Folder) -> str:
    """Return the name that a record gives the avatar, by default the folder's."""
    value = record.get("name")
    if value is None:
        return folder.name
    if not isinstance(value, str | int | float) or len(str(value)) > MAX_NAME:
        raise InputError(
            f"{path}: name is {shortened(value)}; expected text of at most {MAX_NAME} characters"
        )
    return str(value)
