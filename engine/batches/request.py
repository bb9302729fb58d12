"""What a client asks for, and what it gets."""

import operator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

import kernels

from ..errors import InputError, shortened
from ..media.limits import MAX_AMPLITUDE

Layout = Literal["auto", "interleaved", "planar"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MOST_FRAMES = 32  # of a request
FACE_SHAPE = (6, kernels.ROI_SIZE, kernels.ROI_SIZE)
AUDIO_SHAPE = (32, 16, 16)  # of a feature window


@dataclass(frozen=True, eq=False)
class BatchRequest:
    """A few frames of an avatar. The arrays must not change until the result is there.

    Frame i shows the avatar's frame (`start` + i) modulo their number.

    Attributes:
        count: frames, 1 to 32.
        start: number of the avatar's frame for the first frame, any integer.
        speech: (S,) float32 at 16 kHz, S >= 0, of which each frame has 640 samples: 25 frames a
            second, whatever the avatar's rate. It ends where it ends: no feature is made of a mel
            window that is not whole, and a frame hears zeros where there are no features.
        context: frames of speech before the first frame.
        audio: (32, 16, 16) float32, a feature window for all frames; used without `speech`.
        faces: (count, 6, 320, 320) float32 in [0, 1], planes B, G, R: the generator's pictures,
            whose result is pasted with mode "direct". Fused kernels need masked ROIs that are the
            ROIs with the mouth set to 0, and refuse others. None: cut from the avatar's own frames,
            and pasted with mode "crop".
        layout: of `faces`, as they lie in memory: each frame's ROI and masked ROI in turn
            ("interleaved"), or all ROIs and then all masked ones ("planar"). "auto" compares them
            with the avatar's own.
    """

    count: int
    start: int = 0
    speech: np.ndarray | None = None
    context: int = 0
    audio: np.ndarray | None = None
    faces: np.ndarray | None = None
    layout: Layout = "auto"


@dataclass(frozen=True)
class BatchResult:
    """The frames of a request.

    The seconds are those of the batches that the frames were in, which other requests may have
    shared.

    Attributes:
        files: a JPEG file for each frame.
        audio_seconds: of the mel and the audio encoder.
        inference_seconds: of the generator and its input.
        composite_seconds: of reading, pasting and encoding the frames.
    """

    files: list[bytes]
    audio_seconds: float
    inference_seconds: float
    composite_seconds: float


def check_request(request: BatchRequest) -> None:
    """Check the shapes, types and values of a request.

    Raises:
        InputError: one cannot be used.
    """
    count = _integer("count", request.count)
    _integer("start", request.start)
    if not 1 <= count <= MOST_FRAMES:
        raise InputError(f"count is {shortened(count)}; expected 1 to {MOST_FRAMES} frames")
    if _integer("context", request.context) < 0:
        raise InputError(
            f"context is {shortened(request.context)}; expected at least 0 frames of speech"
        )
    if request.layout not in LAYOUTS:
        raise InputError(
            f"layout is {shortened(request.layout)}; expected one of: {', '.join(LAYOUTS)}"
        )
    if request.speech is not None:
        _check_array("speech", request.speech, (None,))
        peak = float(np.abs(request.speech).max(initial=0))
        if peak > MAX_AMPLITUDE:
            raise InputError(f"speech has a sample of {peak:g}; expected -1 to 1; scale integers")
    elif request.audio is not None:
        _check_array("audio", request.audio, AUDIO_SHAPE)
    else:
        raise InputError("neither speech nor audio is given; expected one of them")
    if request.faces is not None:
        _check_array("faces", request.faces, (count, *FACE_SHAPE))


def _integer(name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name} is {shortened(value)}; expected an integer") from None


def _check_array(name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    is_array = isinstance(array, np.ndarray)
    fits = is_array and len(array.shape) == len(shape)
    if not fits or any(w not in (None, h) for w, h in zip(shape, array.shape, strict=True)):
        found = tuple(array.shape) if is_array else type(array).__name__
        wanted = ", ".join("S" if size is None else str(size) for size in shape)
        raise InputError(f"{name} is {found}; expected ({wanted}{',' * (len(shape) == 1)})")
    if array.dtype != np.float32:
        raise InputError(f"{name} is {array.dtype}; expected float32")
    # the smallest and the largest value are NaN if one value is
    if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise InputError(f"{name} has a value that is not finite")
