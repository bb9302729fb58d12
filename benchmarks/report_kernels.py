"""The results of `benchmarks.kernels` as a table and as a plot."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.stages import OURS

ALONE = f"{OURS}, alone"  # on a GPU, without the launches from Python


def table(results: dict) -> str:
    machine = results["machine"]
    copy = max(results["copy, bytes a second"])
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [f"{where}; a plain copy moves {copy / 1e9:.4g} GB/s, read and written", ""]
    lines.append(
        f"{'us a call':38}{'batch':>10}{'median':>10}{'p20':>10}{'p80':>10}"
        f"{'GB/s':>9}{'of copy':>9}"
    )
    for name, rows in _by_stage(results):
        lines.append(name)
        for row in rows:
            times = "".join(f"{row[key] * 1e6:10.1f}" for key in ("median", "p20", "p80"))
            speed = ""
            if row["side"] in (OURS, ALONE) and row["bytes"]:
                rate = row["bytes"] / row["median"]
                speed = f"{rate / 1e9:9.1f}{rate / copy:9.1%}"
            lines.append(f"  {row['side']:36}{row['batch']:10}{times}{speed}")
    lines += ["", f"times as fast as, at batch {results['compared at batch']}"]
    for name, ratios in speed_ups(results).items():
        lines.append(name)
        lines += [f"  {side:46}{ratio:10.2f}" for side, ratio in ratios.items()]
    reasons = defaultdict(list)
    for row in results["left out"]:
        size = " x ".join(map(str, row.get("frame size") or []))
        batch = f"batch {row['batch']}" if "batch" in row else ""
        what = ", ".join(part for part in (row["stage"], size, batch) if part)
        reasons[row["side"], row["reason"]].append(what)
    if reasons:
        lines += ["", "left out"]
    for (side, reason), what in reasons.items():
        lines.append(f"  {side}: {reason} ({'; '.join(what)})")
    return "\n".join(lines)


def speed_ups(results: dict) -> dict[str, dict[str, float]]:
    """Stage -> side -> its time over ours, both started from Python, at the main batch."""
    ratios = {}
    for name, rows in _by_stage(results):
        rows = [row for row in rows if row["batch"] == results["compared at batch"]]
        ours = [row["median"] for row in rows if row["side"] == OURS]
        others = [row for row in rows if row["side"] not in (OURS, ALONE)]
        if ours and others:
            ratios[name] = {row["side"]: row["median"] / ours[0] for row in others}
    return ratios


def _by_stage(results: dict) -> Iterator[tuple[str, list[dict]]]:
    groups = defaultdict(list)
    for row in results["measured"]:
        size = " x ".join(map(str, row["frame size"] or []))
        groups[", ".join(part for part in (row["stage"], size) if part)].append(row)
    order = list(dict.fromkeys(row["stage"] for row in results["measured"]))
    for name, rows in sorted(groups.items(), key=lambda group: order.index(group[1][0]["stage"])):
        yield name, sorted(rows, key=lambda row: row["side"] not in (OURS, ALONE))


def plot(results: dict, path: Path) -> bool:
    """Share of the copy bandwidth and speed-ups; False where there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    stages, ratios = dict(_by_stage(results)), speed_ups(results)
    figure = Figure(figsize=(13, 2 + 0.6 * len(stages)), layout="constrained")
    figure.suptitle(results["machine"]["gpu"] or results["machine"]["cpu"])
    left, right = figure.subplots(1, 2, sharey=True)
    left.invert_yaxis()  # the first on top

    side = OURS if results["device"] == "cpu" else ALONE
    copy = max(results["copy, bytes a second"])
    shares: dict[int, dict[str, float]] = defaultdict(dict)
    for name, rows in stages.items():
        for row in rows:
            if row["side"] == side:
                shares[row["batch"]][name] = row["bytes"] / row["median"] / copy
    _bars(left, list(stages), {f"batch {batch}": of for batch, of in shares.items()})
    left.axvline(1, color="black", linewidth=0.8)
    left.set_xlabel(f"bytes it must move a second, of a plain copy's {copy / 1e9:.4g} GB/s")

    sides = dict.fromkeys(side for of in ratios.values() for side in of)
    _bars(right, list(stages), {
        side: {name: of[side] for name, of in ratios.items() if side in of} for side in sides
    }, start=1)  # fmt: skip
    right.set_xscale("log")
    right.axvline(1, color="black", linewidth=0.8)
    right.set_xlabel(f"times as fast as, at batch {results['compared at batch']}")
    figure.savefig(path, dpi=110)
    return True


def _bars(axes, names: list[str], series: dict[str, dict[str, float]], start: float = 0) -> None:
    """Horizontal bars, a group for every name."""
    height = 0.8 / max(len(series), 1)
    for number, (label, values) in enumerate(series.items()):
        places = [names.index(name) + (number + 0.5) * height - 0.4 for name in values]
        lengths = [value - start for value in values.values()]
        axes.barh(places, lengths, height, left=start, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
