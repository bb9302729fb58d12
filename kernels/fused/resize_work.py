"""How often the parts of `resize` run, and what it must move: for `kernels.model`."""

import triton

from ..spec import ResizeMode
from ..work import Work
from .resize import LANES, TAPS, quad_tile


def resize_work(
    n: int, old: tuple[int, int], new: tuple[int, int], mode: ResizeMode, channels: int
) -> Work:
    """Return the work of n images that `_resize_quads` resizes, from heights and widths."""
    (source_height, source_width), (height, width) = old, new
    rows, taps = quad_tile(n, height, width), TAPS[mode]
    across = triton.cdiv(width, 4 * LANES)

    def top(row: int) -> int:
        if mode == "direct":
            return row * source_height // height
        return ((2 * row + 1) * source_height + height) // (2 * height) - 1

    lines = last = 0
    for begin in range(0, height, rows):
        newest, last = top(begin) - taps // 2, 0
        for row in range(begin, min(begin + rows, height)):
            newest = max(newest, top(row) - taps // 2)
            last += max(top(row) + taps // 2 - newest, 0)
            newest = max(newest, top(row) + taps // 2)
        lines += last
    # The tile in the last corner of the last image is made with care.
    runs = {
        "_resize_quads": n * across * triton.cdiv(height, rows), "quad_row": n * across * height,
        "quad_line": n * across * lines - last, "last_line": last,
    }  # fmt: skip
    made, read = n * height * width * channels, n * source_height * source_width * channels
    # Of a warp: 128 columns of the source, and words that are `channels` words apart.
    span = 128 * channels * source_width / width / 128
    return Work(
        runs=runs, moved=made + read, made=made, items=n,
        lines={"quad_line": 1 + span, "last_line": 1 + span, "quad_row": channels + 0.5},
    )  # fmt: skip
