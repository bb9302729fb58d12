"""The generator in fused kernels: its weights, its checks, and when it is chosen.

Without a GPU the layers run in PyTorch instead of kernels.
"""

from pathlib import Path

import pytest
import torch

import kernels
from engine import Avatar, Pipeline
from engine.device.batch_sizes import BATCH_SIZES
from engine.errors import DeviceError, DeviceFull, InputError
from engine.runtime import fused, open_network
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from examples import network_files
from kernels.generator import network
from kernels.generator.tiles import usual
from models import checkpoint
from tests.engine import onnx_files

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


class Quick:
    """An audio encoder."""

    dtype, capturable, stream, graph_bytes = torch.float32, True, None, 0

    def __call__(self, windows, *, out):
        return out.copy_(windows.flatten(1)[:, :512])


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Take the CPU for a GPU that runs kernels."""
    monkeypatch.setattr(fused, "check_device", lambda device: "3.8.0")
    monkeypatch.setattr(fused, "CHECKED", (1,))
    monkeypatch.setattr(fused, "check_in_process", lambda *_, **__: None)
    monkeypatch.setattr(network, "kernels_of", network.reference_of)


def test_runs_checkpoints_and_onnx_files(on_the_cpu, fp16_safe_checkpoints, halves, monkeypatch):
    """Any batch, inputs and outputs of any dtype; both files give one result."""
    inputs = [torch.from_numpy(value) for value in fused.random_inputs("generator", 2)]
    with torch.inference_mode():
        expected = checkpoint.load(fp16_safe_checkpoints["generator"])(*inputs)
    for path in (fp16_safe_checkpoints["generator"], halves["generator"]):
        found = fused.FusedNetwork(GENERATOR, path, CPU)
        assert found.dtype == torch.float16 and found.capturable and found.stream is None
        assert found.assumes_mask
        assert (
            found.graph_bytes == 3 * 12_902_400
            and "fused kernels, Triton 3.8.0" in found.description
        )
        out = torch.full((2, 3, 320, 320), torch.nan)
        assert found(*inputs, out=out) is out
        assert (out - expected).abs().max() < 2e-3
        assert found(*(t[:0] for t in inputs), out=out[:0]).shape[0] == 0
    again = fused.FusedNetwork(GENERATOR, path, CPU)
    assert again._generator is found._generator  # packed and checked once
    monkeypatch.setattr(fused, "check", lambda *_: None)
    path = fp16_safe_checkpoints["generator"]
    asked = [fused.FusedNetwork(GENERATOR, path, CPU, requested=r) for r in (True, False)]
    assert asked[0]._generator is asked[1]._generator


def test_no_copies_at_the_edges(on_the_cpu, fp16_safe_checkpoints, native, speech, monkeypatch):
    """`face_input` writes what the first block reads, and `composite` reads what the last one
    writes."""
    monkeypatch.setattr(fused, "check", lambda *_: None)
    path = fp16_safe_checkpoints["generator"]
    generator = fused.FusedNetwork(GENERATOR, path, CPU)
    monkeypatch.setattr(
        "engine.pipeline.open_network",
        lambda signature, path, **_: generator if signature is GENERATOR else Quick(),
    )
    pipeline = Pipeline(Avatar.load(native, **fp16_safe_checkpoints), batch_size=3)
    seen: dict[str, set] = {"face_input": set(), "read": set(), "written": set(), "pasted": set()}

    def fake(pictures, audio, out):
        assert pictures.dtype == audio.dtype == out.dtype == torch.float16
        seen["read"].add((pictures.data_ptr(), audio.data_ptr(), len(pictures)))
        seen["written"].add((out.data_ptr(), len(out)))
        out.fill_(0.5)[..., 0] = 0.25
        return out

    face_input, composite = kernels.face_input, kernels.composite
    features: set = set()

    def noted_windows(*args, **options):
        out = kernels_windows(*args, **options)
        features.add(out.data_ptr())
        return out

    def noted_input(*args, **options):
        inputs, crops = face_input(*args, **options)
        seen["face_input"].add((inputs.data_ptr(), len(inputs)))
        return inputs, crops

    def noted_composite(*args, **options):
        seen["pasted"].add((args[4].data_ptr(), len(args[4])))
        return composite(*args, **options)

    kernels_windows = kernels.ring_feature_windows
    monkeypatch.setattr(generator, "_generator", fake)
    monkeypatch.setattr(kernels, "face_input", noted_input)
    monkeypatch.setattr(kernels, "composite", noted_composite)
    monkeypatch.setattr(kernels, "ring_feature_windows", noted_windows)
    assert sum(map(len, pipeline.render(speech[:4800]))) > 3
    assert seen["face_input"] and {(one, n) for one, _, n in seen["read"]} == seen["face_input"]
    assert seen["written"] == seen["pasted"]
    assert {audio for _, audio, _ in seen["read"]} == features


def test_all_kernels_are_checked():
    """Kernels differ by batch size; one of each kind is compared."""
    sizes = range(1, BATCH_SIZES[-1] + 1)
    assert [usual(n) for n in fused.CHECKED] == sorted({usual(n) for n in sizes})


def test_large_batches_are_checked_too(on_the_cpu, monkeypatch):
    def wrong_of(layer, device):
        right = network.reference_of(layer, device)

        def run(x, out, **others):
            right(x, out, **others)
            if len(out) > 2 and layer.name == "up5.0":
                out[2] = out[1]

        return run

    monkeypatch.setattr(fused, "CHECKED", (1, 3))
    monkeypatch.setattr(network, "kernels_of", wrong_of)
    with pytest.raises(DeviceError, match="compared with PyTorch in a batch of 3"):
        fused.FusedNetwork(GENERATOR, network_files()["generator"], CPU)


@pytest.mark.parametrize("fault", ["a wrong layer", "NaN", "an error of the compiler", "memory"])
def test_wrong_results_are_refused(on_the_cpu, monkeypatch, fault):
    """At the opening, in one line, before any frame is made."""

    def wrong_of(layer, device):
        right = network.reference_of(layer, device)
        if layer.name != "up4.0":
            return right

        def run(x, out, **others):
            if fault == "an error of the compiler":
                raise RuntimeError("ptxas fatal:\nno such register")
            if fault == "memory":
                raise torch.OutOfMemoryError("no memory")
            right(x, out, **others)
            out[:, 7] = torch.nan if fault == "NaN" else out[:, 8] * 3 + 1

        return run

    monkeypatch.setattr(network, "kernels_of", wrong_of)
    message = {"an error of the compiler": "ptxas fatal: no such", "memory": "does not fit"}.get(
        fault, "compared with PyTorch in a batch of 1, differs by"
    )
    with pytest.raises(DeviceFull if fault == "memory" else DeviceError, match=message) as caught:
        fused.FusedNetwork(GENERATOR, network_files()["generator"], CPU)
    assert "\n" not in str(caught.value)


def test_float32_files_only_if_requested(on_the_cpu, networks, halves, tmp_path, monkeypatch):
    """ONNX files compute in the precision they were exported in, wherever they have their
    weights."""
    monkeypatch.setattr(fused, "check", lambda *_: None)
    nodes = onnx_files.weights_as_nodes(networks["generator"], tmp_path / "nodes.onnx")
    for path in (networks["generator"], nodes):
        with pytest.raises(InputError, match="is float32, but fused kernels compute in float16"):
            fused.FusedNetwork(GENERATOR, path, CPU, requested=False)
    fused.FusedNetwork(GENERATOR, networks["generator"], CPU)
    fused.FusedNetwork(GENERATOR, halves["generator"], CPU, requested=False)


def test_weights_that_cannot_be_used(on_the_cpu, checkpoints, fp16_safe_checkpoints, tmp_path):
    module = checkpoint.load(fp16_safe_checkpoints["generator"])
    module.up2.conv.double_conv[0].conv[1].running_var[3] = -1
    checkpoint.save(module, tmp_path / "negative.safetensors")
    with pytest.raises(InputError, match=r"negative.safetensors.*not finite"):
        fused.FusedNetwork(GENERATOR, tmp_path / "negative.safetensors", CPU)
    with pytest.raises(InputError, match="audio encoder"):
        fused.FusedNetwork(AUDIO_ENCODER, checkpoints["audio_encoder"], CPU)


def test_which_devices(monkeypatch):
    with pytest.raises(DeviceError, match="need a GPU, but the device is cpu"):
        fused.check_device(CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(DeviceError, match="SM80 or newer; cuda:0 is SM75"):
        fused.check_device(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert fused.check_device(CUDA)[0].isdigit()
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="Triton, which is not installed"):
        fused.check_device(CUDA)


@pytest.fixture
def refused(monkeypatch) -> set[str]:
    """Open no network: return its runtime, kind and reason, or fail if the runtime is in this
    set."""
    names: set[str] = set()

    def fake(runtime, signature, path, device, reason, precision="fp32", *, requested=False):
        assert requested == reason.startswith("as requested")
        if runtime in names:
            raise DeviceError(f"no {runtime} here")
        return runtime, signature.kind, reason

    monkeypatch.setattr("engine.runtime.open._open", fake)
    return names


def test_the_first_choice_on_a_gpu(refused, tmp_path):
    for name in ("g.pth", "g.onnx"):
        network = open_network(GENERATOR, tmp_path / name, device=CUDA)
        assert network == ("fused", "generator", "the default on a GPU")
        assert open_network(AUDIO_ENCODER, tmp_path / name, device=CUDA)[0] == "onnxruntime"
    assert open_network(GENERATOR, tmp_path / "g.pth", device=CUDA, trusted=False)[0] == "fused"
    assert open_network(GENERATOR, tmp_path / "g.plan", device=CUDA)[0] == "tensorrt"
    assert open_network(GENERATOR, tmp_path / "g.onnx", device=CPU)[0] == "onnxruntime"


def test_the_next_one_says_why(refused, tmp_path):
    refused.add("fused")
    runtime, _, reason = open_network(GENERATOR, tmp_path / "g.pth", device=CUDA)
    assert runtime == "onnxruntime"
    assert reason.startswith("no fused here; there is no g.plan beside")
    refused.add("onnxruntime")
    runtime, _, reason = open_network(GENERATOR, tmp_path / "g.pth", device=CUDA)
    assert runtime == "torch" and reason.endswith("; no onnxruntime here")
    with pytest.raises(DeviceError, match="no fused here"):
        open_network(GENERATOR, tmp_path / "g.pth", device=CUDA, runtime="fused")


def test_as_requested(refused, tmp_path):
    """The audio encoder runs as by default."""
    ask = {"device": CUDA, "runtime": "fused"}
    assert open_network(GENERATOR, tmp_path / "g.onnx", **ask)[2] == "as requested"
    assert open_network(AUDIO_ENCODER, tmp_path / "e.onnx", **ask)[0] == "onnxruntime"
    assert open_network(AUDIO_ENCODER, tmp_path / "e.plan", **ask)[0] == "tensorrt"
    with pytest.raises(InputError, match="runtime is fused; expected tensorrt"):
        open_network(GENERATOR, tmp_path / "g.plan", **ask)
    for signature in (GENERATOR, AUDIO_ENCODER):
        with pytest.raises(InputError, match="fused, which needs a GPU, but the device is cpu"):
            open_network(signature, Path("x.pth"), device=CPU, runtime="fused")
