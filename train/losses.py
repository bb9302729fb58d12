"""What the generator is trained towards."""

import torch
from torch import Tensor
from torch.nn import functional as F

import kernels

MOUTH_WEIGHT = 4.0  # a pixel of the mouth next to one of the cheek
EDGE_WEIGHT = 2.0  # one near the edge of the ROI, where a seam would show
EDGE = 24  # pixels, how far that is
# The squares of the differences next to their sizes: a rare colour is wrong by much in few pixels.
SQUARED = 5.0
SHARPNESS = 1.0  # the gradients' part of the loss next to the pixels'
SCALES = 3  # the gradients are compared at 320, 160 and 80 pixels


def picture_weights(mouth: tuple[float, float, float, float]) -> Tensor:
    """(1, 1, 320, 320) float32 of mean 1: high on the mouth, with a soft edge, and along the ROI's.

    mouth: x0, y0, x1, y1 as parts of the ROI.
    """
    at = (torch.arange(kernels.ROI_SIZE) + 0.5) / kernels.ROI_SIZE
    x0, y0, x1, y1 = mouth
    soft = 0.03  # of the ROI
    across = torch.sigmoid((at - x0) / soft) * torch.sigmoid((x1 - at) / soft)
    down = torch.sigmoid((at - y0) / soft) * torch.sigmoid((y1 - at) / soft)
    weights = 1 + (MOUTH_WEIGHT - 1) * down[:, None] * across[None, :]
    edge = torch.full_like(weights, EDGE_WEIGHT)
    edge[EDGE:-EDGE, EDGE:-EDGE] = 0
    weights = torch.maximum(weights, edge)
    return (weights / weights.mean())[None, None]


def picture_loss(made: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean weighted error of the pixels, and of their gradients at several scales.

    The second term is what keeps edges sharp: an L1 loss alone puts a blur where it is not sure of
    an edge's place, as gradient difference losses do (Mathieu, Couprie, LeCun, 2016).

    Args:
        made, target: (n, 3, 320, 320), or parts of it.
        weights: (1 or n, 1, 320, 320), of mean 1.
    """
    error = made - target
    pixels = ((error.abs() + SQUARED * error.square()) * weights).mean()
    edges = made.new_zeros(())
    for scale in range(SCALES):
        if scale:
            error, weights = F.avg_pool2d(error, 2), F.avg_pool2d(weights, 2)
        across = (error[..., 1:] - error[..., :-1]).abs() * weights[..., 1:]
        down = (error[..., 1:, :] - error[..., :-1, :]).abs() * weights[..., 1:, :]
        edges = edges + (across.mean() + down.mean()) / 2
    return pixels, SHARPNESS * edges / SCALES


def psnr(error: Tensor) -> float:
    """dB of differences on a scale of [0, 1]."""
    return float(-10 * torch.log10(error.double().square().mean().clamp(min=1e-10)))
