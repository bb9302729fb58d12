"""The modelled time of the whole generator: which kernels it counts, and its sums."""

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET compiles nothing", allow_module_level=True)

from kernels import compile  # noqa: E402
from kernels.generator.network_cases import launch  # noqa: E402
from kernels.generator.tiles import processors  # noqa: E402
from kernels.generator.works import generator_works  # noqa: E402
from kernels.gpus import GPUS  # noqa: E402
from kernels.model import COLUMNS, Estimate, ModelCase  # noqa: E402

H200 = GPUS["h200"]


@triton.jit
def _kernel():
    pass


def test_each_kernel_has_its_work():
    """Of layers of one kernel, two and three, and a dense convolution."""
    works = {name: works for name, _, works in generator_works(25, H200.processors)}
    assert len(works) == 32 and sum(map(len, works.values())) == 62
    for name in ("up5.1", "down3.1", "fuse.3", "audio3"):
        with compile._recording(H200.arch, H200.processors) as launched:
            launch(name, 25)
        for kernel, work in zip(launched, works[name].values(), strict=True):
            assert kernel.name in work.runs


def test_the_sum_of_each_gpu(monkeypatch, capsys):
    """The slowest of a kernel's pipes and the memory counts, at the share that is reached."""

    def estimates(gpu, cases):
        # 2 us of issue for each kernel, but of memory for the first, on an H200; half on others
        unit = 1e-6 if gpu is H200 else 0.5e-6
        return [
            Estimate(
                case, 64, 4, 1.0,
                dict.fromkeys(COLUMNS, unit) | {"issue": 2 * unit}, (0.5 if at else 4) * unit,
            )
            for at, case in enumerate(cases)
        ]  # fmt: skip

    monkeypatch.setattr(compile, "estimate_all", estimates)
    monkeypatch.setattr(compile, "MODELLED", (3, 0))  # no machine code is read
    assert compile.main(["--part", "generator", "--model", "h200,4090"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (
        lines.index(f"The generator on {gpu}, a frame of 25:") for gpu in ("H200", "RTX 4090")
    )
    inc, total = 4 / 0.85 + 1.2 / 25, 4 / 0.85 + 61 * 2 / 0.65 + 62 * 1.2 / 25
    assert lines[first + 2].split() == ["inc", "1", "7.17", "4.00", f"{inc:.2f}"]
    sums = next(line for line in lines[first:] if line.startswith("sum"))
    assert sums.split() == ["sum", "62", "84.80", "126.00", f"{total:.2f}"]
    rate = f"Frames a second: {1e6 / total:,.0f} expected, 7,937 if nothing waits."
    assert rate in lines[first:second]
    assert any("15,873 if nothing waits" in line for line in lines[second:])
    assert "The generator moves 84.8 MB a frame" in lines[-1]


def test_the_kernels_are_those_of_the_gpu_itself(monkeypatch):
    """Tiles are chosen by its multiprocessors, which may be fewer than the largest GPU's."""
    gpu, seen = GPUS["4090"], []
    assert gpu.processors < compile.ARCHITECTURES[gpu.arch][0]

    def launch_one():
        seen.append(processors(torch.device("cuda")))
        _kernel[(1,)]()

    monkeypatch.setattr(compile, "estimate", lambda *_: None)
    compile.estimate_all(gpu, [ModelCase("", launch_one, None)])
    assert seen == [gpu.processors]
