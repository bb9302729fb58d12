"""The report on a machine is complete, also if something is broken."""

import importlib.util
import subprocess
import sys

import av
import onnxruntime
import pytest
import torch

from engine import doctor
from engine.cache import cache_folder
from tests.conftest import ROOT

SUBJECTS = [
    "viseme",
    "Python",
    "system",
    "CPU",
    "packages",
    "GPU",
    "driver",
    "Triton",
    "fused kernels",
    "PyTorch",
    "ONNX Runtime",
    "OpenVINO",
    "tensorrt",
    "tensorrt_rtx",
    "FFmpeg",
    "JPEG on the GPU",
    "cache",
    "temporary folder",
]


@pytest.fixture
def findings(tmp_path, monkeypatch, capsys):
    """Run the command, and return its findings by subject."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run() -> dict[str, str]:
        assert doctor.main([]) == 0
        lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
        return {subject: finding.strip() for subject, _, finding in lines}

    return run


def test_the_report(findings):
    (cache_folder() / "some.onnx").write_bytes(bytes(3 << 20))
    found = findings()
    assert list(found) == SUBJECTS
    assert f"torch {torch.__version__.partition('+')[0]}" in found["packages"]
    assert found["ONNX Runtime"].startswith("works on ")
    assert found["FFmpeg"].endswith(f"in PyAV {av.__version__}, writes mp4")
    assert found["cache"] == f"{cache_folder()}: 1 files, 3 MiB"
    assert torch.cuda.is_available() or found["GPU"].startswith("PyTorch finds none")
    openvino = pytest.importorskip("openvino", reason="an extra")
    known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert "BF16" in known or found["OpenVINO"].endswith("needs AVX512_BF16 or AMX")


def test_a_broken_library_is_a_finding(findings, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("libcudart.so.13:\n no such file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    monkeypatch.setattr(av.codec, "Codec", broken)
    found = findings()
    assert list(found) == SUBJECTS
    assert found["ONNX Runtime"] == "does not work: RuntimeError: libcudart.so.13: no such file"
    assert found["FFmpeg"].endswith("no libx264 and no aac: cannot write mp4")


def test_without_openvino(findings, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name)
    )
    assert findings()["OpenVINO"] == "not installed (pip install 'viseme[openvino]')"


def test_without_a_compiler(findings, monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = findings()
    assert "a C compiler (such as gcc)" in found["Triton"] and "missing" in found["Triton"]
    assert found["driver"] == "nvidia-smi is not installed"


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "engine.doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    done = subprocess.run([*command, "--fix"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
