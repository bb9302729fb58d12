"""The losses of the generator's output."""

import torch
from torch import Tensor
from torch.nn import functional as F

import kernels

from .data import MouthBox

MOUTH_WEIGHT = 4.0  # weight of a pixel of the mouth, relative to one of the cheek
EDGE_WEIGHT = 2.0  # weight of a pixel near the edge of the ROI, where a seam would show
EDGE = 24  # pixels from the edge of the ROI with EDGE_WEIGHT
MOUTH_SOFTNESS = 0.03  # width of the mouth's soft edge, as a fraction of the ROI
# Weight of the squared error beside the absolute one. L1 alone neglects colours that few pixels
# have, because even a large error there adds little to the mean.
SQUARED_WEIGHT = 5.0
GRADIENT_WEIGHT = 1.0  # weight of the gradients' loss beside the pixels'
SCALES = 3  # gradients are compared at 320, 160 and 80 pixels


def image_weights(mouth: MouthBox) -> Tensor:
    """Return the weight of each pixel of the ROI in the loss.

    Weights are high on the mouth, with a soft edge, and along the edge of the ROI.

    Args:
        mouth: box of the mouth, in fractions of the ROI.

    Returns:
        (1, 1, 320, 320) float32 with mean 1.
    """
    at = (torch.arange(kernels.ROI_SIZE) + 0.5) / kernels.ROI_SIZE
    x0, y0, x1, y1 = mouth
    soft = MOUTH_SOFTNESS
    across = torch.sigmoid((at - x0) / soft) * torch.sigmoid((x1 - at) / soft)
    down = torch.sigmoid((at - y0) / soft) * torch.sigmoid((y1 - at) / soft)
    weights = 1 + (MOUTH_WEIGHT - 1) * down[:, None] * across[None, :]
    edge = torch.full_like(weights, EDGE_WEIGHT)
    edge[EDGE:-EDGE, EDGE:-EDGE] = 0
    weights = torch.maximum(weights, edge)
    return (weights / weights.mean())[None, None]


def image_loss(output: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean weighted error of the pixels, and of their gradients at several scales.

    The gradient difference loss (Mathieu, Couprie, LeCun, 2016) keeps edges sharp. L1 alone blurs
    an edge whose place is uncertain.

    Args:
        output: (n, 3, h, w) float32, whole ROIs or crops.
        target: (n, 3, h, w) float32.
        weights: (1 or n, 1, h, w) float32 with mean 1.
    """
    error = output - target
    pixels = ((error.abs() + SQUARED_WEIGHT * error.square()) * weights).mean()
    gradients = output.new_zeros(())
    for scale in range(SCALES):
        if scale:
            error, weights = F.avg_pool2d(error, 2), F.avg_pool2d(weights, 2)
        across = (error[..., 1:] - error[..., :-1]).abs() * weights[..., 1:]
        down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weights[..., 1:, :]
        gradients = gradients + (across.mean() + down.mean()) / 2
    return pixels, GRADIENT_WEIGHT * gradients / SCALES


def psnr(error: Tensor) -> float:
    """Return the PSNR in dB of differences on a scale of [0, 1]."""
    return float(-10 * torch.log10(error.double().square().mean().clamp(min=1e-10)))
