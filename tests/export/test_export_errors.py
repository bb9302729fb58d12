"""Errors of the export: one line, exit code 2, and no file."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from engine.plans import comparison
from export import ExportError, export
from export.__main__ import main
from models import AudioEncoder, checkpoint

# `export.export` is the function; this is its module.
onnx_module = importlib.import_module("export.onnx")


@pytest.fixture
def existing(tmp_path):
    """An earlier export, which a failing one must not change."""
    file = tmp_path / "out" / "a.onnx"
    file.parent.mkdir()
    file.write_bytes(b"the one before")
    yield file
    assert list(file.parent.iterdir()) == [file]
    assert file.read_bytes() == b"the one before"


def test_over_the_tolerance(monkeypatch, audio_encoder_checkpoint, existing):
    monkeypatch.setitem(comparison.TOLERANCES, ("audio_encoder", "fp32"), 1e-12)
    with pytest.raises(ExportError, match=r"with PyTorch, differs by .*; expected at most 1e-12"):
        export("audio_encoder", audio_encoder_checkpoint[1], existing, precision="fp32")


def test_a_full_disk_is_named(monkeypatch, capsys, audio_encoder_checkpoint, existing):
    def save(model, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx_module, "_to_onnx", lambda *_: None)
    monkeypatch.setattr(onnx_module.onnx, "save", save)
    line, _ = failing(capsys, "audio-encoder", audio_encoder_checkpoint[1], "-o", existing)
    assert line == f"error: {existing}: No space left on device"


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_wrong_weight_is_noticed(monkeypatch, audio_encoder_checkpoint, existing, wrong):
    def export_badly(kind, network, max_batch):
        network[12].conv_block[0].bias.data[0] += wrong
        return to_onnx(kind, network, max_batch)

    to_onnx = onnx_module._to_onnx
    monkeypatch.setattr(onnx_module, "_to_onnx", export_badly)
    with pytest.raises(ExportError, match="compared with PyTorch, differs by"):
        export("audio_encoder", audio_encoder_checkpoint[1], existing, precision="fp16")


def test_psnr_of_the_generator(monkeypatch, generator_checkpoint, existing):
    monkeypatch.setattr(comparison, "MIN_PSNR", 200.0)
    with pytest.raises(ExportError, match=r"has a PSNR of \d+\.\d dB; expected at least 200"):
        export("generator", generator_checkpoint[1], existing, max_batch=1)


def encoder_scaled(tmp_path, factor):
    """Return an encoder with the same features, up to float32 rounding, and inner values `factor`
    times as large."""
    torch.manual_seed(0)
    network = AudioEncoder().eval()
    norm, conv = network[0].conv_block[1], network[1].conv_block[0]
    norm.weight.data *= factor
    conv.weight.data /= factor
    checkpoint.save(network, tmp_path / "scaled.safetensors")
    return tmp_path / "scaled.safetensors"


def test_values_beyond_float16_inside_the_network(tmp_path, existing):
    path = encoder_scaled(tmp_path, 5e4)
    with pytest.raises(ExportError, match="beyond float16's 65504; use fp32"):
        export("audio_encoder", path, existing, precision="fp16")


def test_weights_beyond_float16(tmp_path, existing):
    path = encoder_scaled(tmp_path, 1e7)
    with pytest.raises(ExportError, match=r"0\.conv_block\.0\.weight is not finite in fp16"):
        export("audio_encoder", path, existing, precision="fp16")


def test_large_variances_survive_float16(tmp_path):
    """A variance of 1e6 is infinite in float16: norms must be folded before rounding."""
    torch.manual_seed(0)
    network = AudioEncoder().eval()
    for block in network:
        conv, norm = block.conv_block
        conv.weight.data *= 1e3
        norm.running_var.data.fill_(1e6)
    checkpoint.save(network, tmp_path / "a.safetensors")
    report = export("audio_encoder", tmp_path / "a.safetensors", tmp_path / "a.onnx")
    assert report.relative_difference < 5e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "decoder"}, "kind is 'decoder'; expected one of: generator, audio_encoder"),
        ({"precision": "int8"}, "precision is 'int8'; expected one of: fp16, fp32"),
        ({"max_batch": 0}, "max_batch is 0; expected at least 1"),
    ],
)
def test_wrong_arguments(existing, arguments, message):
    arguments = {"kind": "generator", "precision": "fp32", "max_batch": 2} | arguments
    with pytest.raises(ValueError, match=message):
        export(arguments.pop("kind"), "x.pth", existing, **arguments)


def test_command_exports_and_prints_a_summary(command, audio_encoder_checkpoint, tmp_path):
    file = tmp_path / "a.onnx"
    done = command("audio-encoder", audio_encoder_checkpoint[1], "-o", file)
    assert done.returncode == 0
    # Only our own short lines, nothing of PyTorch's.
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        "loading",
        "exporting",
        "checking",
    ]
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{file}: 5.6 MB, 35 nodes, fp16, largest difference ")
    assert list(tmp_path.iterdir()) == [file]
    assert file.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def failing(capsys, *arguments):
    """Return the error line of a failing command, after its progress lines."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as error:  # argparse
        code = error.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1], lines[:-1]


def test_command_errors(capsys, generator_checkpoint, existing, tmp_path):
    path = generator_checkpoint[1]
    line, _ = failing(capsys, "generator", tmp_path / "none.pth", "-o", existing)
    assert line == f"error: {tmp_path}/none.pth: no such file"
    line, _ = failing(capsys, "audio-encoder", path, "-o", existing)
    assert "not an audio encoder: it is a generator" in line
    line, before = failing(capsys, "generator", path, "-o", tmp_path / "no" / "a.onnx")
    assert line == f"error: {tmp_path}/no: cannot be written: No such file or directory"
    assert before == []  # an error before the long work
    line, before = failing(capsys, "generator", path, "-o", existing.with_name("a.plan"))
    assert line.endswith("a.plan; expected a name that ends in .onnx") and before == []
    line, _ = failing(capsys, "generator", path, "-o", existing, "--max-batch", "0")
    assert line == "error: max_batch is 0; expected at least 1"
    line, before = failing(capsys, "generator", path, "-o", existing, "--max-batch", "many")
    assert "invalid int value: 'many'" in line and before == []
    line, before = failing(capsys, "generator", path)
    assert "required: -o/--output" in line and before == []
    line, before = failing(capsys, "vocoder", path, "-o", existing)
    assert "invalid choice: 'vocoder'" in line and before == []


def test_command_refuses_quantized_weights(capsys, audio_encoder_checkpoint, existing, tmp_path):
    weights = audio_encoder_checkpoint[0].state_dict()
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            weights[name] = (tensor * 20).round().clamp(-128, 127).to(torch.int8)
    torch.save(weights, tmp_path / "int8.pth")
    line, _ = failing(capsys, "audio-encoder", tmp_path / "int8.pth", "-o", existing)
    assert line.startswith(
        f"error: {tmp_path}/int8.pth: 0.conv_block.0.weight is torch.int8; expected"
    )


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_leaves_nothing(generator_checkpoint, existing):
    process = subprocess.Popen(
        [sys.executable, "-m", "export", "generator", generator_checkpoint[1], "-o", existing],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if line.startswith("exporting"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and "Traceback" not in err
