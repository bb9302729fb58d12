"""The generator as few passes over memory, for `torch.compile` on a GPU.

The layers of `Generator` move 358 MB a frame in float16 if each convolution reads its input and
writes its output once. PyTorch's compiler calls a library for each one, and adds bias, ReLU and
residual in passes of their own, which doubles that. Here

- tensors are (n, h, w, c) and contiguous, so that a 1x1 convolution is a matrix product of all
  pixels, whose epilogue in cuBLAS adds the bias and applies ReLU;
- a depthwise convolution is a sum of nine shifted products, which the compiler makes one kernel,
  with bias and ReLU;
- channels that come in sixes and threes are padded to eight, because matrix products need rows of
  16 bytes to be fast.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .generator import AudioModel, Double, Generator, InvertedResidual

MULTIPLE = 8  # of channels


class Pointwise(nn.Module):
    """A 1x1 convolution of (n, h, w, c), with bias, and with ReLU if told."""

    def __init__(self, conv: nn.Conv2d, *, relu: bool = False):
        super().__init__()
        self.relu, self.outputs = relu, conv.out_channels
        assert conv.kernel_size == (1, 1) and conv.bias is not None
        missing = [-conv.in_channels % MULTIPLE, -conv.out_channels % MULTIPLE]
        weight = conv.weight.detach()[:, :, 0, 0]
        self.weight = nn.Parameter(F.pad(weight, (0, missing[0], 0, missing[1])))
        self.bias = nn.Parameter(F.pad(conv.bias.detach(), (0, missing[1])))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        product = torch._addmm_activation if self.relu else torch.addmm
        return product(self.bias, rows, self.weight.t()).view(*x.shape[:-1], -1)


class Depthwise(nn.Module):
    """A 3x3 depthwise convolution of (n, h, w, c), with bias and ReLU."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        assert conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.bias is not None
        assert conv.groups == conv.in_channels == conv.out_channels
        (self.stride, _) = conv.stride
        # The expanded channels of the first block are not a multiple, see `Pointwise`.
        missing = -conv.in_channels % MULTIPLE
        weight = conv.weight.detach()[:, 0].permute(1, 2, 0)
        self.weight = nn.Parameter(F.pad(weight, (0, missing)).contiguous())
        self.bias = nn.Parameter(F.pad(conv.bias.detach(), (0, missing)))

    def forward(self, x: Tensor) -> Tensor:
        height, width, step = x.shape[1], x.shape[2], self.stride
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        total: Tensor = self.bias
        for row in range(3):
            for column in range(3):
                part = padded[:, row : row + height : step, column : column + width : step]
                total = total + part * self.weight[row, column]
        return torch.relu(total)


class Residual(nn.Module):
    """An `InvertedResidual` of (n, h, w, c)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        assert isinstance(block, InvertedResidual)
        expand, depthwise, project = (layer for layer in block.conv if isinstance(layer, nn.Conv2d))
        self.residual = block.residual
        self.expand, self.depthwise = Pointwise(expand, relu=True), Depthwise(depthwise)
        self.project = Pointwise(project)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Dense(nn.Module):
    """A convolution of (n, h, w, c) with bias and ReLU, for the few that are neither."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return torch.relu(y).contiguous()  # it is, if the convolution works in channels-last


def _double(double: nn.Module) -> nn.Sequential:
    assert isinstance(double, Double)
    return nn.Sequential(*(Residual(block) for block in double.double_conv))


def _audio(model: AudioModel) -> nn.Sequential:
    first, second, third, last, more = (
        Residual(block)
        for block in (model.conv1, model.conv2, model.conv4, model.conv6, model.conv7)
    )
    return nn.Sequential(first, second, Dense(model.conv3), third, Dense(model.conv5), last, more)


class FusedGenerator(nn.Module):
    """Computes what a `Generator` computes whose batch norms are folded, see
    `models.batch_norm.fold_batch_norms`."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.audio_model = _audio(generator.audio_model)
        self.fuse_conv = nn.Sequential(*map(_double, generator.fuse_conv))
        self.inc = Residual(generator.inc.inconv[0])
        downs = "down1", "down2", "down3", "down4", "down5"
        self.downs = nn.ModuleList(
            _double(getattr(generator, name).maxpool_conv[0]) for name in downs
        )
        ups = "up1", "up2", "up3", "up4", "up5"
        self.ups = nn.ModuleList(_double(getattr(generator, name).conv) for name in ups)
        self.outc = Pointwise(generator.outc.conv)

    def forward(self, input: Tensor, audio: Tensor, out: Tensor) -> None:
        """Write the ROI with the mouth that fits, see `Generator`, to `out`, of any strides."""
        pictures = input.permute(0, 2, 3, 1)
        x = self.inc(F.pad(pictures, (0, -pictures.shape[-1] % MULTIPLE)))
        skips = [x]
        for down in self.downs:
            x = down(x)
            skips.append(x)
        heard = self.audio_model(audio.permute(0, 2, 3, 1).contiguous())
        x = self.fuse_conv(torch.cat((skips.pop(), heard), dim=-1))
        for up in self.ups:
            larger = F.interpolate(
                x.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=True
            )
            x = up(torch.cat((larger.permute(0, 2, 3, 1), skips.pop()), dim=-1))
        mouths = torch.sigmoid(self.outc(x)[..., : self.outc.outputs])
        out.copy_(mouths.permute(0, 3, 1, 2))
