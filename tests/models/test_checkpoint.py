"""Checkpoints in every form, and files that are not checkpoints."""

import argparse
import datetime
import fractions
import pickle
import uuid
import warnings
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from models import AudioEncoder, Generator
from models.checkpoint import CheckpointError, load, save
from models.safe_pickle import read_pickle


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


FORMS = {
    "raw": lambda w: w,
    "state_dict": lambda w: {"epoch": 3, "state_dict": w},
    "model beside an optimizer": lambda w: {
        "optimizer": {
            "state": {0: {"exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "model": w,
        "best": 0.5,
    },
    "model_state_dict": lambda w: {"model_state_dict": w},
    "net": lambda w: {"net": w},
    "nested twice": lambda w: {"checkpoint": {"network": w}},
    "model before ema": lambda w: {"model": w, "ema": {n: t + 1 for n, t in w.items()}},
    "DataParallel": lambda w: prefixed("module.", w),
    "compiled DataParallel": lambda w: {"net": prefixed("_orig_mod.module.", w)},
    "audio_encoder.": lambda w: prefixed("audio_encoder.", w),
    "module.audio_encoder.": lambda w: prefixed("module.audio_encoder.", w),
    "without counters": lambda w: {n: t for n, t in w.items() if "num_batches" not in n},
}


def assert_same(network, expected, kind):
    assert type(network) is kind
    assert not network.training
    for name, tensor in network.state_dict().items():
        if "num_batches_tracked" in name:
            continue
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        assert torch.equal(tensor, expected[name].float()), name


@pytest.mark.parametrize("kind", ["audio_encoder", None])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(tmp_path, audio_encoder, form, kind):
    weights = audio_encoder.state_dict()
    torch.save(FORMS[form](weights), tmp_path / "a.pth")
    assert_same(load(tmp_path / "a.pth", kind), weights, AudioEncoder)


@pytest.mark.parametrize("kind", ["generator", None])
@pytest.mark.parametrize("form", ["raw", "DataParallel", "model beside an optimizer"])
def test_generator_forms(tmp_path, generator, form, kind):
    weights = generator.state_dict()
    torch.save(FORMS[form](weights), tmp_path / "g.pth")
    assert_same(load(tmp_path / "g.pth", kind), weights, Generator)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_become_float32(tmp_path, audio_encoder, dtype):
    weights = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in audio_encoder.state_dict().items()
    }
    torch.save(weights, tmp_path / "a.pth")
    assert_same(load(tmp_path / "a.pth"), weights, AudioEncoder)


def test_the_file_format_before_zip(tmp_path, audio_encoder):
    weights = audio_encoder.state_dict()
    torch.save(weights, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path / "a.pt"), weights, AudioEncoder)


def test_safetensors_under_any_name(tmp_path, audio_encoder):
    weights = audio_encoder.state_dict()
    safetensors.torch.save_file(prefixed("audio_encoder.", weights), tmp_path / "a.pth")
    assert_same(load(tmp_path / "a.pth"), weights, AudioEncoder)


def test_loading_leaves_random_numbers_alone(tmp_path, audio_encoder):
    save(audio_encoder, tmp_path / "a.safetensors")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load(tmp_path / "a.safetensors")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.half)])
def test_save_then_load(tmp_path, generator, precision, dtype):
    path = tmp_path / "g.safetensors"
    path.write_bytes(b"the one before")
    save(generator, path, precision=precision)
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]
    stored = safetensors.torch.load_file(path)
    assert {t.dtype for n, t in stored.items() if "num_batches" not in n} == {dtype}
    rounded = {name: t.to(dtype) for name, t in generator.state_dict().items()}
    assert_same(load(path), rounded, Generator)


def test_save_refuses_what_float16_cannot_hold(tmp_path):
    network = AudioEncoder()
    network[4].conv_block[0].weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(ValueError, match=r"4\.conv_block\.0\.weight is not finite in fp16"):
        save(network, tmp_path / "a.safetensors", precision="fp16")
    assert not list(tmp_path.iterdir())


# What is wrong with a file: how to make it from the two networks' weights, which kind is asked
# for, and what the message must say.


def without(weights, part):
    return {name: tensor for name, tensor in weights.items() if part not in name}


def wider(weights, part):
    return {n: torch.cat((t, t)) if part in n and t.ndim else t for n, t in weights.items()}


def stepped_adam():
    weight = torch.zeros(3, requires_grad=True)
    weight.sum().backward()
    adam = torch.optim.Adam([weight])
    adam.step()
    return adam


