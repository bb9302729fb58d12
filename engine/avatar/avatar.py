"""An avatar: the frames of a recorded person, a face box for each frame, and the network files."""

import math
import os
import warnings
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from kernels import FPS, MAX_SIDE

from ..device.memory import free_bytes
from ..errors import DeviceError, DeviceFull, InputError, shortened
from ..forks import note_computing
from ..runtime.open import check_untrusted
from ..runtime.reserve import reserved_bytes
from .boxes import boxes_from_json, boxes_from_landmarks, check_boxes
from .folder import MAX_FILES, Folder
from .frames import CACHE_BYTES, FrameCache, ImageFolder, Source, VideoFile
from .layouts import (
    IMAGE_SUFFIXES,
    Parts,
    choose_networks,
    find_layout,
    numbered,
    parts_of_files,
    with_parsing,
)
from .masks import MASK_SUFFIXES, MaskFolder, row_bytes
from .pairing import Numbers, first_of_both

MAX_PIXELS = 4096 * 4096  # of a frame; a render holds many at a time
MASKS_SHARE = 8  # of the memory for decoded frames, masks have one part in so many
MAX_RATE_ERROR = 0.01  # relative difference between the folder's frame rate and its video's


class Avatar:
    """A recorded person: frames, a face box for each, and the files of the two networks.

    Attributes:
        name: name of the avatar, for messages.
        fps: frames per second, an exact Fraction.
        height, width: size of every frame in pixels.
        pixel_aspect: displayed width of a pixel divided by its height, a Fraction; 1 for images.
            Frames and boxes are measured in stored pixels.
        boxes: (F, 4) int32 face boxes on `device`.
        generator, audio_encoder: paths of the network files; None if the avatar has none.
        device: the device of `batch`'s tensors. On a GPU all frames are in its memory; on a CPU
            they are decoded as needed.
        trusted: whether the networks may be ONNX files and TensorRT plans, which are programs.
        bytes_per_frame: size of a frame with its mask in memory.

    Args:
        masks: one for each frame, of the frames' size.
        first_number: number of the first frame and box, for errors that name one.
        count: use the first so many frames. A warning says if there are fewer.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        boxes: Tensor,
        *,
        masks: MaskFolder | None = None,
        fps: Fraction,
        generator: Path | None,
        audio_encoder: Path | None,
        device: str | torch.device = "cpu",
        cache_bytes: int = CACHE_BYTES,
        first_number: int = 0,
        trusted: bool = True,
        count: int | None = None,
    ):
        self.name, self.fps, self.trusted = name, fps, trusted
        self.generator, self.audio_encoder = generator, audio_encoder
        self.height, self.width = source.height, source.width
        self.pixel_aspect = source.pixel_aspect
        self.device = _usable(device)
        too_large = self.height * self.width > MAX_PIXELS
        if too_large or max(self.height, self.width) > MAX_SIDE:
            raise InputError(
                f"avatar {shortened(name)} has frames of {self.width} x {self.height}; "
                f"expected at most {MAX_SIDE} pixels a side, and {MAX_PIXELS} in all (4096 x 4096)"
            )
        if len(source) > MAX_FILES:
            raise InputError(
                f"avatar {shortened(name)} has {len(source)} frames; expected at most {MAX_FILES}"
            )
        self._length = min(len(source), boxes.shape[0])
        if count is not None and count < 1:
            raise InputError(
                f"the number of frames of avatar {shortened(name)} is {count}; expected at least 1"
            )
        if count is not None and count <= self._length:
            self._length = count
        elif count is not None:
            warnings.warn(
                f"avatar {shortened(name)} has {len(source)} frames and {boxes.shape[0]} boxes, "
                f"fewer than the {count} that were given; the first {self._length} are used",
                stacklevel=2,
            )
        elif len(source) != boxes.shape[0]:
            warnings.warn(
                f"avatar {shortened(name)} has {len(source)} frames and {boxes.shape[0]} boxes; "
                f"the first {self._length} of both are used",
                stacklevel=2,
            )
        boxes = boxes[: self._length]
        check_boxes(boxes, self.height, self.width, first_number)
        if masks is not None:
            masks.check_count(self._length, len(source), first_number)
        self.boxes = boxes.to(self.device)
        pixels, bits = (self.height, self.width, 3), (self.height, row_bytes(self.width))
        self.bytes_per_frame = math.prod(pixels) + (math.prod(bits) if masks else 0)
        self._cache = self._mask_cache = self._frames = self._masks = None
        self._cache_bytes = cache_bytes
        if self.device.type == "cuda":
            self._check_free()
            self._frames = self._upload(FrameCache(source, 0), pixels)
            if masks is not None:
                self._masks = self._upload(FrameCache(masks, 0), bits)
        else:
            if masks is not None:
                self._mask_cache = FrameCache(masks, cache_bytes // MASKS_SHARE)
                cache_bytes -= cache_bytes // MASKS_SHARE
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
        parsing: bool = False,
        cache_bytes: int = CACHE_BYTES,
        follow_links: bool = False,
        trusted: bool = True,
        count: int | None = None,
    ) -> "Avatar":
        """Open an avatar folder in any of the four layouts: native, SyncTalk 2D, package 2.0, CPU
        server. The layout is recognized by the files in the folder. Frames and boxes are paired by
        number.

        Args:
            path: the folder.
            device: "cpu" or "cuda". On a GPU all frames are uploaded here.
            generator, audio_encoder: network files to use instead of the folder's own, or if it has
                none.
            networks: whether the networks are required. Training opens avatars without them.
            parsing: whether to use the masks in the folder's `parsing/`. Masks that an
                `avatar.json` names are always used.
            cache_bytes: memory for decoded frames and masks on a CPU.
            follow_links: whether links may lead out of the folder. Only for folders that you made
                yourself, because a link can name any file of this machine. The folder itself may
                always be a link.
            trusted: whether the networks come from someone you trust. If not, they must be
                checkpoints: ONNX files and TensorRT plans are programs, which may use all memory
                and never end.
            count: use the first so many frames. A warning says if there are fewer.

        Raises:
            InputError: a file is missing, damaged, too large or outside the folder, frames, boxes
                and networks do not fit together, or a network that is not trusted is no checkpoint.
        """
        parts = find_layout(Folder(path, follow_links=follow_links))
        if parsing:
            parts = with_parsing(parts)
        none = {"generator": None, "audio_encoder": None}
        found = choose_networks(parts, generator, audio_encoder) if networks else none
        return cls._open(
            parts, found, device=device, cache_bytes=cache_bytes, trusted=trusted, count=count
        )

    @classmethod
    def from_files(
        cls,
        name: str,
        *,
        frames: str | os.PathLike,
        boxes: str | os.PathLike,
        generator: str | os.PathLike,
        audio_encoder: str | os.PathLike,
        device: str | torch.device = "cpu",
        cache_bytes: int = CACHE_BYTES,
        trusted: bool = True,
        count: int | None = None,
    ) -> "Avatar":
        """Open an avatar whose files lie anywhere, with the checks of `load`. Links are followed.

        Args:
            frames: a video, or a folder of numbered images, which are shown at 25 frames a second.
            boxes: a JSON file, or a folder of landmarks.
            generator, audio_encoder: network files.
            device, cache_bytes, trusted, count: as in `load`.

        Raises:
            InputError: as `load`.
        """
        parts = parts_of_files(name, Path(frames), Path(boxes))
        found = choose_networks(parts, generator, audio_encoder)
        return cls._open(
            parts, found, device=device, cache_bytes=cache_bytes, trusted=trusted, count=count
        )

    @classmethod
    def _open(
        cls,
        parts: Parts,
        found: dict[str, Path] | dict[str, None],
        *,
        device: str | torch.device,
        cache_bytes: int,
        trusted: bool,
        count: int | None,
    ) -> "Avatar":
        """Open the frames and the boxes of an avatar whose networks are found."""
        folder = parts.folder
        if not trusted:
            for file in filter(None, found.values()):
                check_untrusted(file)
        source: Source
        first_frame = None
        if parts.frames.is_dir():
            images, first_frame = numbered(folder, parts.frames, IMAGE_SUFFIXES)
            source, fps = ImageFolder(folder, images), parts.fps
        else:
            folder.check(parts.frames)
            source = VideoFile(parts.frames)
            fps = parts.fps or source.fps
            _compare_rates(parts, source)
        if parts.boxes.is_dir():
            first_box: int | None
            landmarks, first_box = numbered(folder, parts.boxes, (".lms",))
            boxes = boxes_from_landmarks(folder, landmarks)
        else:
            boxes, first_box = boxes_from_json(folder, parts.boxes)
        frames = Numbers(parts.frames, "frames", len(source), first_frame)
        first_number = first_of_both(frames, Numbers(parts.boxes, "boxes", len(boxes), first_box))
        masks = None
        if parts.masks is not None:
            files, first_mask = numbered(folder, parts.masks, MASK_SUFFIXES)
            first_of_both(frames, Numbers(parts.masks, "masks", len(files), first_mask))
            masks = MaskFolder(folder, parts.masks, files, source.height, source.width)
        return cls(
            parts.name,
            source,
            boxes,
            masks=masks,
            fps=fps or Fraction(FPS),
            device=device,
            cache_bytes=cache_bytes,
            first_number=first_number,
            trusted=trusted,
            count=count,
            generator=found["generator"],
            audio_encoder=found["audio_encoder"],
        )

    def __len__(self) -> int:
        return self._length

    @property
    def frames_on_device(self) -> bool:
        """Whether `batch` returns the avatar's own frames (on a GPU) or copies (on a CPU)."""
        return self._frames is not None

    @property
    def frame_bytes(self) -> int:
        """Bytes that frames and masks take: on a GPU all of them, on a CPU at most those of the
        caches."""
        decoded = self._length * self.bytes_per_frame
        return decoded if self._cache is None else min(decoded, self._cache_bytes)

    @property
    def frames(self) -> Tensor:
        """All frames, (F, H, W, 3) uint8 RGB, of an avatar on a GPU.

        Raises:
            RuntimeError: the avatar is on a CPU; use `batch`.
        """
        if self._frames is None:
            raise RuntimeError("the frames of an avatar on a CPU are decoded as needed")
        return self._frames

    @property
    def masks(self) -> Tensor | None:
        """All masks of an avatar on a GPU, (F, H, ceil(W / 8)) uint8 of bits, see
        `kernels.composite`. None if it has none, or is on a CPU; use `masked_batch`."""
        return self._masks

    def batch(self, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the frames with these numbers, as the face stages take them.

        Returns:
            Frames (k, H, W, 3) uint8 RGB, boxes (k, 4) int32, and an index (n,) int64 into both,
            on `device`: frame `numbers[i]` is `frames[index[i]]`. On a GPU, frames and boxes are
            those of the whole avatar, and only the index is copied. On a CPU, they are copies of
            the requested frames in order, which the caller may change.

        Raises:
            InputError: a frame cannot be decoded.
        """
        if self._frames is not None:
            # a blocking copy, because the caller may use another stream
            index = torch.tensor(numbers, dtype=torch.int64, device=self.device)
            return self._frames, self.boxes, index
        assert self._cache is not None
        note_computing()
        frames = torch.empty(len(numbers), self.height, self.width, 3, dtype=torch.uint8)
        self._cache.read(numbers, frames.numpy())
        return frames, self.boxes[numbers], torch.arange(len(numbers))

    def masked_batch(self, numbers: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return what `batch` returns, and masks (k, H, ceil(W / 8)) uint8 with the same index;
        None if the avatar has none.

        Raises:
            InputError: a frame or a mask cannot be decoded.
        """
        masks = self._masks
        if self._frames is None and self._mask_cache is not None:
            shape = len(numbers), self.height, row_bytes(self.width)
            masks = torch.empty(shape, dtype=torch.uint8)
            self._mask_cache.read(numbers, masks.numpy())
        return *self.batch(numbers), masks

    def _check_free(self) -> None:
        """Check that all frames and masks fit the GPU.

        Raises:
            DeviceFull: they do not.
        """
        needed = self._length * self.bytes_per_frame
        reserved = reserved_bytes(self.generator, trusted=self.trusted)
        free = free_bytes(self.device, needed + reserved)
        if needed > free - reserved:
            raise DeviceFull(
                f"avatar {shortened(self.name)} needs {needed / 2**30:.2f} GiB on {self.device} "
                f"for its {self._length} frames of {self.width} x {self.height}; "
                f"{free / 2**30:.2f} GiB are free, and {reserved / 2**30:.2f} GiB of them are kept "
                "for the networks"
            )

    def _upload(self, source: FrameCache, shape: tuple[int, ...]) -> Tensor:
        frames = torch.empty(self._length, *shape, dtype=torch.uint8, device=self.device)
        staging = torch.empty(32, *shape, dtype=torch.uint8)
        for part in torch.arange(self._length).split(len(staging)):
            source.read(part.tolist(), staging[: len(part)].numpy())
            frames[part[0] : part[-1] + 1] = staging[: len(part)]
        return frames


def _compare_rates(parts: Parts, video: VideoFile) -> None:
    """Warn if the folder's frame rate contradicts that of its video.

    A rate that was computed from a rounded length is not exact. Therefore a difference of up to 1%
    is tolerated if it moves the last frame by no more than the duration of a frame.
    """
    if parts.fps is None or video.fps is None:
        return
    apart = abs(parts.fps / video.fps - 1)
    if apart > MAX_RATE_ERROR or apart * len(video) > 1:
        warnings.warn(
            f"avatar {shortened(parts.name)} is given {float(parts.fps):.6g} frames a second, but "
            f"{parts.frames} has {float(video.fps):.6g}; {float(parts.fps):.6g} are used",
            stacklevel=3,
        )


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise InputError(f"device is {str(device)!r}; expected cpu or cuda")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device is {device}, but PyTorch finds no CUDA GPU here")
    return found
