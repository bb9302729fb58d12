"""The runtimes: all kinds of ONNX files, checkpoints, and invalid files."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from engine.errors import DeviceError, InputError
from engine.runtime import open_network
from engine.runtime.exported import exported
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR
from engine.runtime.torch import Compiled
from models import checkpoint
from models.batch_norm import fold_batch_norms
from tests.conftest import ROOT
from tests.tolerances import TOLERANCES, assert_close

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(5, 6, 320, 320, generator=generator)
    return pictures, torch.randn(5, 32, 16, 16, generator=generator)


@pytest.fixture(scope="module")
def expected(checkpoints, inputs) -> torch.Tensor:
    with torch.inference_mode():
        return checkpoint.load(checkpoints["generator"])(*inputs).clone()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(network, inputs, dtype=torch.float32) -> torch.Tensor:
    out = torch.full((len(inputs[0]), 3, 320, 320), float("nan"), dtype=dtype)
    assert network(*inputs, out=out) is out
    return out


def test_free_batch(networks, inputs, expected):
    network = open_network(GENERATOR, networks["generator"], device=CPU)
    assert network.dtype == torch.float32 and "cpu" in network.description
    assert (run(network, inputs) - expected).abs().max() < 1e-4
    assert (run(network, [t[2:3] for t in inputs]) - expected[2:3]).abs().max() < 1e-4
    assert run(network, [t[:0] for t in inputs]).shape[0] == 0


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_batch(networks, inputs, expected, tmp_path, batch):
    model = onnx.load(networks["generator"])
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    onnx.save(model, tmp_path / "fixed.onnx")
    network = open_network(GENERATOR, tmp_path / "fixed.onnx", device=CPU)
    assert f"batch {batch}" in network.description
    assert (run(network, inputs) - expected).abs().max() < 1e-4  # 5 is no multiple of 3


def test_half_precision(fp16_safe_checkpoints, halves, inputs):
    with torch.inference_mode():
        expected = checkpoint.load(fp16_safe_checkpoints["generator"])(*inputs)
    network = open_network(GENERATOR, halves["generator"], device=CPU)
    assert network.dtype == torch.float16
    for dtype in (torch.float32, torch.float16):  # of inputs and output
        out = run(network, [t.to(dtype) for t in inputs], dtype)
        assert (out.float() - expected).abs().max() < 2e-3


def test_other_names(networks, inputs, expected, tmp_path):
    model = onnx.load(networks["generator"])
    names = {"input": "face", "audio": "sound", "output": "mouth"}
    for value in [*model.graph.input, *model.graph.output]:
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    swapped = list(model.graph.input)[::-1]  # and in another order
    del model.graph.input[:]
    model.graph.input.extend(swapped)
    onnx.save(model, tmp_path / "named.onnx")
    network = open_network(GENERATOR, tmp_path / "named.onnx", device=CPU)
    assert (run(network, inputs) - expected).abs().max() < 1e-4


def test_audio_encoder(networks, checkpoints):
    windows = torch.rand(11, 1, 80, 16) * 8 - 4
    with torch.inference_mode():
        expected = checkpoint.load(checkpoints["audio_encoder"])(windows)
    for path, runtime in [
        (networks["audio_encoder"], "onnxruntime"),
        (checkpoints["audio_encoder"], "torch"),
    ]:
        out = torch.empty(11, 512)
        open_network(AUDIO_ENCODER, path, device=CPU, runtime=runtime)(windows, out=out)
        assert (out - expected).abs().max() < 1e-4 * expected.abs().max()


def test_torch_runs_checkpoints(checkpoints, inputs, expected):
    network = open_network(GENERATOR, checkpoints["generator"], device=CPU, runtime="torch")
    assert "PyTorch" in network.description
    assert (run(network, inputs) - expected).abs().max() < 1e-4


def test_batch_norms_are_folded(checkpoints, inputs, expected):
    module = checkpoint.load(checkpoints["generator"])
    first = module.inc.inconv[0].conv[1]
    first.running_var[0] = 1e6  # beyond float16, as trained ones may be
    pair = [tensor[:2].double() for tensor in inputs]
    module.double()
    with torch.inference_mode():
        wanted = module(*pair)
    fold_batch_norms(module)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    with torch.inference_mode():
        assert (module(*pair) - wanted).abs().max() < 1e-12
    module.half()
    assert all(torch.isfinite(weight).all() for weight in module.parameters())


@pytest.fixture
def compiled(monkeypatch):
    """A module compiled as on a GPU, by a compiler that only traces, and the traced sizes."""
    sizes = []

    def backend(graph, examples, **_):
        sizes.append([len(t) for t in examples if t.ndim == 4][-1])
        return graph.forward

    compiler = partial(torch.compile, backend=backend)
    monkeypatch.setattr(torch, "compile", compiler)
    torch.manual_seed(0)
    return Compiled(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).requires_grad_(False)), sizes


def test_few_sizes_are_compiled(compiled):
    run, sizes = compiled
    for n in (0, 1, 2, 3, 4, 25, 26, 40, 41, 81, 30):
        x, out = torch.randn(n, 3, 2, 2), torch.full((n, 3), torch.nan)
        layer = TOLERANCES["linear layer", torch.float32, "itself, not compiled"]
        assert run(x, out=out) is out
        assert_close(out, run._module(x), layer)
    assert sorted(sizes) == [1, 4, 25, 40]


@pytest.mark.parametrize("reason", ["no compiler\nat all", ""])
def test_without_a_compiler(monkeypatch, recwarn, reason):
    def compile(*_, **__):
        def fail(*_, **__):
            raise RuntimeError(reason)

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    run = Compiled(nn.Flatten())
    x = torch.randn(5, 3, 2, 2)
    for _ in range(2):
        assert torch.equal(run(x, out=torch.empty(5, 12)), x.flatten(1))
    (warning,) = recwarn
    said = f"PyTorch runs without its compiler: {reason[:11] or 'RuntimeError'}"
    assert str(warning.message) == said


def test_out_of_memory_is_not_a_compiler_error(monkeypatch):
    def compile(*_, **__):
        def fail(*_, **__):
            raise torch.OutOfMemoryError("none left")

        return fail

    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(nn.Flatten())(torch.randn(5, 3, 2, 2), out=torch.empty(5, 12))


def test_a_checkpoint_is_exported_once(checkpoints, inputs, expected, tmp_path, capfd):
    for times in (1, 0):
        network = open_network(GENERATOR, checkpoints["generator"], device=CPU)
        assert (run(network, inputs) - expected).abs().max() < 1e-4
        assert capfd.readouterr().err.count("exporting") == times
    (kept,) = (tmp_path / "cache" / "viseme").rglob("*.onnx")
    assert kept.name.startswith("generator-") and "-fp32-" in kept.name


@pytest.mark.parametrize("search", [None, "", "."])
def test_the_export_runs_no_code_of_the_working_folder(tmp_path, monkeypatch, search):
    """The working folder may be where a server keeps uploads."""
    folder = tmp_path / "uploads"
    (folder / "models").mkdir(parents=True)
    for name in ("export.py", "onnx.py", "torch.py", "models/__init__.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'executed')!r}, 'w').write({name!r})")
    (folder / "a.pth").write_bytes(b"no checkpoint")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if search is not None:
        monkeypatch.setenv("PYTHONPATH", search)
    with pytest.raises(InputError, match=r"^a\.pth: not a checkpoint file: neither Py"):
        exported(GENERATOR, Path("a.pth"), "fp32")
    assert not (tmp_path / "executed").exists()
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_an_export_without_a_file(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(b"weights")
    done = SimpleNamespace(returncode=0, stderr="loading a.pth\nexporting to fp32\n")
    monkeypatch.setattr("engine.runtime.limited.run_module", lambda *_, **__: done)
    with pytest.raises(InputError, match="a.pth was not exported to ONNX: exporting"):
        exported(GENERATOR, tmp_path / "a.pth", "fp32")


@pytest.mark.parametrize("room", ["engine", "export"])
def test_onnx_runtime_sends_no_telemetry(tmp_path, room):
    """Telemetry would write a device ID into the cache folder, and send it."""
    code = (
        f"import {room}, onnxruntime, sys\n"
        "onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    model = ROOT / "tests" / "cases" / "identity.onnx"
    subprocess.run([sys.executable, "-c", code, str(model)], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []


# What PyTorch would find, and no more: loading it takes a second.
LIBRARIES = """
import os, sys

