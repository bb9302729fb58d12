"""The host's memory that a process can still get."""

from pathlib import Path


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return how many bytes of memory this process can still get; None if the system does not say.

    It is what the kernel estimates to be available, or less if a control group, such as that of a
    container, has a limit.

    Args:
        root: where /proc and /sys are. For tests.
    """
    found = [
        1024 * int(line.split()[1])
        for line in _lines(root / "proc/meminfo")
        if line.startswith("MemAvailable:")
    ]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            top = root / "sys/fs/cgroup"
            found += _left(top, top / path.lstrip("/"), "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            found += _left(top, top / path.lstrip("/"), *names)
    return max(min(found), 0) if found else None


def _left(top: Path, inner: Path, limit: str, usage: str) -> list[int]:
    """Return how many bytes the limit of a control group leaves, and that of each group around
    it."""
    left = []
    for group in (inner, *inner.parents):
        if group.is_relative_to(top):
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                left.append(most - used + _reclaimable(group))
    return left


def _reclaimable(group: Path) -> int:
    """Return the bytes of cached files, which count as used, but are dropped when memory is low."""
    lines = _lines(group / "memory.stat")
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _number(path: Path) -> int | None:
    """Return the number in a file; None if there is none, or the word "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdecimal() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
