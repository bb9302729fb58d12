"""The launches of the whole generator for `kernels.compile`: with weights of zeros."""

from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..compile_cases import Case
from .network import kernels_of
from .plan import OUTSIDE, Activation, Layer, layers
from .weights import convolution_shapes, generator_weights

STAGE = "generator"
BATCHES = 25, 1


def network_cases() -> Iterator[Case]:
    """List the launches of each layer; those of layers that compile to the same code once."""
    for n in BATCHES:
        seen = set()
        for name, layer in network_layers().items():
            same = (
                layer.weights.stride, getattr(layer.weights, "residual", None), layer.narrow,
                *(
                    value and (value.side, value.channels)
                    for value in (layer.x, layer.lower, layer.beside, layer.out)
                ),
            )  # fmt: skip
            if same not in seen:
                yield Case(STAGE, f"{name} n={n}", partial(launch, name, n))
            seen.add(same)


@lru_cache(maxsize=1)
def network_layers() -> dict[str, Layer]:
    """Return the layers of a generator of zeros, by name."""
    zeros = {
        name: (torch.zeros(shape), torch.zeros(shape[0]))
        for name, shape in convolution_shapes().items()
    }
    return {layer.name: layer for layer in layers(generator_weights(zeros))}


def launch(name: str, n: int) -> None:
    """Launch the kernels of a layer for a batch of n frames."""
    layer = network_layers()[name]

    def image(value: Activation | None) -> Tensor | None:
        if value is None:
            return None
        side, channels = value.side, value.channels
        outside = value.name in OUTSIDE
        shape = (n, channels, side, side) if outside else (n, side, side, channels)
        return torch.empty(shape, dtype=torch.float16)

    x, out = image(layer.x), image(layer.out)
    assert x is not None and out is not None
    kernels_of(layer, torch.device("cpu"))(
        x, out, lower=image(layer.lower), beside=image(layer.beside),
        expanded=image(layer.expanded), convolved=image(layer.convolved),
    )  # fmt: skip


def traffic_line() -> str:
    """Say how many bytes the generator's kernels move, for `kernels.compile --model`."""
    moved = sum(layer.traffic for layer in network_layers().values())
    weights = sum(
        2 * tensor.numel()
        for layer in network_layers().values()
        for tensor in vars(layer.weights).values()
        if isinstance(tensor, Tensor)
    )
    return (
        f"The generator moves {moved / 1e6:.1f} MB a frame, and {weights / 1e6:.1f} MB of weights "
        "a batch."
    )
