"""The work of the generator's kernels as the network runs them, for `kernels.model`."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..work import Work
from .dense import dense_work
from .narrow import narrow_work, pack_narrow
from .network_cases import launch, network_layers
from .plan import Layer
from .product import product_work
from .weights import Dense
from .wide import depthwise_project_work, depthwise_work


def generator_works(
    n: int, processors: int
) -> Iterator[tuple[str, Callable[[], None], dict[str, Work]]]:
    """List the layers: name, launch of all its kernels, and the work of each, in their order."""
    for name, layer in network_layers().items():
        yield name, partial(launch, name, n), _works(layer, n, processors)


def _works(layer: Layer, n: int, processors: int) -> dict[str, Work]:
    weights, x, out = layer.weights, layer.x, layer.out
    lower = 0 if layer.lower is None else layer.lower.channels
    if isinstance(weights, Dense):
        return {"": dense_work(n, x.side, x.channels, out.side, out.channels, processors)}
    if layer.narrow:
        packed = pack_narrow(
            weights, torch.device("cpu"), planar=layer.planar, head=layer.head, lower=lower
        )
        return {"": narrow_work(n, x.side, packed, processors)}
    beside = 0 if layer.beside is None else layer.beside.channels
    assert layer.expanded is not None
    made, stride, residual = layer.expanded.channels, weights.stride, weights.residual
    works = {
        "expand": product_work(
            n, x.side, x.channels, made, processors, lower=lower, beside=beside
        )
    }  # fmt: skip
    if layer.convolved is None:
        works["project"] = depthwise_project_work(
            n, x.side, made, out.channels, processors, stride=stride, residual=residual
        )
    else:
        works["depthwise"] = depthwise_work(n, x.side, made, stride=stride)
        works["project"] = product_work(
            n, out.side, made, out.channels, processors, residual=residual
        )
    return works
