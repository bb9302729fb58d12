"""How often the parts of `resize` run, and what it must move: for `kernels.model`."""

import triton

from ..spec import ResizeMode
from ..work import Work
from .resize import TAPS, quad_windows
from .resize_plan import LANES, LinearPlan, along, linear_plan, tile_rows


def resize_work(
    n: int, old: tuple[int, int], new: tuple[int, int], mode: ResizeMode, channels: int
) -> Work:
    """Return the work of n images that are resized four columns at a time, from heights, widths."""
    plan = None if mode == "bicubic" else linear_plan(n, old, new, mode)
    runs = _linear_runs(plan, n, new) if plan else _quad_runs(n, old, new, mode, channels)
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
    n: int, old: tuple[int, int], new: tuple[int, int], mode: ResizeMode, channels: int
) -> dict[str, int]:
    (height, width), tile, taps = new, tile_rows(n, new), TAPS[mode]
    rows, columns = (along(*sizes, mode) for sizes in zip(old, new, strict=True))
    behind = 0 if mode == "direct" else 1
    items, quads = n * (width // 4), width // 4
    across = triton.cdiv(items, LANES)
    # Programs whose last lane, in the last image, may read over the end of a row.
    furthest = (
        min((program + 1) * LANES, items) - 1 - (items - quads) for program in range(across)
    )
    _, _, danger = quad_windows(old[1], new[1], mode, channels)
    careful = sum(lane >= 0 and columns.place(4 * lane) >= danger for lane in furthest)
    lines = last = 0
    for begin in range(0, height, tile):
        tops = [
            rows.place(row) // rows.parts - behind
            for row in range(begin, min(begin + tile, height))
        ]
        count = _lines(tops, taps)
        lines += count
        last += count if tops[-1] >= old[0] - 1 - taps // 2 else 0
    return {
        "_resize_quads": across * triton.cdiv(height, tile), "quad_row": across * height,
        "quad_line": across * lines - careful * last, "last_line": careful * last,
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
