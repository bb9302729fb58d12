"""The numbers of a resize, four columns at a time."""

import struct
from functools import lru_cache
from math import gcd
from typing import NamedTuple

from ..spec import ResizeMode

LANES = 32  # of four columns each, which one program makes
_LOWEST = 1 << 23  # the smallest float32 of which the last bit counts 1
_MOST = 1 << 15  # so that weights have 16 bits, and _LOWEST + 256 times it is 2**24


class Along(NamedTuple):
    """Places in the source: of target pixel x, ((whole * parts + rest) * x + begin) / parts.

    In half pixels it is one pixel more, so that it is not negative.
    """

    whole: int
    rest: int
    parts: int
    begin: int

    def place(self, pixel: int) -> int:
        """Return the place of a target pixel, not yet divided by the parts."""
        return (self.whole * self.parts + self.rest) * pixel + self.begin


class LinearPlan(NamedTuple):
    """Between two pixels each way, see `resize_linear`."""

    columns: Along
    rows: Along
    total: int  # of a pair of columns' weights
    scale: int  # what a part changes a pair: its lower half by -total / parts, the higher by + that
    start: int  # the bits at which sums begin
    share: float  # 1 / total, as a float32
    begin: float  # 2**23 or 1.5 * 2**23, without what the sums begin at, over the total
    pixels: int  # of the window that holds all taps of four columns
    tile: int  # rows of a program: fewer where there is little to do


def along(source: int, target: int, mode: ResizeMode) -> Along:
    if mode == "direct":
        step, begin, parts = source, 0, target
    else:
        step, begin, parts = 2 * source, source + target, 2 * target
    common = gcd(step, begin, parts)
    parts //= common
    return Along(*divmod(step // common, parts), parts, begin // common)


def tile_rows(n: int, new: tuple[int, int]) -> int:
    """Return 8 to 64 rows for a program, so that a GPU gets enough programs, and even ones."""
    across = -(-n * (new[1] // 4) // LANES)
    bands = -(-1024 // across)
    return min(max(-(-new[0] // bands), 8), 64)


@lru_cache
def linear_plan(
    n: int, old: tuple[int, int], new: tuple[int, int], mode: ResizeMode
) -> LinearPlan | None:
    """Plan a resize, from heights and widths.

    Returns None if numbers would be too large, or rows' weights not exact enough.
    """
    rows, columns = (along(*sizes, mode) for sizes in zip(old, new, strict=True))
    total = rows.parts * columns.parts
    if mode == "bilinear":  # as fine as possible
        total = _MOST // columns.parts * columns.parts
    if total > _MOST:
        return None
    # A row's weight, as a product: its parts times what the reciprocal lacks, and 2**-25 at most
    # when that is rounded. Lines differ by 255 * total at most.
    error = (rows.parts - 1) * abs(reciprocal(rows.parts)[1]) + 2**-25
    if mode == "direct" and 255 * total * error >= 0.5:
        return None
    whole, (share, lack) = -(-_LOWEST // total), reciprocal(total)
    start = whole * total + (1 if mode == "direct" and lack > 0 else 0)
    begin = (1.0 if mode == "direct" else 1.5) * _LOWEST - whole
    pixels = max(3 * columns.whole - (-3 * columns.rest // columns.parts) + 2, 4)
    return LinearPlan(
        columns, rows, total, total // columns.parts * 0xFFFF, 0x4B000000 + start - _LOWEST, share,
        begin, pixels, tile_rows(n, new),
    )  # fmt: skip


def reciprocal(number: int) -> tuple[float, float]:
    """Return 1 / number as a float32, and what that lacks."""
    rounded = struct.unpack("f", struct.pack("f", 1 / number))[0]
    return rounded, 1 / number - rounded
