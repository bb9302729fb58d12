"""The Triton kernels: in the interpreter without a GPU, and the same tests on a GPU.

`TRITON_INTERPRET=1 pytest tests/kernels/fused` runs them on CPU tensors, `pytest -m gpu` on CUDA.
Triton decides between the two when it is imported, so a run deselects the tests of the other one.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture(scope="session")
def demo() -> SimpleNamespace:
    """The demo's generator in float32, its layers' weights for the kernels, and what its modules
    read of a frame; both by the names of the modules."""
    from engine.plans.comparison import random_inputs
    from engine.runtime.fused import read_weights
    from examples import network_files
    from kernels.generator.weights import SHAPES
    from models import checkpoint

    path = network_files()["generator"]
    module = checkpoint.load(path, "generator").requires_grad_(False)
    read: dict[str, tuple[torch.Tensor, ...]] = {}
    hooks = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: read.__setitem__(name, inputs)
        )
        for name in (*SHAPES, *(f"up{number}" for number in range(1, 6)))
    ]
    module(*(torch.from_numpy(value) for value in random_inputs("generator", 1)))
    for hook in hooks:
        hook.remove()
    weights = read_weights(path)
    layers = (
        weights.inc, *sum(weights.downs, ()), *weights.fuse, *sum(weights.ups, ()), *weights.audio
    )  # fmt: skip
    return SimpleNamespace(
        module=module, read=read, layers=dict(zip(SHAPES, layers, strict=True)), head=weights.head
    )


def crops(image: torch.Tensor, n: int, height: int, width: int) -> torch.Tensor:
    """Cut n different parts out of (1, c, h, w), as float16 has them."""
    down, across = image.shape[2] - height, image.shape[3] - width
    starts = [(down * i // max(n - 1, 1), across * (i * 2 % 3) // 2) for i in range(n)]
    parts = [image[0, :, y : y + height, x : x + width] for y, x in starts]
    return torch.stack(parts).half().float()


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
