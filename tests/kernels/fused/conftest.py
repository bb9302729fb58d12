"""The Triton kernels: in the interpreter without a GPU, and the same tests on a GPU.

`TRITON_INTERPRET=1 pytest tests/kernels/fused` runs them on CPU tensors, `pytest -m gpu` on CUDA.
Triton decides between the two when it is imported, so a run deselects the tests of the other one.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

from tests.kernels.interpreter import cache_patches

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GUARD = 256  # elements before and after an output that must not change


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def belongs(item: pytest.Item) -> bool:
        if HERE not in item.path.parents:
            return True
        return (item.get_closest_marker("gpu") is None) == INTERPRETED

    config.hook.pytest_deselected(items=[item for item in items if not belongs(item)])
    items[:] = [item for item in items if belongs(item)]
    if INTERPRETED and (fault := interpreter_fault()):
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=fault))


def interpreter_fault() -> str | None:
    """Why this Triton's interpreter does not run with this NumPy, None if it does.

    Until 3.7 it converts arrays of one element to integers, which NumPy rejects from 2.4 on
    (triton-lang/triton#9171).
    """
    import triton

    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        return (
            f"the interpreter of Triton {triton.__version__} does not run with NumPy "
            f"{np.__version__} (only 0-dimensional arrays can be converted): NumPy below 2.4 or "
            "Triton from 3.7 on"
        )
    return None


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def poisoned(device: torch.device) -> Callable[..., torch.Tensor]:
    """Make outputs filled with a value that no stage writes, between guard bands.

    The bands must be unchanged at the end of the test. `shift` moves an output by that many
    elements from the allocator's alignment.
    """
    made = []

    def make(*shape: int, dtype: torch.dtype = torch.float32, shift: int = 0) -> torch.Tensor:
        poison = 77 if dtype == torch.uint8 else float("nan")
        size = torch.Size(shape).numel()
        whole = torch.full((size + 2 * GUARD + shift,), poison, dtype=dtype, device=device)
        made.append((whole, GUARD + shift, size))
        return whole[GUARD + shift :][:size].view(shape)

    yield make
    for whole, start, size in made:
        band = torch.cat([whole[:start], whole[start + size :]])
        assert (band == 77).all() if whole.dtype == torch.uint8 else band.isnan().all()


@pytest.fixture(autouse=INTERPRETED)
def coarse_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch fewer and larger programs: the interpreter's time depends on operations, not bytes.

    40 rows do not divide the 328 of a crop, and each of 2 pasters has several tiles. Tests with
    `as_launched` in their name launch what a GPU gets.
    """
    if "as_launched" in request.node.name or "test_work" in str(request.node.path):
        return
    from kernels.fused import composite, face_input

    monkeypatch.setattr(face_input, "tile_rows", lambda n: 40)
    monkeypatch.setattr(face_input, "LANES", 128)
    for name, value in {
        "PASTERS": 2,
        "GROUPS": 16,
        "ROWS": 4,
        "COLUMNS": 64,
        "UNITS": 4096,
    }.items():
        monkeypatch.setattr(composite, name, value)


@pytest.fixture(autouse=INTERPRETED, scope="session")
def cached_interpreter_patch() -> None:
    cache_patches()
