"""The generator: from ROI, masked ROI and feature window to the ROI with the mouth that fits.

A U-Net of MobileNetV2 inverted residuals (Sandler et al., 2018), with the audio joined at its
bottleneck: the 328-pixel network of the SyncTalk 2D family. Parameter names are those of its
checkpoints, so some name an older design (`maxpool_conv`).
"""

import torch
from torch import nn
from torch.nn import functional as F


class InvertedResidual(nn.Module):
    """Apply 1x1 expand, 3x3 depthwise, 1x1 project: (n, c, h, w) -> (n, out, h / stride, w /
    stride).

    The expanded part has twice the input's channels. A residual block adds its input.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, residual: bool = False
    ):
        super().__init__()
        expanded = 2 * in_channels
        self.residual = residual
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU(inplace=True),
            nn.Conv2d(expanded, expanded, 3, stride, 1, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU(inplace=True),
            nn.Conv2d(expanded, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return x + y if self.residual else y


class Double(nn.Module):
    """Apply two inverted residuals: in -> out with the stride, then out -> out as a residual
    block."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.double_conv = nn.Sequential(
            InvertedResidual(in_channels, out_channels, stride),
            InvertedResidual(out_channels, out_channels, residual=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.double_conv(x)


class In(nn.Module):
    """The first layer: (n, 6, 320, 320) -> (n, 32, 320, 320)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.inconv = nn.Sequential(InvertedResidual(in_channels, out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inconv(x)


class Down(nn.Module):
    """Halve height and width: (n, c, h, w) -> (n, out, h / 2, w / 2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(Double(in_channels, out_channels, stride=2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    """Double height and width, and concatenate the down path's output of that size.

    (n, c, h, w), (n, s, 2h, 2w) -> (n, out, 2h, 2w), with c + s = in_channels.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Double(in_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.conv(torch.cat((x, skip), dim=1))


class AudioModel(nn.Module):
    """Encode feature windows for the bottleneck: (n, 32, 16, 16) -> (n, 512, 10, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = InvertedResidual(32, 64)
        self.conv2 = InvertedResidual(64, 128)
        self.conv3 = nn.Conv2d(128, 256, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(256)
        self.conv4 = InvertedResidual(256, 256, residual=True)
        self.conv5 = nn.Conv2d(256, 512, 3, stride=2, padding=3)
        self.bn5 = nn.BatchNorm2d(512)
        self.relu = nn.ReLU()
        self.conv6 = InvertedResidual(512, 512, residual=True)
        self.conv7 = InvertedResidual(512, 512, residual=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.conv1(x))
        x = self.conv4(self.relu(self.bn3(self.conv3(x))))
        x = self.relu(self.bn5(self.conv5(x)))
        return self.conv7(self.conv6(x))


class Out(nn.Module):
    """Reduce 16 channels to 3, by a 1x1 convolution with bias."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class Generator(nn.Module):
    """Generate the ROI with the mouth that fits the audio. 12.19 M parameters, 9.77 GFLOP a frame.

    Args:
        input: (n, 6, 320, 320) in [0, 1], in the dtype of the weights. Channels 0-2 are the ROI as
            planes B, G, R; channels 3-5 are the same with the mouth set to 0. Other sizes are an
            error, because the audio joins at 10 x 10.
        audio: (n, 32, 16, 16), 16 consecutive features of the audio encoder, reshaped.

    Returns:
        (n, 3, 320, 320), planes B, G, R in [0, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.audio_model = AudioModel()
        self.fuse_conv = nn.Sequential(Double(1024, 512), Double(512, 256))
        self.inc = In(6, 32)
        self.down1 = Down(32, 32)
        self.down2 = Down(32, 64)
        self.down3 = Down(64, 128)
        self.down4 = Down(128, 256)
        self.down5 = Down(256, 512)
        self.up1 = Up(512, 128)
        self.up2 = Up(256, 64)
        self.up3 = Up(128, 32)
        self.up4 = Up(64, 32)
        self.up5 = Up(64, 16)
        self.outc = Out(16, 3)

    def forward(self, input: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        x320 = self.inc(input)
        x160 = self.down1(x320)
        x80 = self.down2(x160)
        x40 = self.down3(x80)
        x20 = self.down4(x40)
        x10 = self.down5(x20)

        x = self.fuse_conv(torch.cat((x10, self.audio_model(audio)), dim=1))

        x = self.up1(x, x20)
        x = self.up2(x, x40)
        x = self.up3(x, x80)
        x = self.up4(x, x160)
        x = self.up5(x, x320)
        return torch.sigmoid(self.outc(x))
