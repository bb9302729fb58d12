"""How much memory a process can still get, by the kernel's files."""

import sys
from pathlib import Path

import pytest

from engine.device.host_memory import available_bytes

GIB = 1 << 30
MEMINFO = f"MemTotal: {16 << 20} kB\nMemFree: 100 kB\nMemAvailable: {8 << 20} kB\n"


def system(root: Path, **files: object) -> Path:
    """Write the kernel's files; names have "__" for "/"."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_without_limits(tmp_path):
    assert available_bytes(system(tmp_path, proc__meminfo=MEMINFO)) == 8 * GIB


def test_a_system_that_says_nothing(tmp_path):
    assert available_bytes(tmp_path) is None


def group(folder: str, limit: object, used: int, cached: int = 0) -> dict[str, object]:
    return {
        f"{folder}memory.max": limit,
        f"{folder}memory.current": used,
        f"{folder}memory.stat": f"anon 5\ninactive_file {cached}\nactive_file 7",
    }


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        (group("a/b/", 3 * GIB, GIB), {}, 2 * GIB),
        (group("a/b/", 3 * GIB, 2 * GIB, cached=GIB), {}, 2 * GIB),  # files, which are dropped
        (group("a/b/", "max", GIB), {}, 8 * GIB),
        (group("a/b/", 20 * GIB, GIB), {}, 8 * GIB),
        (group("a/b/", 3 * GIB, GIB), group("a/", 4 * GIB, 3 * GIB), GIB),
        (group("a/b/", "max", GIB), group("", 2 * GIB, GIB), GIB),  # a container's own top
        (group("a/b/", GIB, 2 * GIB), {}, 0),
    ],
)
def test_a_control_group(tmp_path, inner, outer, expected):
    files = {f"sys/fs/cgroup/{name}": content for name, content in {**inner, **outer}.items()}
    root = system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/a/b", **files)
    assert available_bytes(root) == expected


def test_a_control_group_of_version_1(tmp_path):
    folder = "sys/fs/cgroup/memory/docker"
    files = {f"{folder}/memory.limit_in_bytes": 3 * GIB, f"{folder}/memory.usage_in_bytes": GIB}
    groups = "5:devices:/docker\n4:cpu,memory:/docker\n0::/"
    root = system(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup=groups, **files)
    assert available_bytes(root) == 2 * GIB


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_this_system():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 1 << 20 < available_bytes() < total
