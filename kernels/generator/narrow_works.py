"""The work of the blocks of one kernel as the network runs them, for `kernels.model`."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ..work import Work
from .narrow import narrow_work, pack_narrow
from .network_cases import launch, network_layers
from .weights import Block


def narrow_works(n: int, processors: int) -> Iterator[tuple[str, Callable[[], None], Work]]:
    """List the launches with their names and work."""
    for name, layer in network_layers().items():
        if layer.narrow and isinstance(layer.weights, Block):
            packed = pack_narrow(
                layer.weights, torch.device("cpu"), planar=layer.planar, head=layer.head,
                lower=0 if layer.lower is None else layer.lower.channels,
            )  # fmt: skip
            yield name, partial(launch, name, n), narrow_work(n, layer.x.side, packed, processors)
