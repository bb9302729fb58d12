"""A GPU that cannot run kernels is one line, and the CPU's turn."""

import contextlib
import os
import subprocess
import sys
import sysconfig
from types import SimpleNamespace

import pytest
import torch

from engine import Avatar
from engine.device import check
from engine.errors import DeviceError

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    check.check_kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    yield
    check.check_kernels.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    """What Triton does where there is no C compiler."""
    build = pytest.importorskip("triton.runtime.build")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def run(device):
        build._build("launcher", str(tmp_path / "main.c"), str(tmp_path), [], [], [], [])

    monkeypatch.setattr(check, "run_smallest_kernel", run)
    cached = [f for f in vars(build).values() if hasattr(f, "cache_clear")]
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_the_kernel_runs_on_a_cpu():
    check.run_smallest_kernel(torch.device("cpu"))
    check.check_kernels(torch.device("cpu"))


def test_a_wrong_result(monkeypatch):
    """For example of a GPU whose kernels write nothing."""
    monkeypatch.setattr(check.kernels, "feature_windows", lambda *_, **__: torch.zeros(1, 32))
    with pytest.raises(RuntimeError, match="a kernel's result is 0.0; expected 1536"):
        check.run_smallest_kernel(torch.device("cpu"))


def test_without_a_compiler(no_compiler):
    with pytest.raises(DeviceError) as caught:
        check.check_kernels(CUDA)
    assert str(caught.value) == (
        "kernels cannot be compiled for cuda:0: a C compiler (such as gcc) is missing; "
        "install what is missing"
    )
    assert "Failed to find C compiler" in str(caught.value.__cause__)


def test_without_headers(monkeypatch, tmp_path):
    """A real compiler that does not find Python.h."""
    build = pytest.importorskip("triton.runtime.build")
    (tmp_path / "main.c").write_text("#include <Python.h>\n")
    monkeypatch.setattr(sysconfig, "get_paths", lambda *_, **__: {"include": str(tmp_path)})

    def run(device):
        build._build("launcher", str(tmp_path / "main.c"), str(tmp_path), [], [], [], [])

    monkeypatch.setattr(check, "run_smallest_kernel", run)
    with pytest.raises(DeviceError) as caught:
        check.check_kernels(CUDA)
    assert isinstance(caught.value.__cause__, subprocess.CalledProcessError)
    assert str(caught.value) == (
        f"kernels cannot be compiled for cuda:0: {tmp_path / 'Python.h'} (Debian: python3-dev) is "
        "missing; install what is missing"
    )


def test_an_old_gpu(monkeypatch):
    def run(device):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nSearch for it"
        )

    monkeypatch.setattr(check, "run_smallest_kernel", run)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce GTX 1080")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    with pytest.raises(DeviceError) as caught:
        check.check_kernels(CUDA)
    assert str(caught.value) == (
        f"cuda:0 is a GeForce GTX 1080 (SM61), for which PyTorch {torch.__version__} has no "
        "kernels; expected one of: sm_75, sm_80"
    )


def test_any_other_error(monkeypatch):
    def run(device):
        calls.append(device)
        if len(calls) < 3:
            raise RuntimeError("Triton Error [CUDA]:\n  device kernel image is invalid")

    calls = []
    monkeypatch.setattr(check, "run_smallest_kernel", run)
    for _ in range(2):  # an error is not kept
        with pytest.raises(DeviceError) as caught:
            check.check_kernels(CUDA)
        assert str(caught.value) == (
            "cuda:0 cannot run kernels: RuntimeError: Triton Error [CUDA]: device kernel image is "
            "invalid"
        )
    for _ in range(2):
        check.check_kernels(CUDA)
    assert calls == [CUDA] * 3


def test_the_cpu_takes_its_turn(no_compiler, native, monkeypatch):
    """In `engine.render`, where nobody asked for a GPU. No network is opened for the GPU."""
    from engine.render import _open_pipeline

    load = Avatar.load

    def on_a_gpu(path, *, device, **options):
        avatar = load(path, **options)
        if device == "cuda":
            avatar.device, avatar.boxes = CUDA, SimpleNamespace(device=CUDA)
        return avatar

    monkeypatch.setattr(Avatar, "load", on_a_gpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.warns(UserWarning) as warned:
        pipeline = _open_pipeline(native, None, None, None, None, None, None)
    (line,) = [str(w.message) for w in warned if "rendering on the CPU" in str(w.message)]
    assert line.startswith("rendering on the CPU: kernels cannot be compiled for cuda:0: ")
    assert pipeline.device.type == "cpu"
    with pytest.raises(DeviceError, match="a C compiler"):  # somebody asked for it
        _open_pipeline(native, "cuda", None, None, None, None, None)


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch, tmp_path):
    """The kernel runs, and without a compiler a new process says so in one line."""
    monkeypatch.undo()
    check.check_kernels(torch.device("cuda", torch.cuda.current_device()))
    program = (
        "import torch; from engine.device.check import check_kernels; from engine.errors import *\n"
        "try:\n    check_kernels(torch.device('cuda', 0))\n"
        "except DeviceError as error:\n    print(error)\n"
    )
    environment = {
        **{k: v for k, v in os.environ.items() if k != "CC"},
        **{"PATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "a C compiler (such as gcc) is missing" in done.stdout
    assert len(done.stdout.splitlines()) == 1
