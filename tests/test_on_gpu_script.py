"""benchmarks/on_gpu.sh, with stand-ins for Python, `timeout`, ncu and the GPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks/on_gpu.sh"
# As a reading of the GPU path asks for: what is most likely to fail, or to be slow, comes first.
ORDER = [
    *["generator", "generator-profile"],
    *["kernel-tests", "capture-tests", "kernels-main", "kernels-profile", "engine-torch"],
    *["pipeline-quick", "pipeline", "engine-tests", "train-tests", "kernels", "live"],
]


@pytest.fixture
def run(tmp_path):
    """Run the script; programs that it calls write their arguments to a file."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    calls.write_text("")

    def write(name: str, body: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    write("python3", 'case "$*" in *get_device_name*) echo "NVIDIA H200";; esac')
    write("nvidia-smi", "true")
    write("ncu", "true")
    write("timeout", f'echo "$*" >>"{calls}"\ncase "$*" in *fail*) exit 124;; esac')

    def call(*parts: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        calls.write_text("")
        done = subprocess.run(
            ["bash", str(SCRIPT), *parts],
            env={"PATH": f"{folder}:{os.environ['PATH']}", "OUT": str(tmp_path / "out")}
            | environment,
            capture_output=True,
            text=True,
        )
        return done, calls.read_text().splitlines()

    call.folder = folder
    return call


def test_all_parts_fit_ten_minutes(run):
    done, calls = run("--list")
    *parts, total = done.stdout.splitlines()
    found = [re.fullmatch(r"(\S+) +about +(\d+) s, at most +(\d+) s", line) for line in parts]
    assert [match[1] for match in found] == ORDER and calls == []
    assert all(0 < int(match[2]) < int(match[3]) <= 570 for match in found)  # and 30 s to be killed
    assert sum(int(match[2]) for match in found) / 60 <= int(
        re.search(r"about +(\d+) min", total)[1]
    )


def test_the_order_and_the_signal(run, tmp_path):
    """Python's tests write their XML after SIGINT, and not after SIGTERM."""
    done, calls = run()
    assert done.returncode == 0, done.stderr
    titles = re.findall(r"^== (\S+), about (\d+) s, at most (\d+) s: ", done.stdout, re.M)
    assert [title for title, *_ in titles] == ORDER
    assert done.stdout.splitlines()[0].startswith("generator          about ")  # before all else
    assert len(calls) == len(ORDER)
    for call, (title, _, limit) in zip(calls, titles, strict=True):
        assert call.startswith(f"--signal=INT --kill-after=30 {limit} ")
        assert f"/{title}." in call  # its results have its name
    assert (tmp_path / "out/log.txt").read_text() == done.stdout


def test_some_parts(run):
    done, calls = run("live", "kernel-tests")
    assert done.returncode == 0 and ["benchmarks.live" in call for call in calls] == [True, False]
    done, calls = run("live", "nonsense")
    assert done.returncode == 2 and calls == []
    assert "unknown part nonsense; expected some of: generator generator-profile" in done.stderr


def test_a_part_that_fails_does_not_stop_the_next(run, tmp_path):
    done, calls = run("kernels-main", "live", OUT=str(tmp_path / "fail"))
    assert done.returncode == 1 and len(calls) == 2
    assert done.stdout.count("exit code 124") == 2


def test_without_a_profiler_or_a_gpu(run):
    (run.folder / "ncu").unlink()
    done, calls = run("kernels-profile", PATH=f"{run.folder}:/usr/bin:/bin")
    assert done.returncode == 0 and calls == [] and "ncu is not installed" in done.stdout
    (run.folder / "python3").write_text("#!/bin/sh\nexit 1\n")
    done, calls = run("live")
    assert done.returncode == 2 and calls == [] and "finds no CUDA GPU" in done.stderr


def test_names_of_tests_exist():
    """Those that the script selects by their names."""
    text = (ROOT / "tests/engine/test_on_gpu.py").read_text()
    (chosen,) = re.findall(r"-k '(capture [^']*)'", SCRIPT.read_text())
    names = re.findall(r"^def (test_\w+)", text, re.M)
    for word in chosen.split(" or "):
        assert any(word in name for name in names), word
    assert Path(ROOT / "benchmarks/launches.py").exists()


# What a GPU host may not have. With None as the module, it cannot be imported.
WITHOUT = """
import sys
import pytest
missing = "av", "scipy", "librosa", "tensorrt", "tensorrt_rtx", "openvino", "tflite", "grpc"
sys.modules |= dict.fromkeys(missing)
import benchmarks.generator, benchmarks.kernels, benchmarks.launches, benchmarks.live, benchmarks.pipeline
quiet = "--collect-only", "-qq", "-p", "no:cacheprovider"
sys.exit(pytest.main([*sys.argv[1:], "-m", "gpu", *quiet]))
"""


def test_nothing_needs_what_a_gpu_host_lacks():
    """Otherwise a part would always fail."""
    paths = set(re.findall(r'tests "\$name" (tests/\S+)', SCRIPT.read_text()))
    assert len(paths) >= 3
    folders = [path for path in sorted(paths) if not path.startswith("tests/engine/")]
    command = [sys.executable, "-c", WITHOUT, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "tests/engine/test_on_gpu.py" in done.stdout
