"""Which kernels run a layer."""

import torch
from torch import Tensor

from .dense import dense, pack_dense
from .narrow import narrow, pack_narrow
from .plan import Layer
from .weights import Dense
from .wide import depthwise_project, expand, pack_wide

Scratch = Tensor | None


def kernels_of(layer: Layer, device: torch.device) -> "_Dense | _Narrow | _Wide":
    """Return a layer's kernels, with its weights on the device."""
    if isinstance(layer.weights, Dense):
        return _Dense(layer.weights, device)
    return _Narrow(layer, device) if layer.narrow else _Wide(layer, device)


class _Dense:
    def __init__(self, weights: Dense, device: torch.device):
        self._packed = pack_dense(weights, device)

    def __call__(self, x: Tensor, out: Tensor, **none: Scratch) -> Tensor:
        return dense(x, self._packed, out)


class _Narrow:
    def __init__(self, layer: Layer, device: torch.device):
        assert not isinstance(layer.weights, Dense)
        lower = 0 if layer.lower is None else layer.lower.channels
        self._packed = pack_narrow(
            layer.weights, device, lower=lower, planar=layer.planar, head=layer.head
        )

    def __call__(self, x: Tensor, out: Tensor, *, lower: Scratch, **none: Scratch) -> Tensor:
        return narrow(x, self._packed, out, lower)


class _Wide:
    def __init__(self, layer: Layer, device: torch.device):
        assert not isinstance(layer.weights, Dense)
        lower = 0 if layer.lower is None else layer.lower.channels
        beside = 0 if layer.beside is None else layer.beside.channels
        self._packed = pack_wide(layer.weights, device, lower=lower, beside=beside)

    def __call__(
        self, x: Tensor, out: Tensor, *,
        lower: Scratch, beside: Scratch, expanded: Scratch, convolved: Scratch,
    ) -> Tensor:  # fmt: skip
        assert expanded is not None
        expand(x, self._packed, expanded, lower, beside)
        residual = x if self._packed.residual else None
        return depthwise_project(expanded, self._packed, out, residual, convolved)
