"""Face boxes: read from JSON or landmarks, and checked."""

import json
from pathlib import Path

import torch
from torch import Tensor

from kernels import MAX_SIDE

from ..errors import InputError, shortened
from .pairing import in_order

LANDMARKS = 110  # per frame


def read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error


def boxes_from_json(path: Path) -> tuple[Tensor, int | None]:
    """Read [[x0, y0, x1, y1], ...] or {"0": {"rect": [x0, y0, x1, y1]}, ...}.

    Returns:
        (F, 4) int32 boxes in the order of their numbers, and the first number: 0 or 1, or None for
        a list.

    Raises:
        InputError: the file contains something else, a key has no number, a number is missing or
            occurs twice, or a box is not four numbers.
    """
    record = read_json(path)
    first: int | None = None
    names: list[str] = []
    if isinstance(record, dict) and record:
        first, names = in_order(record, path, "boxes")
        rects = [record[name] for name in names]
        rects = [rect.get("rect") if isinstance(rect, dict) else rect for rect in rects]
    else:
        rects = record  # type: ignore[assignment]
    if not isinstance(rects, list) or not rects:
        raise InputError(f"{path} contains no list of face boxes")
    for index, rect in enumerate(rects):
        usable = isinstance(rect, list) and len(rect) == 4 and all(map(_is_coordinate, rect))
        if not usable:
            raise InputError(
                f"{path}: the box of frame {index + (first or 0)} is {shortened(rect)}; "
                "expected 4 numbers x0, y0, x1, y1 in pixels"
            )
    boxes = [[int(value) for value in rect] for rect in rects]
    return torch.tensor(boxes, dtype=torch.int32), first


def _is_coordinate(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) < 2**24  # type: ignore[arg-type]  # False for NaN


def boxes_from_landmarks(paths: list[Path]) -> Tensor:
    """Read one file of 110 lines "x y" per frame, and compute its face box.

    The box begins at the x of landmark 1 and the y of landmark 52 (counted from 0). Its side is the
    distance to the x of landmark 31.

    Returns:
        (F, 4) int32.

    Raises:
        InputError: a file cannot be read, or contains something else.
    """
    boxes = []
    for path in paths:
        try:
            points = [tuple(map(float, line.split())) for line in path.read_text().splitlines()]
        except (OSError, ValueError):
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
