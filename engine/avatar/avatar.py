"""An avatar: the frames of a recorded person, a face box for each, the files of two networks."""

import math
import os
import warnings
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from kernels import FPS

from ..errors import DeviceError, InputError
from ..plans.plan import read_record
from .boxes import MAX_SIDE, boxes_from_json, boxes_from_landmarks, check_boxes
from .frames import CACHE_BYTES, FrameCache, ImageFolder, Source, VideoFile
from .layouts import IMAGE_SUFFIXES, choose_networks, find_layout, numbered

RESERVED = 2 << 30  # bytes of a GPU that the avatar's frames leave, at least, to what follows
BUFFERS = 1 << 30  # of these, for buffers and weights where a plan says what it takes besides


class Avatar:
    """A recorded person: frames, a face box for each, and the files of the two networks.

    Attributes:
        name: for people.
        fps: exact frames a second, a Fraction.
        height, width: of every frame, pixels.
        pixel_aspect: width of a pixel, divided by its height, as it is to be shown: a Fraction,
            1 for images. Frames and boxes count pixels, however wide they are shown.
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
        self.pixel_aspect = source.pixel_aspect
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
        parts = find_layout(Path(path))
        none = {"generator": None, "audio_encoder": None}
        found = choose_networks(Path(path), parts, generator, audio_encoder) if networks else none
        source: Source
        if parts.frames.is_dir():
            source, fps = ImageFolder(numbered(parts.frames, IMAGE_SUFFIXES)), parts.fps
        else:
            source = VideoFile(parts.frames)
            fps = parts.fps or source.fps
            # half a frame at the end
            if fps and source.fps and 2 * len(source) * abs(fps / source.fps - 1) > 1:
                warnings.warn(
                    f"avatar {parts.name!r} has {float(fps):g} frames a second by its folder and "
                    f"{float(source.fps):g} by {parts.frames.name}; the folder's are used",
                    stacklevel=2,
                )
        boxes = (
            boxes_from_landmarks(numbered(parts.boxes, (".lms",)))
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
