"""How often the parts of `resize` run, and what it must move: for `kernels.model`."""

import triton

from ..spec import ResizeMode
from ..work import Work
from .resize import LANES, TAPS, quad_tile
from .resize_plan import LinearPlan, linear_plan


def resize_work(
    n: int, old: tuple[int, int], new: tuple[int, int], mode: ResizeMode, channels: int
) -> Work:
    """Return the work of n images that are resized four columns at a time, from heights, widths."""
    plan = None if mode == "bicubic" else linear_plan(n, old, new, mode)
    runs = _linear_runs(plan, n, new) if plan else _quad_runs(n, old, new, mode)
    made, read = n * new[0] * new[1] * channels, n * old[0] * old[1] * channels
    # Of a warp: 128 columns of the source, and words that are `channels` words apart.
    span, spread = channels * old[1] / new[1], channels + 0.5
    return Work(
        runs=runs, moved=made + read, made=made, items=n,
        lines={
            "quad_line": 1 + span, "last_line": 1 + span, "quad_row": spread,
            "linear_line": 1 + span, "linear_row": spread,
        },
    )  # fmt: skip


def _quad_runs(
    n: int, old: tuple[int, int], new: tuple[int, int], mode: ResizeMode
) -> dict[str, int]:
    (source_height, _), (height, width) = old, new
    rows, taps = quad_tile(n, height, width), TAPS[mode]
    across = triton.cdiv(width, 4 * LANES)

    def top(row: int) -> int:
        if mode == "direct":
            return row * source_height // height
        return ((2 * row + 1) * source_height + height) // (2 * height) - 1

    lines = last = 0
    for begin in range(0, height, rows):
        last = _lines([top(row) for row in range(begin, min(begin + rows, height))], taps)
        lines += last
    # The tile in the last corner of the last image is made with care.
    return {
        "_resize_quads": n * across * triton.cdiv(height, rows), "quad_row": n * across * height,
        "quad_line": n * across * lines - last, "last_line": last,
    }  # fmt: skip


def _linear_runs(plan: LinearPlan, n: int, new: tuple[int, int]) -> dict[str, int]:
    (height, width), lines = new, 0
    across = triton.cdiv(n * (width // 4), LANES)
    for begin in range(0, height, plan.tile):
        rows = range(begin, min(begin + plan.tile, height))
        lines += _lines([plan.rows.place(row) // plan.rows.parts for row in rows], 2)
    return {
        "_resize_linear": across * triton.cdiv(height, plan.tile), "linear_row": across * height,
        "linear_line": across * lines,
    }  # fmt: skip


def _lines(tops: list[int], taps: int) -> int:
    """Return how many lines a program makes for rows, from the pixels before them."""
    newest, count = tops[0] - taps // 2, 0
    for top in tops:
        newest = max(newest, top - taps // 2)
        count += max(top + taps // 2 - newest, 0)
        newest = max(newest, top + taps // 2)
    return count