WRONG = {
    "generator for encoder": (
        lambda g, a: g,
        "audio_encoder",
        [
            "not an audio encoder",
            "it is a generator",
            "78 missing: 0.conv_block.0.weight",
            "556 un",
        ],
    ),
    "encoder for generator": (
        lambda g, a: a,
        "generator",
        ["not a generator", "it is an audio encoder", "91 unexpected: 0.conv_block.0.weight"],
    ),
    "both networks": (
        lambda g, a: {"generator": g, "audio_encoder": a},
        None,
        ["has both networks"],
    ),
    "mis-shaped": (
        lambda g, a: wider(a, "12.conv_block.0.bias"),
        "audio_encoder",
        [
            "an audio encoder of another",
            "1 mis-shaped: 12.conv_block.0.bias [1024] instead of [512]",
        ],
    ),
    "other audio features": (
        lambda g, a: wider(g, "audio_model.conv1"),
        "generator",
        ["a generator for other audio features", "mis-shaped: audio_model.conv1"],
    ),
    "parts missing": (
        lambda g, a: without(g, "outc."),
        None,
        ["a generator with parts missing", "2 missing: outc.conv.weight, outc.conv.bias)"],
    ),
    "Wav2Lip": (
        lambda g, a: {
            "state_dict": prefixed("module.audio_encoder.", a)
            | {
                "module.face_encoder_blocks.0.0.conv_block.0.weight": torch.zeros(16, 6, 7, 7),
                "module.face_decoder_blocks.0.0.conv_block.0.weight": torch.zeros(512, 512, 1, 1),
            }
        },
        "audio_encoder",
        ["looks like a Wav2Lip network"],
    ),
    "SyncNet": (
        lambda g, a: prefixed("audio_encoder.", a) | prefixed("face_encoder.", a),
        "audio_encoder",
        ["looks like a SyncNet"],
    ),
    "unknown": (
        lambda g, a: {"layer1.weight": torch.zeros(3), "fc.weight": torch.zeros(2)},
        None,
        ["not a network of Viseme", "an unknown network", "unexpected: layer1.weight"],
    ),
    "optimizer only": (
        lambda g, a: {"epoch": 3, "optimizer": stepped_adam().state_dict()},
        None,
        ["has no weights", "the state of an optimizer"],
    ),
    "no tensors": (lambda g, a: {"epoch": 3, "loss": 0.1}, None, ["no weights", "epoch, loss"]),
    "not a number": (
        lambda g, a: a | {"7.conv_block.1.running_var": torch.full((128,), float("nan"))},
        None,
        ["7.conv_block.1.running_var has 128 values that are not finite"],
    ),
}


def refusal(path, kind=None):
    """Return the message, which must be one line with the file's name."""
    with pytest.raises(CheckpointError) as error:
        load(path, kind)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content(tmp_path, generator, audio_encoder, case):
    make, kind, phrases = WRONG[case]
    torch.save(make(generator.state_dict(), audio_encoder.state_dict()), tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth", kind)
    for phrase in phrases:
        assert phrase in message


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("empty.pth", b"", "is empty"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("page.pth", b"\n<!DOCTYPE html><html>Sign in", "is a web page"),
        ("text.pth", b"not a checkpoint", "not a checkpoint file"),
        ("x.onnx", b"\x08\x0a\x12\x07pytorch", "an ONNX file needs no export"),
        ("x.plan", b"ftrt\x00\x00", "it is a TensorRT plan"),
        ("x.pth", b"\x80\x02}", "broken or truncated"),
        ("x.safetensors", b'\x09\0\0\0\0\0\0\0{"a":1}!!', "broken safetensors"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, name, content, phrase):
    (tmp_path / name).write_bytes(content)
    assert phrase in refusal(tmp_path / name)


def test_saving_follows_no_link(tmp_path, audio_encoder, monkeypatch):
    """Someone has guessed the temporary name."""
    monkeypatch.setattr("models.checkpoint.secrets.token_hex", lambda _: "00000000")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.safetensors.00000000.partial").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError):
        save(audio_encoder, tmp_path / "a.safetensors")
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a.safetensors").exists()


def test_saved_by_two_at_once(tmp_path, audio_encoder):
    """One name for both would be renamed by the one and missed by the other."""
    path = tmp_path / "a.safetensors"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: save(audio_encoder, path), range(30)))
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(load(path)[0].conv_block[0].weight, audio_encoder[0].conv_block[0].weight)


