"""Networks from people who are not trusted, and networks that fail while they run."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper

from engine import Avatar, InputError, Pipeline
from engine.runtime import open as module
from engine.runtime import open_network
from engine.runtime.reserve import RESERVED, reserved_bytes
from engine.runtime.signature import AUDIO_ENCODER, GENERATOR

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("suffix", [".onnx", ".ONNX", ".plan", ".engine", ""])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_programs_are_refused(networks, tmp_path, suffix, device):
    path = tmp_path / f"a{suffix}"
    shutil.copy(networks["audio_encoder"], path)
    with pytest.raises(InputError, match="is not trusted, .* expected a checkpoint") as caught:
        open_network(AUDIO_ENCODER, path, device=device, trusted=False)
    assert str(caught.value).startswith(f"{path} ")


def test_onnx_under_the_name_of_a_checkpoint(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "a.pth"
    shutil.copy(networks["audio_encoder"], path)
    for runtime in ("torch", "onnxruntime"):
        with pytest.raises(InputError, match=f"^{path}: not a checkpoint file"):
            open_network(AUDIO_ENCODER, path, device=CPU, trusted=False, runtime=runtime)


def test_checkpoints_are_opened(checkpoints):
    path = checkpoints["audio_encoder"]
    network = open_network(AUDIO_ENCODER, path, device=CPU, trusted=False, runtime="torch")
    assert network(torch.zeros(1, 1, 80, 16), out=torch.empty(1, 512)).isfinite().all()


def test_a_pickle_equals_the_same_weights_as_safetensors(checkpoints, tmp_path):
    """It is read in a process of its own."""
    weights = safetensors.torch.load_file(checkpoints["audio_encoder"])
    torch.save({"state_dict": weights}, tmp_path / "a.pth")
    mel = torch.rand(3, 1, 80, 16, generator=torch.Generator().manual_seed(0))
    features = []
    for path in (checkpoints["audio_encoder"], tmp_path / "a.pth"):
        network = open_network(AUDIO_ENCODER, path, device=CPU, trusted=False, runtime="torch")
        features.append(network(mel, out=torch.empty(3, 512)).clone())
    assert torch.equal(*features) and features[0].std() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def write_endless_pickle(path: Path) -> None:
    """Write a tuple that holds itself twice, 100 times over. It is short, but its hash takes 2^100
    steps."""
    key: tuple = ()
    for _ in range(100):
        key = (key, key)
    pickled = pickle.dumps([key], protocol=2)
    # {key: None}, which `pickle` cannot write, because it would hash the key
    assert pickled.startswith(b"\x80\2]") and pickled.endswith(b"a.")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\2}" + pickled[3:-2] + b"Ns.")
        archive.writestr("x/version", b"3\n")


def test_a_pickle_that_takes_years(tmp_path, monkeypatch):
    write_endless_pickle(tmp_path / "x.pth")
    monkeypatch.setattr("engine.runtime.torch.TIMEOUT", 3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^x\.pth was not read within 0\.05 minutes$"):
        open_network(AUDIO_ENCODER, Path("x.pth"), device=CPU, trusted=False, runtime="torch")


def test_a_pickle_with_code(tmp_path, monkeypatch):
    torch.save({"w": os.system}, tmp_path / "x.pth")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^x\.pth: refused, because it contains posix\.system"):
        open_network(AUDIO_ENCODER, Path("x.pth"), device=CPU, trusted=False, runtime="torch")


@pytest.mark.parametrize("trusted", [True, False])
def test_a_plan_beside_a_checkpoint(checkpoints, tmp_path, monkeypatch, trusted):
    path = tmp_path / "a.safetensors"
    shutil.copy(checkpoints["audio_encoder"], path)
    opened = []
    monkeypatch.setattr(module, "_plan_beside", lambda path: path.with_suffix(".plan"))
    monkeypatch.setattr(module, "_open", lambda runtime, *rest: opened.append((runtime, rest[-1])))
    open_network(AUDIO_ENCODER, path, device=CUDA, trusted=trusted)
    reason = "a.safetensors is not trusted, so that no plan beside it is used"
    assert opened == [("tensorrt", "a.plan fits this GPU") if trusted else ("onnxruntime", reason)]
    if not trusted:
        with pytest.raises(InputError, match="runtime is tensorrt, but .* is not trusted"):
            open_network(AUDIO_ENCODER, path, device=CUDA, trusted=False, runtime="tensorrt")


def test_the_memory_that_an_untrusted_plan_asks_for(monkeypatch):
    class Record:
        scratch_bytes = 1 << 40

    monkeypatch.setattr("engine.runtime.reserve.read_record", lambda plan: Record)
    assert reserved_bytes(Path("a.pth")) > 1 << 40
    assert reserved_bytes(Path("a.pth"), trusted=False) == RESERVED


def test_avatars(native, checkpoints):
    with pytest.raises(InputError, match=r"\.onnx is not trusted, .* expected a checkpoint"):
        Avatar.load(native, trusted=False)
    with pytest.raises(InputError, match=r"\.onnx is not trusted"):
        Avatar.load(native, trusted=False, generator=checkpoints["generator"])
    avatar = Avatar.load(native, trusted=False, **checkpoints)
    assert not avatar.trusted and Avatar.load(native).trusted
    assert not Avatar.load(native, trusted=False, networks=False).trusted
    assert len(Pipeline(avatar, runtime="torch").avatar) == 12
    avatar.generator = Avatar.load(native).generator
    with pytest.raises(InputError, match=r"\.onnx is not trusted"):
        Pipeline(avatar, runtime="torch")


# --- networks that fail while they run -----------------------------------------------------------


def failing(path: Path, *nodes: onnx.NodeProto, batch: str = "n", **weights: np.ndarray) -> Path:
    """Write a generator that computes "output" in this way."""
    value = helper.make_tensor_value_info
    inputs = [
        value("input", TensorProto.FLOAT, ["n", 6, 320, 320]),
        value("audio", TensorProto.FLOAT, ["n", 32, 16, 16]),
    ]
    outputs = [value("output", TensorProto.FLOAT, [batch, 3, 320, 320])]
    initial = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, initial)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def out_of_range(path: Path) -> Path:
    node = helper.make_node("Gather", ["input", "channels"], ["output"], axis=1)
    return failing(path, node, channels=np.array([0, 1, 100]))


def out_of_memory(path: Path) -> Path:
    """It wants 2^60 bytes."""
    return failing(
        path,
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("Mul", ["shape", "factors"], ["huge"]),
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Gather", ["input", "channels"], ["three"], axis=1),
        helper.make_node("Add", ["three", "sum"], ["output"]),
        factors=np.array([1 << 38, 1, 1, 1]),
        channels=np.array([0, 1, 2]),
    )


def of_another_size(path: Path) -> Path:
    return failing(
        path,
        helper.make_node("Gather", ["input", "channels"], ["three"], axis=1),
        helper.make_node("Concat", ["three", "three"], ["output"], axis=0),
        batch="twice",
        channels=np.array([0, 1, 2]),
    )


def inputs() -> list[torch.Tensor]:
    return [torch.zeros(1, 6, 320, 320), torch.zeros(1, 32, 16, 16)]


@pytest.mark.parametrize("make", [out_of_range, out_of_memory, of_another_size])
def test_faults_in_onnx_runtime(tmp_path, make):
    path = make(tmp_path / "a.onnx")
    network = open_network(GENERATOR, path, device=CPU)
    with pytest.raises(InputError, match=f"^{path} failed in ONNX Runtime: .") as caught:
        network(*inputs(), out=torch.empty(1, 3, 320, 320))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("make", [out_of_memory, of_another_size])
def test_faults_in_openvino(tmp_path, make):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    path = make(tmp_path / "a.onnx")
    with pytest.raises(InputError, match=f"^{path} .*OpenVINO") as caught:
        network = open_network(GENERATOR, path, device=CPU, runtime="openvino")
        network(*inputs(), out=torch.empty(1, 3, 320, 320))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_name_that_is_not_utf8_in_the_file(networks, tmp_path):
    content = networks["audio_encoder"].read_bytes()
    assert b"mel_spectrogram" in content
    path = tmp_path / "a.onnx"
    path.write_bytes(content.replace(b"mel_spectrogram", b"mel\xff\xfespectrogram"[:15]))
    with pytest.raises(InputError, match=f"^{path} "):
        open_network(AUDIO_ENCODER, path, device=CPU)


def test_a_size_whose_name_is_not_utf8(networks, tmp_path):
    """Found by `tests.fuzz`."""
    model = onnx.load(networks["audio_encoder"])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "sizename"
    path = tmp_path / "a.onnx"
    path.write_bytes(model.SerializeToString().replace(b"sizename", b"size\xff\xfeme"))
    with pytest.raises(InputError, match=f"^{path} has a size whose name is not UTF-8"):
        open_network(AUDIO_ENCODER, path, device=CPU)


def test_a_file_replaced_by_one_of_the_same_size_and_time(tmp_path):
    """As `rsync -t` does, and clocks that stand."""
    path, other = out_of_range(tmp_path / "a.onnx"), out_of_range(tmp_path / "b.onnx")
    other.write_bytes(other.read_bytes().replace(b"channels", b"CHANNELS"))
    network = open_network(GENERATOR, path, device=CPU)
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert open_network(GENERATOR, path, device=CPU)._session is not network._session
