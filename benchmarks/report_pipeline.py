"""The results of `benchmarks.pipeline` as a table and as a plot."""

from collections import defaultdict
from pathlib import Path

OURS = "viseme"
STAGES = ("log_mel", "windows", "audio encoder", "frames", "face_input", "generator", "composite")


def table(results: dict) -> str:
    machine = results["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    copy = max(results["copy, bytes a second"])
    lines = [
        f"{where}; a plain copy moves {copy / 1e9:.4g} GB/s, read and written, a matrix product "
        f"makes {results['arithmetic, FLOP a second'] / 1e12:.4g} TFLOP/s",
        "PCM to finished frames",
    ]
    for size, least in results["floors, s a frame"].items():
        floor = ", ".join(f"{name} {1e6 * s:.1f} us a frame" for name, s in least.items())
        lines.append(f"the floor at {size}: {floor}")
    for size, rows in _by_size(results).items():
        lines += ["", f"{size:36}{'batch':>6}{'frames/s':>10}{'p20':>9}{'p80':>9}{'live':>6}"
                  f"{'of floor':>9}{'allocs':>8}{'waits':>7}{'MiB':>7}"]  # fmt: skip
        lines += [_throughput(row) for row in rows]
    latencies = [row for row in results["measured"] if "frame, s" in row]
    if latencies:
        lines += ["", f"{'ms at batch 1':36}{'':12}{'first frame':>12}{'p99':>9}{'a frame':>12}"
                  f"{'p99':>9}"]  # fmt: skip
    for row in latencies:
        lines.append(
            f"  {row['side']:34}{_size(row):>12}"
            f"{_ms(row['first frame, s']['median']):>12}{_ms(row['first frame, s']['p99']):>9}"
            f"{_ms(row['frame, s']['median']):>12}{_ms(row['frame, s']['p99']):>9}"
        )
    lines += ["", f"{'share of the stages, at batch ' + str(results['compared at batch']):48}"
              + "".join(f"{name:>14}" for name in (*STAGES, "pre, post"))]  # fmt: skip
    for row in _main(results):
        shares = row["share of the stages"]
        lines.append(
            f"  {row['side']:34}{_size(row):>12}"
            + "".join(f"{shares[name]:14.1%}" if name in shares else f"{'':14}" for name in STAGES)
            + f"{row['share of all but the networks']:14.1%}"
        )
    lines += ["", f"times as fast as, at batch {results['compared at batch']}"]
    for size, ratios in speed_ups(results).items():
        lines += [f"  {size:14}{side:46}{ratio:10.2f}" for side, ratio in ratios.items()]
    return "\n".join(lines + _left_out(results))


def _throughput(row: dict) -> str:
    rate = row["frames a second"]
    line = f"  {row['side']:34}{row['batch']:6}{rate['median']:10.1f}{rate['p20']:9.1f}"
    line += f"{rate['p80']:9.1f}{row['sessions at 25 fps']:6}"
    if "share of the floor" in row:
        line += f"{row['share of the floor']['layer by layer']:9.1%}"
        line += f"{row['allocations a batch']:8.1f}{row['synchronisations a batch']:7.1f}"
        line += f"{row['device memory, bytes'] / 2**20:7.0f}"
    return line


def _left_out(results: dict) -> list[str]:
    reasons = defaultdict(list)
    for row in results["left out"]:
        what = f"{_size(row)} batch {row['batch']}" if "batch" in row else "all"
        reasons[row["side"], row["reason"]].append(what)
    lines = ["", "left out"] if reasons else []
    return lines + [
        f"  {side}: {reason} ({'; '.join(what)})" for (side, reason), what in reasons.items()
    ]


def speed_ups(results: dict) -> dict[str, dict[str, float]]:
    """Frame size -> side -> the fastest of ours over it, at the main batch."""
    ratios: dict[str, dict[str, float]] = {}
    for size, rows in _by_size({"measured": _main(results)}).items():
        rates = {row["side"]: row["frames a second"]["median"] for row in rows}
        ours = max((rate for side, rate in rates.items() if _is_ours(side)), default=None)
        if ours:
            ratios[size] = {side: ours / r for side, r in rates.items() if not _is_ours(side)}
    return ratios


def _is_ours(side: str) -> bool:
    return side.startswith(OURS)


def _main(results: dict) -> list[dict]:
    rows = results["measured"]
    main = results.get("compared at batch")
    return [row for row in rows if row["batch"] == main]


def _by_size(results: dict) -> dict[str, list[dict]]:
    sizes: dict[str, list[dict]] = defaultdict(list)
    for row in results["measured"]:
        sizes[_size(row)].append(row)
    sides = list(dict.fromkeys(row["side"] for row in results["measured"]))
    for rows in sizes.values():
        rows.sort(key=lambda row: (not _is_ours(row["side"]), sides.index(row["side"]),
                                   row["batch"]))  # fmt: skip
    return sizes


def _size(row: dict) -> str:
    return " x ".join(map(str, row["frame size"]))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def plot(results: dict, path: Path) -> bool:
    """Frames a second over batch sizes, a panel for each size; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    sizes = _by_size(results)
    figure = Figure(figsize=(7 * max(1, len(sizes)), 6), layout="constrained")
    figure.suptitle(results["machine"]["gpu"] or results["machine"]["cpu"])
    panels = figure.subplots(1, max(1, len(sizes)), sharey=True, squeeze=False)[0]
    for axes, (size, rows) in zip(panels, sizes.items(), strict=False):
        for side in dict.fromkeys(row["side"] for row in rows):
            own = [row for row in rows if row["side"] == side]
            axes.plot(
                [row["batch"] for row in own],
                [row["frames a second"]["median"] for row in own],
                marker="o", linestyle="-" if _is_ours(side) else "--", label=side,
            )  # fmt: skip
        for name, seconds in results["floors, s a frame"].get(size, {}).items():
            axes.axhline(1 / seconds, color="black", linewidth=0.8)
            axes.annotate(f"the floor, {name}", (1, 1 / seconds), va="bottom", fontsize="small")
        axes.set_yscale("log")
        axes.set_title(f"finished frames a second, {size}")
        axes.set_xlabel("batch")
        axes.grid(which="both", linewidth=0.3)
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    return True