def hear(event, arguments):
    if event == "import" and arguments[0] == "torch":
        print(*(os.environ[name] for name in sys.argv[1:]), flush=True)
        os._exit(0)

sys.addaudithook(hear)
import engine
"""


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE", "MKL_DISABLE_FAST_MM": "0"}])
def test_what_libraries_are_told_before_they_are_loaded(own):
    """Unless the user has told them something else."""
    told = {"OMP_WAIT_POLICY": "PASSIVE", "MKL_DISABLE_FAST_MM": "1"}
    environment = {name: value for name, value in os.environ.items() if name not in told}
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES, *told], env=environment | {"PYTHONPATH": str(ROOT)} | own,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == list((told | own).values()), done.stderr


def test_networks_share_a_session(networks):
    one, two = (open_network(GENERATOR, networks["generator"], device=CPU) for _ in range(2))
    assert one._session is two._session


def test_networks_share_a_module(checkpoints, tmp_path):
    """They share it, also if a GPU compiled it for minutes, until the file changes."""
    path = tmp_path / "encoder.safetensors"
    shutil.copy(checkpoints["audio_encoder"], path)
    opened = partial(open_network, AUDIO_ENCODER, path, device=CPU, runtime="torch")
    one, two = opened(), opened()
    assert one._run is two._run
    module = checkpoint.load(path)
    module[0].conv_block[0].bias.data += 1
    checkpoint.save(module, path)
    windows = torch.rand(2, 1, 80, 16)
    with torch.inference_mode():
        wanted = module(windows)
    errors = [(n(windows, out=torch.empty(2, 512)) - wanted).abs().max() for n in (opened(), one)]
    assert errors[0] < 1e-4 * wanted.max() < 1e-2 * wanted.max() < errors[1]


def test_a_changed_file_is_opened_anew(networks, tmp_path):
    path = tmp_path / "network.onnx"
    shutil.copy(networks["generator"], path)
    first = open_network(GENERATOR, path, device=CPU)
    shutil.copy(networks["audio_encoder"], path)
    open_network(AUDIO_ENCODER, path, device=CPU)  # not the generator's session
    assert first._session.session.get_inputs()[0].name == "input"


def test_a_name_that_is_not_utf8(networks, checkpoints, inputs, expected, tmp_path):
    for source, suffix, runtime in [
        (networks["generator"], b".onnx", "onnxruntime"),
        (checkpoints["generator"], b".safetensors", "torch"),
    ]:
        path = tmp_path / os.fsdecode(b"\xff" + suffix)
        shutil.copy(source, path)
        network = open_network(GENERATOR, path, device=CPU, runtime=runtime)
        assert (run(network, [t[:1] for t in inputs]) - expected[:1]).abs().max() < 1e-4


def text_file(path):
    path.write_text("no network")


def double_generator(path):
    shape = ["n", 6, 320, 320]
    node = helper.make_node("Identity", ["input"], ["output"])
    value = helper.make_tensor_value_info
    double = onnx.TensorProto.DOUBLE
    inputs = [value("input", double, shape), value("audio", double, ["n", 32, 16, 16])]
    graph = helper.make_graph([node], "g", inputs, [value("output", double, shape)])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.onnx", text_file, "cannot be opened by ONNX Runtime"),
        ("a.onnx", double_generator, r"not the ONNX of a\(n\) generator; it has input .*double"),
        ("a.pth", text_file, "a.pth"),
        (
            "a.plan",
            text_file,
            "TensorRT plan, which needs a GPU, but the device is cpu; give an ONNX",
        ),
    ],
)
def test_unusable_files(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        open_network(GENERATOR, tmp_path / name, device=CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_a_checkpoint_of_another_network(checkpoints, runtime, tmp_path):
    with pytest.raises(InputError, match="audio encoder|audio_encoder") as caught:
        open_network(GENERATOR, checkpoints["audio_encoder"], device=CPU, runtime=runtime)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.onnx"))


def test_onnx_of_another_network(networks):
    with pytest.raises(InputError, match=r"generator; it has mel_spectrogram .*expected input"):
        open_network(GENERATOR, networks["audio_encoder"], device=CPU)


def test_runtime_choices(networks):
    with pytest.raises(InputError, match="cannot run in PyTorch; expected a checkpoint"):
        open_network(GENERATOR, networks["generator"], device=CPU, runtime="torch")
    with pytest.raises(
        InputError,
        match="runtime is 'mxnet'; expected one of: fused, tensorrt, onnxruntime, openvino, torch",
    ):
        open_network(GENERATOR, networks["generator"], device=CPU, runtime="mxnet")


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_on_a_gpu(fp16_safe_checkpoints, inputs, runtime):
    with torch.inference_mode():
        expected = checkpoint.load(fp16_safe_checkpoints["generator"])(*inputs)
    cuda = torch.device("cuda")
    try:
        network = open_network(
            GENERATOR, fp16_safe_checkpoints["generator"], device=cuda, runtime=runtime
        )
    except DeviceError as error:
        if runtime != "onnxruntime":
            raise
        pytest.skip(str(error))  # a GPU host may have a CPU build of ONNX Runtime
    out = torch.empty(5, 3, 320, 320, device=cuda)
    network(*(tensor.to(cuda) for tensor in inputs), out=out)
    assert (out.cpu() - expected).abs().max() < 2e-3


@pytest.mark.gpu
@torch.inference_mode()
def test_launches_of_the_generator(fp16_safe_checkpoints):
    """Bias, ReLU and residuals are no passes of their own, and so no kernels."""
    device = torch.device("cuda", torch.cuda.current_device())
    network = open_network(
        GENERATOR, fp16_safe_checkpoints["generator"], device=device, runtime="torch"
    )
    given = [torch.rand(4, 6, 320, 320), torch.randn(4, 32, 16, 16)]
    given = [tensor.to(device, torch.float16) for tensor in given]
    out = torch.empty(4, 3, 320, 320, dtype=torch.float16, device=device)
    for _ in range(2):
        network(*given, out=out)
    assert network._run._compiled is not None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        network(*given, out=out)
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if event.device_time > 0]
    print(len(kernels), *sorted(set(kernels)), sep="\n")
    assert 0 < len(kernels) < 160  # 114, and what split products add
    expected = network._run._eagerly(tuple(given), torch.empty_like(out))
    assert_close(out, expected, TOLERANCES["generator", torch.float16, "PyTorch"])
