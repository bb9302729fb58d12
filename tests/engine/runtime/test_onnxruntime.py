"""ONNX Runtime on a GPU: its stream, its waits and its settings, with fakes instead of CUDA."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from engine.errors import DeviceError, InputError
from engine.runtime import onnxruntime as onnxruntime_module
from engine.runtime import open_network
from engine.runtime.onnxruntime import OnnxNetwork
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR

CUDA = torch.device("cuda", 0)


class Session:
    """A fake session with the CUDA provider, which records its runs."""

    def __init__(self, source, options, providers):
        self.log, self.settings = log, dict(providers[0][1])
        self.work = lambda: None

    def get_providers(self):
        return ["CUDAExecutionProvider"]

    def get_inputs(self):
        return [SimpleNamespace(name="mel", shape=["n", 1, 80, 16], type="tensor(float16)")]

    def get_outputs(self):
        return [SimpleNamespace(name="features", shape=["n", 512], type="tensor(float16)")]

    def io_binding(self):
        return SimpleNamespace(bind_input=lambda *_: None, bind_output=lambda *_: None)

    def run_with_iobinding(self, binding, options=None):
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        log.append("run")
        self.work()


log: list[str] = []


def stream(name: str) -> SimpleNamespace:
    return SimpleNamespace(
        cuda_stream=1234, wait_stream=lambda other: log.append(f"{name} waits"), synchronize=None
    )


@pytest.fixture
def network(monkeypatch, tmp_path) -> OnnxNetwork:
    log.clear()
    monkeypatch.setattr(onnxruntime_module.onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime_module.onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream("ONNX Runtime"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream("caller"))
    monkeypatch.setattr(onnxruntime_module, "whole_device_lock", contextlib.nullcontext())
    monkeypatch.setattr(onnxruntime_module, "keep_in_children", lambda session: None)
    path = tmp_path / "encoder.onnx"
    path.touch()
    return OnnxNetwork(AUDIO_ENCODER, path, CUDA)


def call(network) -> None:
    network(torch.zeros(4, 1, 80, 16).half(), out=torch.zeros(4, 512).half())


def test_calls_run_on_a_stream_of_their_own_and_nobody_waits(network):
    """In order with the caller's stream, also after a call that fails."""
    session = network._session.session
    assert session.settings["user_compute_stream"] == "1234"
    in_order = ["ONNX Runtime waits", "run", "caller waits"]
    call(network)
    assert log == in_order

    def fail():
        raise RuntimeError("out of memory")

    session.work = fail
    with pytest.raises(InputError, match="failed in ONNX Runtime: out of memory"):
        call(network)
    assert log == 2 * in_order


def test_calls_of_two_threads_are_enqueued_one_after_another(network):
    """Library handles belong to the stream."""
    entered, leave = Event(), Event()

    def work():
        entered.set()
        assert leave.wait(30)

    network._session.session.work = work
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(call, network)
        assert entered.wait(30)
        second = threads.submit(call, network)
        held = network._session._lock.acquire(blocking=False)
        leave.set()
        first.result(30), second.result(30)
    assert not held and log == 2 * ["ONNX Runtime waits", "run", "caller waits"]


@pytest.mark.gpu
def test_the_host_does_not_wait_for_a_call(fp16_safe_checkpoints):
    """A call returns while what the caller's stream did before it is not done; and its output is
    that of a call that was waited for."""
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        network = open_network(
            GENERATOR, fp16_safe_checkpoints["generator"], device=device, runtime="onnxruntime"
        )
    except DeviceError as error:
        pytest.skip(str(error))  # a CPU build
    pictures, audio = torch.rand(4, 6, 320, 320), torch.randn(4, 32, 16, 16)
    given = [tensor.to(device, torch.float16) for tensor in (pictures, audio)]
    expected = torch.empty(4, 3, 320, 320, dtype=torch.float16, device=device)
    for _ in range(2):  # with what is loaded and tuned in the first calls
        network(*given, out=expected)
    torch.cuda.synchronize()
    late, out = torch.zeros_like(given[0]), torch.empty_like(expected)
    torch.cuda._sleep(2_000_000_000)  # about a second
    late.copy_(given[0])
    before = torch.cuda.current_stream().record_event()
    network(late, given[1], out=out)
    assert not before.query()
    assert torch.equal(out.cpu(), expected.cpu())
