"""The audio encoder: a mel window in, one feature out.

The layout is that of Wav2Lip's audio encoder (Prajwal et al., 2020), which the SyncTalk 2D family
trains separately. The parameter names are those of the published checkpoints.
"""

import torch
from torch import nn

# in, out, kernel, stride, padding, residual
_BLOCKS = (
    (1, 32, 3, 1, 1, False),
    (32, 32, 3, 1, 1, True),
    (32, 32, 3, 1, 1, True),
    (32, 64, 3, (3, 1), 1, False),
    (64, 64, 3, 1, 1, True),
    (64, 64, 3, 1, 1, True),
    (64, 128, 3, 3, 1, False),
    (128, 128, 3, 1, 1, True),
    (128, 128, 3, 1, 1, True),
    (128, 256, 3, (3, 2), 1, False),
    (256, 256, 3, 1, 1, True),
    (256, 512, 3, 1, 0, False),
    (512, 512, 1, 1, 0, False),
)


class ConvBlock(nn.Module):
    """Apply Conv2d, batch norm and ReLU: (n, c, h, w) -> (n, out, h', w').

    A residual block adds its input between the batch norm and the ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int | tuple[int, int],
        padding: int,
        residual: bool,
    ):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding),
            nn.BatchNorm2d(out_channels),
        )
        self.act = nn.ReLU()
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv_block(x)
        return self.act(y + x if self.residual else y)


class AudioEncoder(nn.Sequential):
    """Encode mel windows as features. 2.81 M parameters, 0.19 GFLOP a window.

    (n, 1, 80, 16) -> (n, 512).

    The input has the dtype of the weights and values in [-4, 4]; dimension 2 is the mel band,
    dimension 3 the time. Features are >= 0.

    The module itself is the Sequential, so that its parameters have the published names
    ("0.conv_block.0.weight"). `models.checkpoint` also reads files with an `audio_encoder.` prefix.
    """

    def __init__(self) -> None:
        super().__init__(*(ConvBlock(*block) for block in _BLOCKS))

    def forward(self, mel_spectrogram: torch.Tensor) -> torch.Tensor:
        # With explicit dimensions, the batch dimension stays if n is 1.
        return super().forward(mel_spectrogram).squeeze((2, 3))
