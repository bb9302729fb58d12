"""Fold batch norms into the convolutions before them."""

import torch
from torch import nn


def fold_batch_norms(module: nn.Module) -> None:
    """Fold, in place, every BatchNorm2d into the Conv2d right before it.

    The folded weights are computed in float64 and have the dtype of the unfolded ones. Fold before
    rounding to float16, because a variance over 65504 would become infinite.
    """
    previous: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            assert child.running_mean is not None and child.running_var is not None
            scale = child.weight.double() / torch.sqrt(child.running_var.double() + child.eps)
            bias = 0 if previous.bias is None else previous.bias.double()
            bias = child.bias.double() + (bias - child.running_mean.double()) * scale
            weight = previous.weight.double() * scale[:, None, None, None]
            previous.weight = nn.Parameter(weight.to(previous.weight.dtype).detach())
            previous.bias = nn.Parameter(bias.to(previous.weight.dtype).detach())
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norms(child)
        previous = child