@pytest.mark.parametrize("name", ["a.pth", "old.pth", "a.safetensors"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_truncated_files(tmp_path, audio_encoder, name, kept):
    path = tmp_path / name
    if name == "a.safetensors":
        save(audio_encoder, path)
    else:
        zipped = name == "a.pth"
        torch.save(audio_encoder.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "broken" in refusal(path)


def test_missing_file_and_folder(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing.pth")
    assert "is a folder" in refusal(tmp_path)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a.txt", "a")
    assert "broken or truncated" in refusal(tmp_path / "x.pth")


def test_torchscript_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(torch.nn.ReLU()).save(tmp_path / "x.pt")
    assert "TorchScript" in refusal(tmp_path / "x.pt")


def test_unknown_kind(tmp_path):
    with pytest.raises(
        ValueError, match="kind is 'decoder'; expected one of: generator, audio_enc"
    ):
        load(tmp_path / "x.pth", "decoder")


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("how", ["torch", "pickle", "beside NumPy scalars"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, audio_encoder, how):
    proof = tmp_path / "executed"
    content = {"state_dict": audio_encoder.state_dict(), "extra": Code(str(proof))}
    if how == "pickle":
        (tmp_path / "x.pth").write_bytes(pickle.dumps(Code(str(proof)), protocol=2))
    else:
        before = {} if how == "torch" else {"loss": np.float64(1), "log": defaultdict(list)}
        torch.save(before | content, tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth")
    assert "can run code" in message and "io.open" in message
    assert not proof.exists()


class Config:
    """A class of the trainer's own."""


def test_other_python_objects_are_named(tmp_path, audio_encoder):
    content = {"loss": np.float64(1), "config": Config(), "state_dict": audio_encoder.state_dict()}
    torch.save(content, tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth")
    assert f"refused, because it contains {__name__}.Config, " in message
    torch.save(AudioEncoder(), tmp_path / "x.pth")
    assert "refused, because it contains models.audio_encoder.AudioEncoder" in refusal(
        tmp_path / "x.pth"
    )


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_names_that_cannot_be_printed(tmp_path, name):
    """A weight's name is the file's, and may be terminal commands."""
    weights = {"line\nof \x1b[31m.weight": torch.zeros(2), "bias": torch.zeros(2)}
    if name == "a.pth":
        torch.save(weights, tmp_path / name)
    else:
        safetensors.torch.save_file(weights, tmp_path / name)
    message = refusal(tmp_path / name)
    assert message.isprintable() and r"line\nof \x1b[31m.weight" in message


def test_other_pickle_protocols_are_named(tmp_path, audio_encoder):
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"epoch": 3}, protocol=4))
    assert "a pickle of another protocol" in refusal(tmp_path / "x.pth")


# --- other objects beside the weights ------------------------------------------------------------

BESIDE_WEIGHTS = {
    "epoch": np.int64(3),
    "loss": np.float64(0.1),
    "best": np.bool_(True),
    "name": np.str_("run"),
    "started": np.datetime64("2024-02-29"),
    "history": np.array([[0.3, 0.2], [0.1, 0.05]], np.float32),
    "rng": np.random.get_state(),
    "config": defaultdict(list, mean=[0.5], std=[0.5]),
    "counts": defaultdict(int, {"steps": 7}),
    "order": OrderedDict(a=1),
    "seen": Counter("aab"),
    "last": deque([0.3, np.float32(0.2)], maxlen=100),
    "path": Path("checkpoints/run"),
    "windows": PureWindowsPath("c:/checkpoints"),
    "args": argparse.Namespace(lr=1e-4, out=Path("out"), layers=[1, 2], seed=None),
    "simple": SimpleNamespace(a=np.int8(1)),
    "time": datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC),
    "took": datetime.timedelta(hours=3),
    "id": uuid.UUID(int=7),
    "rate": fractions.Fraction(30000, 1001),
    "frozen": frozenset(["conv"]),
    "slice": slice(1, 5),
    "large": 10**40,
    np.int64(4): "a key",
}


def optimizer_state():
    return {"state": {0: {"step": np.int64(3)}}, "param_groups": [{"lr": np.float64(0.1)}]}


def with_globals(path, replace):
    """Rename classes in a file of torch.save; `replace` maps lines of its pickle."""
    parts = {}
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for name in parts:
        if name.endswith("data.pkl"):
            for old, new in replace.items():
                assert old in parts[name]
                parts[name] = parts[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("key", BESIDE_WEIGHTS, ids=str)
def test_each_thing_beside_weights(tmp_path, audio_encoder, key):
    weights = audio_encoder.state_dict()
    torch.save({key: BESIDE_WEIGHTS[key], "state_dict": weights}, tmp_path / "a.pth")
    assert_same(load(tmp_path / "a.pth"), weights, AudioEncoder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint(tmp_path, audio_encoder, zipped):
    weights = audio_encoder.state_dict()
    nested = defaultdict(dict, model=prefixed("module.", weights), optimizer=optimizer_state())
    content = {**BESIDE_WEIGHTS, "best_model": nested, "after": Path("/last")}
    before = set(torch.serialization.get_safe_globals())
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert_same(load(tmp_path / "a.pth", "audio_encoder"), weights, AudioEncoder)
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_checkpoint_of_another_python_and_numpy(tmp_path, audio_encoder):
    """NumPy 1 has another module name, Windows paths cannot be created here, and Python 3.13 moved
    paths."""
    weights = audio_encoder.state_dict()
    content = {
        "epoch": np.int64(3),
        "rng": np.random.get_state(),
        "out": Path("a"),
        "pure": PureWindowsPath("b"),
    }
    torch.save(content | {"state_dict": weights}, tmp_path / "a.pth")
    numpy_1 = {b"cnumpy._core.multiarray\n": b"cnumpy.core.multiarray\n"}
    windows = {b"cpathlib\nPosixPath\n": b"cpathlib\nWindowsPath\n"}
    python_3_13 = {b"cpathlib\nPureWindowsPath\n": b"cpathlib._local\nPureWindowsPath\n"}
    with_globals(tmp_path / "a.pth", numpy_1 | windows | python_3_13)
    assert_same(load(tmp_path / "a.pth"), weights, AudioEncoder)


def test_threads_read_training_checkpoints(tmp_path):
    """PyTorch's list of safe classes is shared by all threads of the process."""
    torch.save({**BESIDE_WEIGHTS, "log": [np.float64(x) for x in range(2000)]}, tmp_path / "a.pth")
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(read_pickle, [tmp_path / "a.pth"] * 8))
    assert all(len(content["log"]) == 2000 for content in read)


# --- weights that are not floating point ---------------------------------------------------------


def converted(weights, convert):
    return {n: convert(t) if t.is_floating_point() else t for n, t in weights.items()}


def per_channel(tensor):
    rows = max(len(tensor), 1)
    scales, zeros = torch.full((rows,), 0.1), torch.zeros(rows)
    return torch.quantize_per_channel(tensor, scales, zeros, 0, torch.qint8)


def int8_and_scales(weights):
    scaled = converted(weights, lambda t: (t * 20).round().clamp(-128, 127).to(torch.int8))
    return scaled | {f"{name}_scale": torch.tensor(0.05) for name in scaled}


NO_WEIGHTS = {
    "qint8": lambda w: converted(w, lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "quint8": lambda w: converted(w, lambda t: torch.quantize_per_tensor(t, 0.1, 9, torch.quint8)),
    "qint8 ": lambda w: converted(w, per_channel),
    "int8": lambda w: converted(w, lambda t: (t * 20).to(torch.int8)),
    "int8 ": int8_and_scales,
    "uint8": lambda w: converted(w, lambda t: (t * 20).to(torch.uint8)),
    "complex64": lambda w: converted(w, lambda t: t.to(torch.complex64)),
    "bool": lambda w: converted(w, lambda t: t > 0),
    "sparse_coo": lambda w: converted(w, lambda t: t.to_sparse()),
    "meta": lambda w: converted(w, lambda t: t.to("meta")),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("case", NO_WEIGHTS)
def test_quantized_weights_are_refused(tmp_path, audio_encoder, case):
    if case.startswith("q") and not hasattr(torch, "quantize_per_tensor"):
        pytest.skip("this PyTorch has no quantized tensors")
    torch.save({"model": NO_WEIGHTS[case](audio_encoder.state_dict())}, tmp_path / "x.pth")
    message = refusal(tmp_path / "x.pth", "audio_encoder")
    assert "0.conv_block.0.weight is " in message and case.strip() in message
    if case.strip() not in ("sparse_coo", "meta"):
        assert f"is torch.{case.strip()}; expected floating point; save" in message


def test_quantized_safetensors_are_refused(tmp_path, audio_encoder):
    safetensors.torch.save_file(int8_and_scales(audio_encoder.state_dict()), tmp_path / "x.pth")
    assert "0.conv_block.0.weight is torch.int8; expected floating point" in refusal(
        tmp_path / "x.pth"
    )


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_a_float(tmp_path, audio_encoder, dtype, suffix):
    weights = converted(audio_encoder.state_dict(), lambda t: t.to(dtype))
    path = tmp_path / f"a.{suffix}"
    torch.save(weights, path) if suffix == "pth" else safetensors.torch.save_file(weights, path)
    assert_same(load(path), weights, AudioEncoder)
