"""The generator's layers in plain PyTorch, in float32: what is right for the kernels.

Activations are (n, h, w, c), of any float dtype; results are float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .weights import Block, Dense, Head


def block(
    x: Tensor,
    weights: Block,
    *,
    lower: Tensor | None = None,
    beside: Tensor | None = None,
    head: Head | None = None,
    planar: bool = False,
) -> Tensor:
    """Run an inverted residual.

    Args:
        x: (n, h, w, c), or (n, c, h, w) if planar.
        weights: whose C is the number of channels of x, lower and beside together.
        lower: (n, h / 2, w / 2, k). Enlarged to twice its size, bilinearly with aligned corners,
            its channels come before those of x.
        beside: (n, h, w, k), whose channels come after those of x.
        head: applied to the result.

    Returns:
        (n, h / stride, w / stride, o), or (n, 3, h, w) if there is a head.
    """
    device, planes = x.device, x.float() if planar else _planes(x)
    if lower is not None:
        larger = F.interpolate(_planes(lower), scale_factor=2, mode="bilinear", align_corners=True)
        planes = torch.cat((larger, planes), dim=1)
    if beside is not None:
        planes = torch.cat((planes, _planes(beside)), dim=1)
    expand, depthwise, project = (
        weight.to(device) for weight in (weights.expand, weights.depthwise, weights.project)
    )
    y = F.conv2d(planes, expand[:, :, None, None], weights.expand_bias.to(device)).relu()
    y = F.conv2d(
        y, depthwise[:, None], weights.depthwise_bias.to(device), weights.stride, padding=1,
        groups=len(depthwise),
    ).relu()  # fmt: skip
    y = F.conv2d(y, project[:, :, None, None], weights.project_bias.to(device))
    if weights.residual:
        y = planes + y
    if head is None:
        return y.permute(0, 2, 3, 1).contiguous()
    y = F.conv2d(y, head.weight[:, :, None, None].to(device), head.bias.to(device))
    return torch.sigmoid(y)


def dense(x: Tensor, weights: Dense) -> Tensor:
    """Run a 3x3 convolution and ReLU: (n, h, w, c) -> (n, h', w', o)."""
    weight, bias = weights.weight.to(x.device), weights.bias.to(x.device)
    y = F.conv2d(_planes(x), weight, bias, weights.stride, weights.padding)
    return y.relu().permute(0, 2, 3, 1).contiguous()


def _planes(x: Tensor) -> Tensor:
    """Return (n, h, w, c) as (n, c, h, w) float32, not copied if it is float32."""
    return x.float().permute(0, 3, 1, 2)
