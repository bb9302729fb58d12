"""Batch norms with fixed statistics, each folded into the convolution before it."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


def freeze_norms(network: nn.Module) -> None:
    """Compute with the batch-norm statistics measured so far, as at inference, and keep them.

    Frozen batch norms are folded into the convolution weights at each step. As separate layers they
    took a third of the step, because memory bandwidth limits them. The parameters and their
    gradients stay those of the convolution and of the norm.
    """
    network.eval()
    for conv, norm in _pairs(network):
        conv.__dict__["forward"] = partial(_folded, conv, norm)
        norm.__dict__["forward"] = _identity


def unfreeze_norms(network: nn.Module) -> None:
    """Normalize by each batch again, and measure its statistics."""
    network.train()
    for pair in _pairs(network):
        for layer in pair:
            layer.__dict__.pop("forward", None)


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Yield every convolution that a batch norm follows, with that norm."""
    for parent in network.modules():
        for conv, norm in pairwise(parent.children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                yield conv, norm


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be frozen")
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    weight = conv.weight * scale[:, None, None, None]
    shift = norm.bias - mean * scale
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def _identity(x: Tensor) -> Tensor:
    return x
