"""The calls that `kernels.compile` compiles: every launch of the pipeline that could differ."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from .checks import byte_shape
from .fused import stages
from .spec import (
    COMPOSITE_FORMATS,
    COMPOSITE_MODES,
    CROP_SIZE,
    FEATURE_DIM,
    MEL_BANDS,
    MEL_WINDOW_ROWS,
    RESIZE_MODES,
    ROI_SIZE,
    SAMPLE_RATE,
    ByteFormat,
    ColorFormat,
    CompositeMode,
    ResizeMode,
    mel_rows,
)

FLOATS = (torch.float32, torch.float16)
RING_FLOATS = (*FLOATS, torch.bfloat16)
SIZES = ((1280, 720), (720, 1280), (1920, 1080), (1080, 1920))  # height and width of a frame
BYTE_CONVERSIONS: tuple[tuple[ColorFormat, ColorFormat], ...] = (
    ("rgb", "bgr"), ("rgb", "rgba"), ("rgb", "nv12"), ("rgb", "i420"), ("nv12", "rgb"),
    ("i420", "rgb"), ("nv12", "i420"), ("i420", "nv12"),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One call of one launcher, as the pipeline makes it."""

    stage: str
    variant: str
    launch: Callable[[], object]  # uses no GPU; picklable, so a `partial` of a module's function


