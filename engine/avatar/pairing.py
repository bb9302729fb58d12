"""Pair frames and face boxes by number."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, shortened


@dataclass(frozen=True)
class Numbers:
    """How the frames, the boxes or the masks of an avatar are numbered.

    Attributes:
        path: the file or the folder.
        what: "frames", "boxes" or "masks", for errors.
        count: how many there are.
        first: the first number, 0 or 1; None for a video or a list, which have no numbers.
    """

    path: Path
    what: str
    count: int
    first: int | None


def number_of(name: str) -> int | None:
    """Return the number that a name ends in, before any suffix: 7 for "7" and "frame_0007.png".

    None if it ends in no number, or in more than 18 digits.
    """
    digits = re.search(r"(?<!\d)(\d{1,18})(\.[A-Za-z]\w{0,7})?\Z", name)
    return int(digits[1]) if digits else None


def in_order(names: Iterable[str], where: Path, what: str) -> tuple[int, list[str]]:
    """Sort names by the numbers that they end in.

    Args:
        names: at least one.
        where: the folder or the file that has them, for errors.
        what: "files" or "boxes", for errors.

    Returns:
        The first number, 0 or 1, and the names in order.

    Raises:
        InputError: a name has no number, a number occurs twice or is missing, or the first one is
            above 1.
    """
    found: dict[int, str] = {}
    for name in sorted(names):
        number = number_of(name)
        if number is None:
            raise InputError(f"{where}: {shortened(name)} has no number")
        if number in found:
            raise InputError(
                f"{where}: number {number} is {shortened(found[number])} and {shortened(name)}"
            )
        found[number] = name
    first = 0 if 0 in found else 1
    for number in range(first, first + len(found)):
        if number not in found:
            raise InputError(f"{where}: number {number} is missing (there are {len(found)} {what})")
    return first, [found[number] for number in sorted(found)]


def first_of_both(frames: Numbers, boxes: Numbers) -> int:
    """Check that frames and boxes (or masks) begin with the same number, and return it.

    Neither has gaps. So frame i and box i then have the same number for all i, and only frames or
    boxes at the end can be left over. A video or a list takes the numbers of the other side if both
    have the same length. Otherwise it is numbered from 0.

    Raises:
        InputError: one begins at 0 and the other at 1.
    """
    given = [side.first for side in (frames, boxes) if side.first is not None]
    default = given[0] if given and frames.count == boxes.count else 0
    firsts = {side: default if side.first is None else side.first for side in (frames, boxes)}
    if firsts[frames] == firsts[boxes]:
        return firsts[frames]
    zero, one = sorted((frames, boxes), key=lambda side: firsts[side])
    counted = ", counted from 0" if zero.first is None else " from number 0 on"
    raise InputError(
        f"{one.path}: number 0 is missing. It has {one.count} {one.what} from number 1 on, "
        f"{zero.path} has {zero.count} {zero.what}{counted}; a frame and its "
        f"{'box' if boxes.what == 'boxes' else 'mask'} must have the same number"
    )
