"""Avatar folders: which layout one has, what is in it, and whether it can be used."""

import math
import os
import re
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from kernels import FPS

from .boxes import MAX_SIDE, boxes_from_json, boxes_from_landmarks, check_boxes, read_json
from .errors import DeviceError, InputError
from .frames import CACHE_BYTES, FrameCache, ImageFolder, Source, VideoFile
from .plan import read_record

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
NETWORK_SUFFIXES = (".onnx", ".plan", ".pth", ".pt", ".safetensors")
RESERVED = 2 << 30  # bytes of a GPU that the avatar's frames leave, at least, to what follows
BUFFERS = 1 << 30  # of these, for buffers and weights where a plan says what it takes besides


@dataclass(frozen=True)
class _Parts:
    """What a layout says of a folder, before it is opened."""

    name: str
    frames: Path  # a video or a folder of numbered images
    boxes: Path  # a JSON file or a folder of landmarks
    fps: Fraction | None = None
    generator: Path | None = None
    audio_encoder: Path | None = None


class Avatar:
    """A recorded person: frames, a face box for each, and the files of the two networks.

    Attributes:
        name: for people.
        fps: exact frames a second, a Fraction.
        height, width: of every frame, pixels.
        boxes: (F, 4) int32 face boxes on `device`.
        generator, audio_encoder: paths of the networks' files, None where it has none.
        device: where `batch` puts frames: decoded as needed for the CPU; all held on a GPU.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        boxes: Tensor,
        *,
        fps: Fraction,
        generator: Path | None,
        audio_encoder: Path | None,
        device: str | torch.device = "cpu",
        cache_bytes: int = CACHE_BYTES,
    ):
        self.name, self.fps = name, fps
        self.generator, self.audio_encoder = generator, audio_encoder
        self.height, self.width = source.height, source.width
        self.device = _usable(device)
        for side in (self.height, self.width):
            if side > MAX_SIDE:
                raise InputError(
                    f"avatar {name!r} has frames of {self.width} x {self.height}, at most "
                    f"{MAX_SIDE} x {MAX_SIDE} are allowed"
                )
        self._length = min(len(source), boxes.shape[0])
        if len(source) != boxes.shape[0]:
            warnings.warn(
                f"avatar {name!r} has {len(source)} frames and {boxes.shape[0]} boxes: "
                f"the first {self._length} of both are used",
                stacklevel=2,
            )
        boxes = boxes[: self._length]
        check_boxes(boxes, self.height, self.width)
        self.boxes = boxes.to(self.device)
        self._cache = self._resident = None
        if self.device.type == "cuda":
            self._resident = self._upload(FrameCache(source, 0))
        else:
            self._cache = FrameCache(source, cache_bytes)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        *,
        device: str | torch.device = "cpu",
        generator: str | os.PathLike | None = None,
        audio_encoder: str | os.PathLike | None = None,
        networks: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ) -> "Avatar":
        """Open an avatar folder of any of the four layouts: native, SyncTalk 2D, package 2.0,
        CPU server. Which one it is shows by what it holds.

        Args:
            path: the folder.
            device: "cpu" or "cuda". On a GPU all frames are uploaded here.
            generator, audio_encoder: network files to use instead of the folder's own, or where
                it has none.
            networks: whether they have to be there. An avatar without is for training them.
            cache_bytes: how much memory decoded frames may take on a CPU.

        Raises:
            InputError: what is missing, damaged or does not fit, in one line.
        """
        parts = _find_layout(Path(path))
        none = {"generator": None, "audio_encoder": None}
        found = _networks(Path(path), parts, generator, audio_encoder) if networks else none
        source: Source
        if parts.frames.is_dir():
            source, fps = ImageFolder(_numbered(parts.frames, IMAGE_SUFFIXES)), parts.fps
        else:
            source = VideoFile(parts.frames)
            fps = parts.fps or source.fps
        boxes = (
            boxes_from_landmarks(_numbered(parts.boxes, (".lms",)))
            if parts.boxes.is_dir()
            else boxes_from_json(parts.boxes)
        )
        return cls(
            parts.name,
            source,
            boxes,
            fps=fps or Fraction(FPS),
            device=device,
            cache_bytes=cache_bytes,
            **found,
        )

    def __len__(self) -> int:
        return self._length

    @property
    def resident(self) -> bool:
        """Whether `batch` gives the avatar's own frames (on a GPU) or copies (on a CPU)."""
        return self._resident is not None

    @property
    def frames(self) -> Tensor:
        """(F, H, W, 3) uint8 RGB: all of them, on a GPU, where they are resident.

        Raises:
            RuntimeError: they are not; `batch` reads some.
        """
        if self._resident is None:
            raise RuntimeError("the frames of an avatar on a CPU are decoded as needed")
        return self._resident

    def batch(self, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What the face stages need to work on these frames.

        Returns:
            frames (k, H, W, 3) uint8, boxes (k, 4) int32, index (n,) int64 into both, on
            `device`, so that frame `numbers[i]` is `frames[index[i]]`. On a GPU these are the
            whole avatar and nothing is copied but the index; on a CPU they are copies of the
            frames asked for, in order, the caller's to write on.

        Raises:
            InputError: a frame cannot be decoded.
        """
        if self._resident is not None:
            # waited for: whoever asks may work on another stream
            index = torch.tensor(numbers, dtype=torch.int64, device=self.device)
            return self._resident, self.boxes, index
        frames = torch.empty(len(numbers), self.height, self.width, 3, dtype=torch.uint8)
        self._cache.read(numbers, frames.numpy())
        return frames, self.boxes[numbers], torch.arange(len(numbers))

    def _upload(self, source: FrameCache) -> Tensor:
        shape = (self._length, self.height, self.width, 3)
        torch.cuda.empty_cache()  # what PyTorch keeps for later is free too
        needed, (free, _) = math.prod(shape), torch.cuda.mem_get_info(self.device)
        reserved = reserved_bytes(self.generator)
        if needed > free - reserved:
            raise DeviceError(
                f"avatar {self.name!r} needs {needed / 2**30:.2f} GiB on {self.device} for its "
                f"{self._length} frames of {self.width} x {self.height}, "
                f"{free / 2**30:.2f} GiB are free and {reserved / 2**30:.2f} GiB of them are kept "
                "for the networks"
            )
        frames = torch.empty(shape, dtype=torch.uint8, device=self.device)
        staging = torch.empty(32, *shape[1:], dtype=torch.uint8)
        for part in torch.arange(self._length).split(len(staging)):
            source.read(part.tolist(), staging[: len(part)].numpy())
            frames[part[0] : part[-1] + 1] = staging[: len(part)]
        return frames


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
    return _networks(Path(path), _find_layout(Path(path)), generator, audio_encoder)


def reserved_bytes(generator: Path) -> int:
    """Bytes of a GPU that an avatar's frames leave to its networks and to the buffers of a render:
    more where the generator has a plan, given or beside it, that takes much to run."""
    try:
        scratch = read_record(generator.with_suffix(".plan")).scratch_bytes or 0
    except InputError:
        scratch = 0
    return max(RESERVED, BUFFERS + scratch)


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device is {str(device)!r}, it must be cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device is {device}, but PyTorch finds no CUDA GPU here")
    return found


# --- layouts -------------------------------------------------------------------------------------


def _find_layout(root: Path) -> _Parts:
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


def _native(root: Path) -> _Parts:
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

    return _Parts(
        name=str(record.get("name", root.resolve().name)),
        frames=_existing(inside("frames")),
        boxes=_existing(inside("boxes")),
        fps=_fps(path, record["fps"]),
        generator=inside("generator"),
        audio_encoder=inside("audio_encoder"),
    )


def _package(root: Path) -> _Parts:
    manifest = root / "dataset_manifest.json"
    record = read_json(manifest)
    record = record if isinstance(record, dict) else {}
    return _Parts(
        name=str(record.get("name", root.resolve().name)),
        frames=_first(root, ("full_body_video.mp4", "full_body_img"), "frames"),
        boxes=_first(
            root, ("crop_rects.json", "cache/crop_rectangles.json", "landmarks"), "face boxes"
        ),
        fps=_fps(manifest, record["fps"]) if "fps" in record else None,
        generator=_maybe(root, ("checkpoint/model_best.onnx", "models/generator.onnx")),
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
    )


def _synctalk(root: Path) -> _Parts:
    def number(path: Path) -> int:
        digits = re.findall(r"\d+", path.stem)
        return int(digits[-1]) if digits else -1

    checkpoints = sorted((root / "checkpoint").glob("*.pth"), key=number)
    return _Parts(
        name=root.resolve().name,
        frames=root / "full_body_img",
        boxes=_first(root, ("landmarks",), "face boxes"),
        generator=checkpoints[-1] if checkpoints else None,
        audio_encoder=_maybe(root, ("models/audio_encoder.onnx",)),
    )


def _cpu_server(root: Path) -> _Parts:
    return _Parts(
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


def _networks(
    root: Path,
    parts: _Parts,
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
        if isinstance(value, bool) or not 1 <= fps <= 240:
            raise ValueError
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        raise InputError(f"{path}: fps is {value!r}, it must be a number from 1 to 240") from None
    # 29.97 and its like are short for television's rates
    television = Fraction(round(fps * Fraction(1001, 1000)) * 1000, 1001)
    return television if 0 < abs(fps - television) < Fraction(1, 200) and fps % 1 else fps


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
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
