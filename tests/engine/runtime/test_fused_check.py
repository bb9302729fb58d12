"""The process that runs the fused kernels first: what it does not survive, and what is kept."""

import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.cache import cache_folder
from engine.errors import DeviceError, DeviceFull, InputError
from engine.runtime import fused, fused_check, fused_process, open_network
from engine.runtime.fused_check import PASSED, check_in_process
from engine.runtime.signature import GENERATOR
from examples import network_files

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
SUCCESS = f"print({PASSED!r})"


@pytest.fixture
def machine(monkeypatch, tmp_path) -> dict[str, object]:
    """What decides whether kernels run, on a machine that has kept nothing."""
    found: dict[str, object] = {"gpu": "H100", "driver": "580.1"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fused_check, "describe", lambda device: dict(found))
    restart(monkeypatch)
    return found


def restart(monkeypatch) -> None:
    """Forget what a process knows."""
    monkeypatch.setattr(fused_check, "_passed", set())
    monkeypatch.setattr(fused_check, "_hung", {})


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Put a text in the place of the process's module, or return how often it was run."""
    monkeypatch.setattr(fused_check, "MODULE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runs = tmp_path / "runs"

    def put(text: str | None = None) -> int:
        if text is not None:
            begin = f"import os, sys\nopen({str(runs)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
            (tmp_path / "stand_in.py").write_text(begin + text)
        return len(runs.read_text().splitlines()) if runs.exists() else 0

    return put


def when_it_runs(child, monkeypatch, then) -> None:
    """Do something while a process is waited for, once its module has begun."""
    wait = subprocess.Popen.communicate

    def communicate(process, timeout):
        while child() == 0:
            time.sleep(0.01)
        return then(lambda seconds: wait(process, timeout=seconds), timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)


def check(**options) -> None:
    check_in_process(Path("generator.pth"), CPU, **{"float32": False, **options})


@pytest.mark.parametrize("ends, message", [
    ("import ctypes\nctypes.string_at(0)", "checks them was ended by SIGSEGV$"),
    ("sys.stderr.write('double free\\n')\nos.abort()", r"was ended by SIGABRT \(double free\)$"),
    ("raise RuntimeError('a\\nb')", r"checks them ended with 1 \(b\)$"),
    (f"print({PASSED!r})\nsys.exit(4)", "checks them ended with 4$"),
    ("", "checks them ended with 0$"),
    ("print('error: it differs', file=sys.stderr)\nsys.exit(2)", "^it differs$"),
])  # fmt: skip
def test_failures_are_one_line_and_not_kept(machine, child, ends, message):
    child(ends)
    with pytest.raises(DeviceError, match=message) as caught:
        check()
    assert not isinstance(caught.value, DeviceFull) and "\n" not in str(caught.value)
    assert list(cache_folder().iterdir()) == []
    child(SUCCESS)
    check()
    assert child() == 2


def test_a_full_gpu_is_tried_again(machine, child):
    child("print('error: it does not fit', file=sys.stderr)\nsys.exit(3)")
    for _ in range(2):
        with pytest.raises(DeviceFull, match="^it does not fit$"):
            check()
    assert child() == 2


def test_one_that_hangs_is_ended(machine, child, monkeypatch, tmp_path):
    """And not tried again in this process, but at the next start."""
    child("import time\ntime.sleep(60)")
    seconds = []
    with monkeypatch.context() as patched:
        when_it_runs(child, patched, lambda wait, most: seconds.append(most) or wait(0.01))
        for _ in range(2):
            with pytest.raises(DeviceError, match="did not end within 5 minutes"):
                check()
    (process,) = (tmp_path / "runs").read_text().split()
    assert not Path(f"/proc/{process}").exists() and seconds == [300]
    restart(monkeypatch)
    child(SUCCESS)
    check()
    assert child() == 2


def test_ctrl_c_ends_it(machine, child, monkeypatch, tmp_path):
    child("import time\ntime.sleep(60)")
    when_it_runs(child, monkeypatch, lambda wait, most: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        check()
    assert not Path(f"/proc/{(tmp_path / 'runs').read_text().strip()}").exists()
    assert list(cache_folder().iterdir()) == []


def test_what_it_is_given(machine, child, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    child(f"print(sys.argv[1:], file=open({str(tmp_path / 'given')!r}, 'w'))\n{SUCCESS}")
    check(float32=True)
    given = (tmp_path / "given").read_text()
    assert given == f"{[str(tmp_path / 'generator.pth'), 'cpu', '--float32']}\n"
    assert capsys.readouterr().err == "compiling and checking fused kernels on cpu, once\n"


def test_success_is_kept_for_this_gpu_and_these_versions(machine, child, monkeypatch, capsys):
    child(SUCCESS)
    for _ in range(3):
        check()
        restart(monkeypatch)
    assert child() == 1 and capsys.readouterr().err.count("\n") == 1
    (kept,) = cache_folder().iterdir()
    assert kept.name.startswith("fused-") and "580.1" in kept.read_text()
    machine["driver"] = "580.2"
    check()
    assert child() == 2 and len(list(cache_folder().iterdir())) == 2
    machine["driver"] = "580.1"
    kept.write_text(kept.read_text()[:-3])  # of a machine that lost power
    restart(monkeypatch)
    check()
    assert child() == 3


@pytest.mark.parametrize("fault", ["no folder", "no file"])
def test_a_cache_that_cannot_be_written(machine, child, monkeypatch, tmp_path, capsys, fault):
    """It is checked once in each process."""
    child(SUCCESS)
    if fault == "no folder":
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        (cache_folder() / "folder").mkdir()
        monkeypatch.setattr(fused_check, "_path", lambda state: cache_folder() / "folder")
    for _ in range(2):
        check()
    assert child() == 1
    assert "warning: fused kernels are checked again at the next start" in capsys.readouterr().err
    restart(monkeypatch)
    check()
    assert child() == 2


def test_what_decides(monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    found = fused_check.describe(CUDA)
    assert found["gpu"] == "NVIDIA H100" and found["capability"] == [9, 0]
    assert found["torch"] == torch.__version__
    sources = {path.name for path in Path(fused_check.__file__).parent.glob("fused*.py")}
    assert {"fused.py", "fused_process.py"} <= sources and len(str(found["sources"])) == 64
    gpu.multi_processor_count = 114
    assert fused_check.describe(CUDA) != found


def test_the_process_itself(machine):
    """It takes the arguments, finds no GPU, and says so."""
    with pytest.raises(DeviceError, match="^fused kernels need a GPU, but the device is cpu$"):
        check()


@pytest.mark.parametrize("error, code, said", [
    (None, 0, ""),
    (DeviceError("it differs"), 2, "error: it differs\n"),
    (InputError("a.pth: not a checkpoint"), 2, "error: a.pth: not a checkpoint\n"),
    (DeviceFull("it does not fit"), 3, "error: it does not fit\n"),
    (RuntimeError("CUDA error: out of memory\nuse DSA"), 3, "generator does not fit cpu\n"),
    (RuntimeError("CUDA error: illegal\nuse DSA"), 2, "RuntimeError: CUDA error: illegal use DSA\n"),
])  # fmt: skip
def test_how_the_process_ends(monkeypatch, capsys, error, code, said):
    def opened(weights, device):
        if error is not None:
            raise error

    monkeypatch.setattr(fused_process, "check_device", lambda device: "3.8.0")
    monkeypatch.setattr(fused_process, "checked_generator", opened)
    monkeypatch.setattr(fused_process, "read_weights", lambda path, float32: None)
    assert fused_process.main(["a.pth", "cpu"]) == code
    printed = capsys.readouterr()
    assert printed.out == (f"{PASSED}\n" if code == 0 else "") and printed.err.endswith(said)


def test_the_next_runtime_after_a_crash(machine, child, monkeypatch):
    """Nothing of it was opened in this process."""
    child("os.abort()")
    monkeypatch.setattr(fused, "check_device", lambda device: "3.8.0")
    monkeypatch.setattr(fused, "read_weights", lambda path, float32: None)
    monkeypatch.setattr(fused, "FusedGenerator", None)
    monkeypatch.setattr(fused_check, "whole_device_lock", threading.RLock())
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr("engine.runtime.onnxruntime.OnnxNetwork", lambda *_: SimpleNamespace())
    network = open_network(GENERATOR, "/no/generator.pth", device=CUDA)
    assert network.reason.startswith(
        "fused kernels do not run on cuda:0: a process that checks them was ended by SIGABRT; "
    )
    with pytest.raises(DeviceError, match="SIGABRT"):
        open_network(GENERATOR, "/no/generator.pth", device=CUDA, runtime="fused")


@pytest.mark.gpu
def test_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    restart(monkeypatch)
    check_in_process(network_files()["generator"], CUDA, float32=False)
    assert len(list(cache_folder().iterdir())) == 1


BAD_KERNEL = """
import torch, triton
import triton.language as tl
@triton.jit
def far_away(pointer):
    tl.store(pointer + tl.program_id(0).to(tl.int64) * (1 << 40), 1.0)
far_away[(9,)](torch.zeros(1, device="cuda"))
torch.cuda.synchronize()
"""


@pytest.mark.gpu
def test_a_bad_access_on_a_gpu_leaves_this_process_as_it_is(machine, child):
    child(BAD_KERNEL)
    with pytest.raises(DeviceError, match="checks them ended with 1"):
        check_in_process(Path("generator.pth"), CUDA, float32=False)
    assert float(torch.ones(4, device="cuda").sum()) == 4
