"""Auxiliary heads: linear layers that predict the mouth shape from the generator's layers."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from models import Generator

# Layers of the generator with an auxiliary head, and their channels. The generator first learns the
# mean mouth, for which audio is noise; without this loss it ignores the audio for a long time.
AUX_HEAD_LAYERS = {
    "audio_model": 512,
    "fuse_conv": 256,
    "up1": 128,
    "up2": 64,
    "up3": 32,
    "up4": 32,
    "up5": 16,
}


class AuxHeads(nn.ModuleDict):
    """One linear head for each layer in `AUX_HEAD_LAYERS`, or none.

    Args:
        shapes: how many numbers describe a mouth shape; 0 for no heads.
    """

    def __init__(self, shapes: int):
        layers = AUX_HEAD_LAYERS if shapes else {}
        super().__init__({layer: nn.Linear(channels, shapes) for layer, channels in layers.items()})

    def read_out(self, layer: str, activation: Tensor) -> Tensor:
        """Predict the shapes (n, k) float32 from a layer's activation (n, c, y, x)."""
        return self[layer](activation.mean(dim=(2, 3)).float())

    @contextmanager
    def attached(self, generator: Generator) -> Iterator[dict[str, Tensor]]:
        """Collect the prediction of every head while the generator runs, by layer."""
        predictions: dict[str, Tensor] = {}

        def read_out(layer: str, activation: Tensor) -> None:
            predictions[layer] = self.read_out(layer, activation)

        hooks = [
            getattr(generator, layer).register_forward_hook(
                lambda _module, _inputs, activation, layer=layer: read_out(layer, activation)
            )
            for layer in self
        ]
        try:
            yield predictions
        finally:
            for hook in hooks:
                hook.remove()
