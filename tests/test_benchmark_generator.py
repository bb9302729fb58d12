"""The benchmark of the generator, as far as it runs without a GPU."""

import json

import pytest
import torch

from benchmarks import blocks, generator
from benchmarks.report import VISEME
from kernels.generator.plan import layers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("name", ["audio3", "audio7", "fuse.0", "up1.0"])
def test_pytorch_does_the_same_work(name):
    stage = blocks.block(1, name)
    inputs = stage.inputs(CPU)
    expected = stage.reference(inputs).clone()
    found = stage.libraries[blocks.PYTORCH](inputs)
    assert (found - expected).abs().max() < 1e-2 * expected.abs().max()
    assert stage.bytes(inputs) >= inputs.x.nbytes + inputs.out.nbytes


def test_the_jobs_on_a_gpu():
    """Section by section: the slowest layer in all forms, the whole, the other layers."""
    made = [job.row for job in generator.jobs(generator.GPU, CUDA)]
    names = [f"generator, {layer.name}" for layer in layers(blocks.weights())]
    assert {row["stage"] for row in made} == {*names, "generator", "generator, two frames"}
    assert made[0]["stage"] == "generator, up5.0" and made[0]["batch"] == 25
    forms = {row["provider"] for row in made[:5] if row["stage"] == "generator, up5.0"}
    assert forms == {
        VISEME, blocks.PYTORCH, blocks.FLOAT32_SUMS, blocks.ENLARGED, blocks.TWO
    }  # fmt: skip
    whole = {row["provider"] for row in made if row["stage"] == "generator"}
    assert whole == {VISEME, "torch.compile", blocks.FLOAT32_SUMS}
    assert {row["batch"] for row in made} == {25, 1, 2}
    assert len({str(row) for row in made}) == len(made)


def test_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "generator.json"
    monkeypatch.setattr("sys.argv", ["generator", "--quick", "-o", str(output)])
    assert generator.main() == 0
    assert json.loads(output.read_text())["left out"][0]["reason"] == "no CUDA GPU"


def test_the_table():
    row = {"provider": VISEME, "stage": "generator", "batch": 25, "bytes": 1, "bytes a second": 2.0}
    times = {"seconds": {"median": 1e-3, "p20": 1e-3, "p80": 1e-3}, "frame size": None}
    exact = {"provider": VISEME, "PSNR, dB": 68.25, "largest difference": 0.01, "launches": 57}
    results = {
        "copy, bytes a second": [3e12], "compared at batch": 25, "left out": [],
        "machine": {"gpu": "H200"}, "measured": [row | times, exact],
    }  # fmt: skip
    found = generator.text(results)
    assert "1000.0" in found and "PSNR 68.2 dB, largest difference 0.01, 57 launches" in found