def pipeline_cases() -> Iterator[Case]:
    """List the calls whose kernels could differ: in dtypes, sizes, alignments, batches.

    Cases likely to compile to the same code are adjacent, because `compile_all` gives each worker
    four consecutive cases.
    """
    # Triton specialises on arguments that 16 divides, so there are lengths with and without.
    second, minute = SAMPLE_RATE, 60 * SAMPLE_RATE + 7
    for dtype, batch, samples in product((torch.float32, torch.int16), (1, 8), (second, minute)):
        variant = f"{_name(dtype)} S={samples} B={batch}" + " lengths" * (batch > 1)
        yield Case("log_mel", variant, partial(_log_mel, dtype, batch, samples))
    for start, n in product((0, 25), (1, 25)):
        yield Case("mel_windows", f"float32 start={start} n={n}", partial(_mel_windows, start, n))
    for dtype, start, n in product(FLOATS, (0, 25), (1, 25)):
        variant = f"{_name(dtype)} start={start} n={n}"
        yield Case("feature_windows", variant, partial(_feature_windows, dtype, start, n))
    for dtype, streams, rows in product(RING_FLOATS, (1, 200), (32, 37)):
        variant = f"{_name(dtype)} B={streams} R={rows}"
        launch = partial(_ring_feature_windows, dtype, streams, rows)
        yield Case("ring_feature_windows", variant, launch)

    for dtype, (height, width), n in product(FLOATS, SIZES, (1, 25)):
        variant = f"{_name(dtype)} {width}x{height} n={n}"
        yield Case("face_input", variant, partial(_face_input, dtype, n, height, width))
    formats = [(format, False) for format in COMPOSITE_FORMATS] + [("rgb", True)]
    for paste, (format, in_place), dtype in product(COMPOSITE_MODES, formats, FLOATS):
        for (height, width), n in product(SIZES, (1, 25)):
            variant = f"{paste} {format} " + "in place " * in_place
            variant += f"{_name(dtype)} {width}x{height} n={n}"
            launch = partial(_composite, paste, format, in_place, dtype, n, height, width)
            yield Case("composite", variant, launch)
    masked: tuple[ByteFormat, ...] = ("rgb", "nv12")  # other formats differ in their stores only
    for paste, format in product(COMPOSITE_MODES, masked):
        launch = partial(_composite, paste, format, False, FLOATS[1], 25, *SIZES[0], True)
        yield Case("composite", f"{paste} {format} float16 720x1280 n=25 masked", launch)

    for mode in RESIZE_MODES:
        # With 181, the sums of "direct" are too large for `resize_linear`.
        face = 181 if mode == "direct" else 182
        sizes = [((face, face), (CROP_SIZE, CROP_SIZE)), (SIZES[0], SIZES[2])]
        if mode == "bicubic":  # the widest windows
            sizes.append((SIZES[0], (SIZES[0][0] // 2, SIZES[0][1] // 2)))
        for old, new in sizes:
            variant = f"{mode} {old[1]}x{old[0]}->{new[1]}x{new[0]}"
            yield Case("resize", variant, partial(_resize, mode, old, new))
    planes: tuple[tuple[ColorFormat, ColorFormat], ...] = (
        ("planar_bgr", "rgba"), ("rgb", "planar_bgr"),
    )  # fmt: skip
    for source, target in (*planes, *BYTE_CONVERSIONS):
        planar = "planar_bgr" in (source, target)
        for dtype, (height, width) in product(FLOATS if planar else FLOATS[:1], SIZES):
            variant = f"{source}->{target} {width}x{height}" + f" {_name(dtype)}" * planar
            launch = partial(_convert_color, source, target, dtype, height, width)
            yield Case("convert_color", variant, launch)


def _log_mel(dtype: torch.dtype, batch: int, samples: int) -> None:
    pcm = torch.empty(batch, samples, dtype=dtype)
    lengths = torch.full((batch,), samples) if batch > 1 else None
    stages.log_mel(pcm, lengths, torch.empty(batch, mel_rows(samples), MEL_BANDS))


def _mel_windows(start: int, n: int) -> None:
    out = torch.empty(n, 1, MEL_BANDS, MEL_WINDOW_ROWS)
    stages.mel_windows(torch.empty(1001, MEL_BANDS), 25.0, start, 0, out)


def _feature_windows(dtype: torch.dtype, start: int, n: int) -> None:
    features = torch.empty(309, FEATURE_DIM, dtype=dtype)
    out = torch.empty(n, 32, 16, 16, dtype=dtype)
    stages.feature_windows(features, start, out)


def _ring_feature_windows(dtype: torch.dtype, streams: int, rows: int) -> None:
    features = torch.empty(streams, rows, FEATURE_DIM, dtype=dtype)
    out = torch.empty(25, 32, 16, 16, dtype=dtype)
    stages.ring_feature_windows(features, torch.zeros(25).long(), torch.zeros(25).long(), out)


def _faces(n: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make frames, boxes, index and crops."""
    boxes = torch.tensor([[269, 549, 451, 731]] * n, dtype=torch.int32)
    return _bytes(n, height, width, 3), boxes, torch.arange(n), _bytes(n, CROP_SIZE, CROP_SIZE, 3)


def _face_input(dtype: torch.dtype, n: int, height: int, width: int) -> None:
    frames, boxes, index, crops = _faces(n, height, width)
    inputs = torch.empty(n, 6, ROI_SIZE, ROI_SIZE, dtype=dtype)
    stages.face_input(frames, boxes, index, inputs, crops)


def _composite(
    mode: CompositeMode, format: ByteFormat, in_place: bool,
    dtype: torch.dtype, n: int, height: int, width: int, masked: bool = False,
) -> None:  # fmt: skip
    frames, boxes, index, crops = _faces(n, height, width)
    generated = torch.empty(n, 3, ROI_SIZE, ROI_SIZE, dtype=dtype)
    out = frames if in_place else _image(format, n, height, width)
    masks = _bytes(n, height, -(-width // 8)) if masked else None
    stages.composite(frames, boxes, index, crops, generated, mode, format, out, masks)


def _resize(mode: ResizeMode, old: tuple[int, int], new: tuple[int, int]) -> None:
    stages.resize(_bytes(25, *old, 3), mode, _bytes(25, *new, 3))


def _convert_color(
    source: ColorFormat, target: ColorFormat, dtype: torch.dtype, height: int, width: int
) -> None:
    images, out = (_image(format, 25, height, width, dtype) for format in (source, target))
    stages.convert_color(images, source, target, out)


def _image(
    format: ColorFormat, n: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    if format == "planar_bgr":
        return torch.empty(n, 3, height, width, dtype=dtype)
    return _bytes(*byte_shape(format, n, height, width))


def _bytes(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
