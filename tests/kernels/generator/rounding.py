"""The generator as its kernels round it: weights and every value between products in float16.

An independent simulation of a kernel's arithmetic, not of its order of work: products that expand
are rounded to float16 after every 16 channels where the kernels accumulate so, the depthwise sum
after every tap, and the projection only at its end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.generator.plan import Layer
from kernels.generator.weights import Dense

HALF_SUMS = 64  # blocks of up to as many input channels accumulate the expand in float16


def rounded(x: Tensor) -> Tensor:
    return x.half().float()


def rounded_of(layer: Layer, device: torch.device):
    """Return a layer for `FusedGenerator` that computes as the kernels do."""
    weights = layer.weights
    if isinstance(weights, Dense):
        return lambda x, out, **_: out.copy_(_dense(x.float(), weights))
    expand, depthwise, project = map(rounded, (weights.expand, weights.depthwise, weights.project))

    def run(x, out, *, lower, beside, **scratch):
        x = x.float() if layer.planar else x.float().permute(0, 3, 1, 2)
        parts = [x]
        if lower is not None:
            planes = lower.float().permute(0, 3, 1, 2)
            larger = F.interpolate(planes, scale_factor=2, mode="bilinear", align_corners=True)
            parts.insert(0, rounded(larger))
        if beside is not None:
            parts.append(beside.float().permute(0, 3, 1, 2))
        given = torch.cat(parts, 1)
        channels = expand.shape[1]
        step = 16 if channels <= HALF_SUMS else channels
        total = weights.expand_bias[None, :, None, None]
        for first in range(0, channels, step):
            part = expand[:, first : first + step, None, None]
            total = total + F.conv2d(given[:, first : first + step], part)
            if step < channels:
                total = rounded(total)
        total = rounded(total.relu())
        padded = F.pad(total, (1, 1, 1, 1))
        (height, width), stride = total.shape[2:], weights.stride
        sums = rounded(weights.depthwise_bias)[None, :, None, None].expand(1, -1, 1, 1)
        for row in range(3):
            for column in range(3):
                tap = depthwise[:, row, column][None, :, None, None]
                part = padded[:, :, row : row + height : stride, column : column + width : stride]
                sums = rounded(torch.addcmul(sums, part, tap))
        y = F.conv2d(sums.relu(), project[:, :, None, None], weights.project_bias)
        if weights.residual:
            y = y + given
        if layer.head is None:
            return out.copy_(y.permute(0, 2, 3, 1))
        y = F.conv2d(rounded(y), rounded(layer.head.weight)[:, :, None, None], layer.head.bias)
        return out.copy_(torch.sigmoid(y))

    return run


def _dense(x: Tensor, weights: Dense) -> Tensor:
    planes = x.permute(0, 3, 1, 2)
    y = F.conv2d(planes, rounded(weights.weight), weights.bias, weights.stride, weights.padding)
    return y.relu().permute(0, 2, 3, 1)
