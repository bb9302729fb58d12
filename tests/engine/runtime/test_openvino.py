"""OpenVINO against ONNX Runtime: results for any batch, and unsupported combinations."""

import json
import subprocess
import sys
import threading

import pytest
import torch

import kernels
from engine import Avatar, InputError, Pipeline
from engine.runtime import open_network
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from tests.conftest import DEMO
from tests.tolerances import TOLERANCES, assert_close

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
from engine.runtime import openvino as openvino_runtime  # noqa: E402

CPU = torch.device("cpu")
SIGNATURES = {"generator": GENERATOR, "audio_encoder": AUDIO_ENCODER}


@pytest.fixture(scope="module")
def faces(person) -> tuple[torch.Tensor, torch.Tensor]:
    """Five faces of the demo, and audio like the output of a ReLU."""
    boxes = torch.tensor(json.loads((DEMO / "boxes.json").read_text())[:50:10], dtype=torch.int32)
    pictures, _ = kernels.face_input(person[:5], boxes, torch.arange(5), dtype=torch.float32)
    audio = torch.randn(5, 32, 16, 16, generator=torch.Generator().manual_seed(0)).clamp_(min=0)
    return pictures, audio


def run(network, inputs, signature) -> torch.Tensor:
    (shape,) = signature.outputs.values()
    return network(*inputs, out=torch.empty(len(inputs[0]), *shape))


@pytest.mark.parametrize("kind", SIGNATURES)
def test_float32_is_what_onnx_runtime_computes(networks, faces, kind):
    signature = SIGNATURES[kind]
    inputs = faces
    if kind == "audio_encoder":
        inputs = (torch.rand(5, 1, 80, 16, generator=torch.Generator().manual_seed(1)) * 8 - 4,)
    path = networks[kind]
    expected = run(open_network(signature, path, device=CPU), inputs, signature)
    network = open_network(signature, path, device=CPU, runtime="openvino")
    assert network.description.startswith("OpenVINO ") and "float32" in network.description
    actual = run(network, inputs, signature)
    assert_close(actual, expected, TOLERANCES[kind, torch.float32, "ONNX Runtime"])


@pytest.fixture
def bf16():
    if not openvino_runtime.has_bf16():
        pytest.skip("this CPU does not multiply bfloat16")


def test_bf16_is_close_to_float32(faces, bf16, demo_cache, monkeypatch):
    """The demo's trained generator on faces."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(demo_cache))
    trained = DEMO / "generator.safetensors"
    expected = run(open_network(GENERATOR, trained, device=CPU), faces, GENERATOR)
    network = open_network(GENERATOR, trained, device=CPU, precision="bf16")
    assert "bfloat16" in network.description
    actual = run(network, faces, GENERATOR)
    assert_close(actual, expected, TOLERANCES["generator", torch.bfloat16, "ONNX Runtime"])
    assert not torch.equal(actual, expected)  # the precision differs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_does_not_depend_on_its_batch(networks, faces, precision, request):
    if precision == "bf16":
        request.getfixturevalue("bf16")
    options = {"runtime": "openvino", "precision": precision}
    network = open_network(GENERATOR, networks["generator"], device=CPU, **options)
    whole = run(network, faces, GENERATOR)
    for first, last in ((0, 1), (1, 3), (3, 5)):
        part = tuple(tensor[first:last] for tensor in faces)
        assert torch.equal(run(network, part, GENERATOR), whole[first:last])


def test_several_threads_at_once(networks, faces):
    network = open_network(GENERATOR, networks["generator"], device=CPU, runtime="openvino")
    expected, results = run(network, faces, GENERATOR), {}

    def work(number):
        results[number] = run(network, faces, GENERATOR)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results.values())


def test_pipelines_share_a_network(networks):
    one, two = (
        open_network(GENERATOR, networks["generator"], device=CPU, runtime="openvino")
        for _ in range(2)
    )
    assert one._compiled is two._compiled


@pytest.mark.parametrize(
    ("options", "device", "message"),
    [
        ({"precision": "int8"}, "cpu", "precision is 'int8'; expected one of: fp32, bf16"),
        ({"precision": "bf16"}, "cuda", "a GPU computes in the precision of the network's file"),
        (
            {"precision": "bf16", "runtime": "onnxruntime"},
            "cpu",
            "bf16, but the runtime is onnxruntime; expected openvino",
        ),
        (
            {"runtime": "openvino"},
            "cuda",
            "runtime is openvino, but the device is cuda; expected cpu",
        ),
    ],
)
def test_unsupported_combinations(networks, options, device, message):
    with pytest.raises(InputError, match=message):
        open_network(GENERATOR, networks["generator"], device=torch.device(device), **options)


def test_a_cpu_without_bf16(networks, monkeypatch):
    monkeypatch.setattr(openvino_runtime, "has_bf16", lambda: False)
    with pytest.raises(InputError, match="neither AVX512_BF16 nor AMX; expected fp32"):
        open_network(GENERATOR, networks["generator"], device=CPU, precision="bf16")


def test_unusable_files(networks, tmp_path):
    (tmp_path / "a.onnx").write_text("no network")
    with pytest.raises(InputError, match=r"a\.onnx cannot be read by OpenVINO"):
        open_network(GENERATOR, tmp_path / "a.onnx", device=CPU, runtime="openvino")
    with pytest.raises(InputError, match="is not the ONNX of a"):
        open_network(GENERATOR, networks["audio_encoder"], device=CPU, runtime="openvino")


def test_a_render(native, bf16, speech):
    """Only the generator is bfloat16; the audio encoder stays float32."""
    pipeline = Pipeline(Avatar.load(native), precision="bf16")
    assert "bfloat16" in pipeline.generator.description
    assert "ONNX Runtime" in pipeline.audio_encoder.description
    (frames,) = pipeline.render(speech[:3200])
    (expected,) = Pipeline(Avatar.load(native)).render(speech[:3200])
    difference = (frames.int() - expected.int()).abs().float()
    assert 0 < difference.mean() < 3  # random weights round more


@pytest.mark.parametrize("isa", ["AVX2", "avx512_core"])
def test_bf16_that_onednn_must_not_use(networks, monkeypatch, isa):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    openvino_runtime.has_bf16.cache_clear()
    try:
        with pytest.raises(InputError, match="expected fp32"):
            open_network(GENERATOR, networks["generator"], device=CPU, precision="bf16")
    finally:
        openvino_runtime.has_bf16.cache_clear()


SIGNAL_AFTER_A_NETWORK = """
import gc, os, signal, sys, threading
from pathlib import Path

import torch

from engine.runtime import open_network
from engine.runtime.signature import AUDIO_ENCODER

signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
cpu = torch.device("cpu")
networks = [open_network(AUDIO_ENCODER, Path(sys.argv[1]), device=cpu, runtime="openvino")]
thread = threading.Thread(target=networks.clear)
thread.start()
thread.join()
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
print("alive")
"""


def test_signals_after_another_thread_has_freed_a_network(networks):
    command = [sys.executable, "-c", SIGNAL_AFTER_A_NETWORK, str(networks["audio_encoder"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "handled\nalive\n"), done.stderr
