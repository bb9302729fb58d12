"""The benchmark of Ray Serve's proxy: how its figures come about, without servers."""

import subprocess
import sys

import pytest

pytest.importorskip("grpc")
from benchmarks import cluster
from benchmarks.cluster import Figure
from tests.engine.tiny import write_avatar


def test_a_session_in_process(tmp_path):
    found = cluster.in_process(write_avatar(tmp_path / "tiny"), 1.0)
    assert found.wall > 0 and found.cores > 0


def test_cores_count_with_those_of_children():
    """A process whose child works until it has had 0.3 s of a core."""
    work = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        assert 0.25 <= cluster.cpu_seconds(process.pid) <= 5
        process.stdin.write(b"\n")


def test_the_figures_are_medians_and_the_proxy_is_what_is_added(monkeypatch):
    times = iter([3.0, 1.0, 2.0])

    def server(module, avatar, folder):
        class Context:
            def __enter__(self):
                return (1 if module == "serve" else 2), type("P", (), {"pid": 7})

            def __exit__(self, *_):
                pass

        return Context()

    async def through(port, pid, picture, seconds):
        return Figure(10.0 * port, (1.5 if port == 1 else 4.0) + picture)

    monkeypatch.setattr(cluster, "server", server)
    monkeypatch.setattr(cluster, "through", through)
    monkeypatch.setattr(cluster, "in_process", lambda avatar, seconds: Figure(next(times), 0.5))
    found = cluster.measure(1.0, 3)
    assert found["in process"] == {"wall_ms": 2.0, "core_ms": 0.5}
    assert found["cluster, none"]["wall_ms"] == 20.0
    lines = cluster.report(found).splitlines()
    assert lines[-2:] == [
        "the proxy adds 2.50 ms of a core a frame (none)",
        "the proxy adds 2.50 ms of a core a frame (rgb)",
    ]
