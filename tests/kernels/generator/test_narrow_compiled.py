"""What the compiler makes of the kernels of narrow blocks: what the interpreter cannot show."""

import re

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET compiles nothing", allow_module_level=True)

from kernels.compile import _recording  # noqa: E402
from kernels.generator.network_cases import launch  # noqa: E402
from kernels.sass import _listing, read_machine_code  # noqa: E402

TAPS = 9


@pytest.fixture(scope="module")
def launched():
    """Kernels of a block with a residual and the head, and of one of stride 2."""
    found = {}
    for name in ("up5.1", "down1.0"):
        with _recording(90) as kernels:
            launch(name, 25)
        (found[name],) = kernels
    return found


@pytest.mark.parametrize("name", ["up5.1", "down1.0"])
def test_accesses(launched, name):
    """No spills, products on the tensor cores, results of 16 bytes."""
    code = read_machine_code(launched[name])
    assert code.spilled == 0
    assert code.stores == (16,) and code.loads[0] == 16
    assert "HMMA.16816.F16" in _listing(launched[name])
    assert "GMMA" not in _listing(launched[name])  # it would read the weights each time


@pytest.mark.parametrize("name, columns", [("up5.1", 8), ("down1.0", 4)])
def test_depthwise_works_on_pairs(launched, name, columns):
    """The last tap and the ReLU are one instruction, the inline assembly that the interpreter does
    not run; and few instructions move halves from pair to pair."""
    kernel = launched[name]
    assert kernel.asm["ptx"].count("fma.rn.relu.f16x2") >= columns
    code = _listing(kernel)
    with_relu = len(re.findall(r"HFMA2\S*\.RELU", code))
    every = len(re.findall(r"\bHFMA2", code))
    moved = len(re.findall(r"\bPRMT\b", code))
    assert with_relu >= columns and every >= TAPS * columns
    assert moved < every / 3
