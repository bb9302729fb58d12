"""Face boxes: read from JSON or landmarks, and checked."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import MAX_SIDE

from ..errors import InputError, shortened
from .folder import MAX_FILES, Folder
from .pairing import in_order

LANDMARKS = 110  # per frame
MAX_JSON_BYTES = 16_000_000
MAX_LANDMARK_BYTES = 16_000


def boxes_from_json(folder: Folder, path: Path) -> tuple[Tensor, int | None]:
    """Read [[x0, y0, x1, y1], ...] or {"0": {"rect": [x0, y0, x1, y1]}, ...}.

    Returns:
        (F, 4) int32 boxes in the order of their numbers, and the first number: 0 or 1, or None for
        a list.

    Raises:
        InputError: the file is too large or contains something else, a key has no number, a number
            is missing or occurs twice, or a box is not four numbers. The message has no text of the
            file but a key, and that only if the file contains a box.
    """
    record = folder.read_json(path, MAX_JSON_BYTES)
    entries = list(record.values()) if isinstance(record, dict) else record
    entries = entries if isinstance(entries, list) else []
    if len(entries) > MAX_FILES:
        raise InputError(f"{path} has {len(entries)} boxes; expected at most {MAX_FILES}")
    if not any(map(_is_box, map(_rect, entries))):
        raise InputError(
            f"{path} contains no list of face boxes; expected 4 numbers x0, y0, x1, y1 per frame"
        )
    first: int | None = None
    rects = entries
    if isinstance(record, dict):
        first, names = in_order(record, path, "boxes")
        rects = [_rect(record[name]) for name in names]
    for index, rect in enumerate(rects):
        if not _is_box(rect):
            raise InputError(
                f"{path}: the box of frame {index + (first or 0)} is {_without_text(rect)}; "
                "expected 4 numbers x0, y0, x1, y1 in pixels"
            )
    boxes = [[int(value) for value in rect] for rect in rects]
    return torch.tensor(boxes, dtype=torch.int32), first


def _rect(entry: Any) -> Any:
    return entry.get("rect") if isinstance(entry, dict) else entry


def _is_box(rect: object) -> bool:
    return isinstance(rect, list) and len(rect) == 4 and all(map(_is_coordinate, rect))


def _without_text(rect: object) -> str:
    """Return `rect` for an error line, with "..." for text, which may be that of another file."""
    if isinstance(rect, list):
        return f"[{', '.join(map(_number, rect[:5]))}{', ...' if len(rect) > 5 else ''}]"
    return _number(rect)


def _number(value: object) -> str:
    return shortened(value, 40) if value is None or isinstance(value, int | float) else "..."


def _is_coordinate(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 2**24  # type: ignore[arg-type]  # False for NaN


def boxes_from_landmarks(folder: Folder, paths: list[Path]) -> Tensor:
    """Read one file of 110 lines "x y" per frame, and compute its face box.

    The box begins at the x of landmark 1 and the y of landmark 52 (counted from 0). Its side is the
    distance to the x of landmark 31.

    Returns:
        (F, 4) int32.

    Raises:
        InputError: a file cannot be read, is too large or contains something else.
    """
    boxes = []
    for path in paths:
        data = folder.read(path, MAX_LANDMARK_BYTES)
        try:
            points = [tuple(map(float, line.split())) for line in data.decode().splitlines()]
        except ValueError:
            points = []
        points = [point for point in points if point]  # a last empty line
        if len(points) != LANDMARKS or not all(
            len(point) == 2 and all(map(_is_coordinate, point)) for point in points
        ):
            raise InputError(f'{path} does not have {LANDMARKS} lines "x y"')
        x0, y0, x1 = int(points[1][0]), int(points[52][1]), int(points[31][0])
        boxes.append([x0, y0, x1, y0 + x1 - x0])
    return torch.tensor(boxes, dtype=torch.int32)


def check_boxes(boxes: Tensor, height: int, width: int, first: int = 0) -> None:
    """Check that boxes can be used with frames of this size.

    Args:
        boxes: (F, 4) int32.
        height, width: size of the frames in pixels.
        first: the number of the first box, for errors.

    Raises:
        InputError: a box is empty, not square, too large, or entirely outside the frame.
    """
    for frame, box in enumerate(boxes.tolist(), start=first):
        x0, y0, x1, y1 = box
        fault = None
        if x1 <= x0 or y1 <= y0:
            fault = "is empty"
        elif x1 - x0 != y1 - y0:
            fault = f"is not square ({x1 - x0} x {y1 - y0})"
        elif x1 - x0 > MAX_SIDE:
            fault = f"is {x1 - x0} pixels wide; expected at most {MAX_SIDE}"
        elif x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            fault = f"is entirely outside the frame of {width} x {height}"
        if fault:
            raise InputError(f"the box of frame {frame}, {box}, {fault}")
