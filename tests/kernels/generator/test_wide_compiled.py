"""What the compiler makes of the kernels of wide blocks: what the interpreter cannot show."""

import re

import pytest

from kernels.sass import _listing, read_machine_code

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET compiles nothing", allow_module_level=True)

from kernels.compile import _recording  # noqa: E402
from kernels.generator.network_cases import launch  # noqa: E402


@pytest.fixture(scope="module")
def launched():
    """Kernels of a block of two kernels, of one of three with a second image, and a dense one."""
    with _recording(90) as kernels:
        launch("down3.1", 25)
        launch("fuse.3", 25)
        launch("audio3", 1)
    return {kernel.name: kernel for kernel in kernels}


def test_launches(launched):
    assert {"_product", "_depthwise_project", "_depthwise_only", "_dense"} <= set(launched)
    for kernel in launched.values():
        code = read_machine_code(kernel)
        assert code.spilled == 0
        assert code.loads[0] == 16 and code.stores == (16,)
        assert (code.tensor_cores > 0) == (kernel.name != "_depthwise_only")


def test_depthwise_works_on_pairs_of_channels(launched):
    """Nine instructions for each pair of results, and one more for ReLU, which is the inline
    assembly that the interpreter does not run; and none that move halves from pair to pair."""
    kernel = launched["_depthwise_project"]
    assert "max.f16x2" in kernel.asm["ptx"]
    code = _listing(kernel)
    fused, most, moved = (
        len(re.findall(rf"\b{name}\b", code)) for name in ("HFMA2", "HMNMX2", "PRMT")
    )
    assert fused == 9 * most > 0
    assert moved <= most  # for ReLU's second operand
    assert not re.search(r"\b(HMUL2|HADD2(?!\.F32))\b", code)
