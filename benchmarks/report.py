"""Tables and plots of benchmark results."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

VISEME = "viseme"  # this project, among the providers


class Column(NamedTuple):
    """A column of a table."""

    title: str
    key: str = ""  # in a row, or a path of keys separated by "/"; by default the title
    form: str = ""  # format of numbers; text, which is aligned left, has none
    scale: float = 1.0


CASE, PROVIDER, BATCH = Column("case"), Column("provider"), Column("batch", form="d")
SPEED_UPS = [CASE, BATCH, PROVIDER, Column(f"speed-up of {VISEME}", "speed-up", ".2f")]


def table(rows: Sequence[dict], columns: Sequence[Column]) -> list[str]:
    """Format rows as lines of text.

    Columns without any value are left out. A case is written only where it begins.
    """
    texts = []
    for column in columns:
        cells = [_cell(row, column) for row in rows]
        if any(cells):
            if column is CASE:
                cells = [
                    c if c != above else "" for c, above in zip(cells, ["", *cells], strict=False)
                ]
            width = max(map(len, (column.title, *cells)))
            align = str.rjust if column.form else str.ljust
            texts.append([align(cell, width) for cell in (column.title, *cells)])
    return ["  ".join(line).rstrip() for line in zip(*texts, strict=True)]


def _cell(row: dict, column: Column) -> str:
    value = find(row, column.key or column.title)
    if value is None:
        return ""
    return format(value * column.scale if column.scale != 1 else value, column.form)


def find(row: dict, path: str) -> Any:
    """Return the value at a path of keys, or None."""
    value: Any = row
    for key in path.split("/"):
        value = value.get(key) if value else None
    return value


def named(title: str, values: dict[str, float], form: str) -> list[str]:
    """Format named values as a table."""
    rows = [{title: name, "value": value} for name, value in values.items()]
    return table(rows, [Column(title), Column("", "value", form)])


def text(results: dict, *tables: list[str]) -> str:
    """Join tables, after a line about the machine and before the list of rows left out."""
    machine = results["machine"]
    left_out: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in results["left out"]:
        sizes = [f"{row['sessions']} sessions" if "sessions" in row else ""]
        sizes += [f"batch {row['batch']}" if "batch" in row else ""]
        left_out[row["provider"], row["reason"]] += [", ".join(filter(None, (case(row), *sizes)))]
    reasons = []
    for (provider, reason), cases in left_out.items():
        some = [*cases[:4], f"{len(cases) - 4} more"] if len(cases) > 5 else cases
        reasons.append(f"  {provider}: {reason}" + (f" ({'; '.join(some)})" if any(cases) else ""))
    blocks = [
        [machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"],
        *tables,
        ["left out", *reasons] if reasons else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def case(row: dict) -> str:
    """Return the stage and the frame size of a row, as far as it has them."""
    size = " x ".join(map(str, row.get("frame size") or []))
    return ", ".join(filter(None, (row.get("stage"), size)))


def is_viseme(row: dict) -> bool:
    """Tell whether a row is about this project, with whatever runtime or method."""
    return row["provider"].split(",")[0] == VISEME


def ordered(results: dict) -> list[dict]:
    """Return the measured rows with their cases, by stage, case and provider, Viseme's first."""
    rows = [{**row, "case": case(row)} for row in results["measured"]]
    stages, cases, providers = (
        list(dict.fromkeys(row.get(key) for row in rows)) for key in ("stage", "case", "provider")
    )
    return sorted(
        rows,
        key=lambda row: (
            stages.index(row.get("stage")), cases.index(row["case"]),
            not is_viseme(row), providers.index(row["provider"]),
            row.get("sessions", 0), row.get("batch", 0),
        ),
    )  # fmt: skip


def speed_ups(results: dict, cost: Callable[[dict], float]) -> list[dict]:
    """Compare the other providers with the fastest of Viseme's at the batch size for comparisons.

    Args:
        cost: returns the time that a row took per unit of work.

    Returns:
        The rows of other providers with their "speed-up": their cost over Viseme's.
    """
    rows = [row for row in ordered(results) if row["batch"] == results["compared at batch"]]
    best: dict[str, float] = {}
    for row in filter(is_viseme, rows):
        best[row["case"]] = min(cost(row), best.get(row["case"], math.inf))
    others = [row for row in rows if not is_viseme(row) and row["case"] in best]
    return [{**row, "speed-up": cost(row) / best[row["case"]]} for row in others]


def plot(
    results: dict,
    title: str,
    key: str,
    marks: Callable[[str], dict[str, float]],
    path: Path,
    *,
    over: str = "batch",
    scale: str = "log",
) -> bool:
    """Plot a figure over batch sizes, a panel for each case; bars where there is one batch size.

    Rows that lack the figure or its place on the x axis are left out.

    Args:
        key: of the figure in a row, or a path of keys separated by "/".
        marks: returns, for a case, values to mark by lines, with their labels.
        over: key of the x axis, "batch" or "sessions".
        scale: of the y axis, "log" or "linear".

    Returns:
        False if matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        return False
    panels: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in ordered(results):
        if over in row and find(row, key) is not None:
            panels[row["case"]][row["provider"]][row[over]] = find(row, key)
    providers = list(dict.fromkeys(row["provider"] for row in results["measured"]))
    columns = min(3, max(1, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(6 * columns, 4.5 * lines), layout="constrained")
    figure.suptitle(f"{results['machine']['gpu'] or results['machine']['cpu']}: {title}")
    label = {"batch": "batch size"}.get(over, over)
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (name, values) in zip(grid, panels.items(), strict=False):
        batches = sorted({batch for points in values.values() for batch in points})
        for provider, points in values.items():
            number = providers.index(provider)
            color = colormaps["tab20"]((2 * number + number // 10) % 20)  # ten dark, ten light
            if len(batches) == 1:
                axes.barh(provider, points[batches[0]], color=color)
            else:
                x, y = zip(*points.items(), strict=True)
                style = "-" if provider.startswith(VISEME) else "--"
                axes.plot(x, y, color=color, linestyle=style, marker="o", label=provider)
        for text, mark in marks(name).items():
            line = axes.axvline if len(batches) == 1 else axes.axhline
            line(mark, color="black", linewidth=0.8, label=text)
        if len(batches) == 1:
            axes.invert_yaxis()
            axes.set(title=f"{name}, {label} {batches[0]}", xlabel=title)
        else:
            axes.set(title=name, xlabel=label, xticks=batches, yscale=scale)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="x-small")
        axes.grid(linewidth=0.3)
    figure.savefig(path, dpi=110)
    return True
