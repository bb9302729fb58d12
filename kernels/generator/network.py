"""The whole generator: its layers, one after another, in one buffer."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from ..spec import ROI_SIZE
from . import reference
from .plan import OUTSIDE, Activation, Layer, layers, places
from .weights import Dense, GeneratorWeights


class Run(Protocol):
    """Runs a layer whose weights are on the device: writes `out`.

    `expanded` and `convolved` are scratch memory for layers that have them.
    """

    def __call__(
        self,
        x: Tensor,
        out: Tensor,
        *,
        lower: Tensor | None,
        beside: Tensor | None,
        expanded: Tensor | None,
        convolved: Tensor | None,
    ) -> object: ...


Pack = Callable[[Layer, torch.device], Run]


class FusedGenerator:
    """The generator on a device, for any number of threads.

    Args:
        weights: see `weights.generator_weights`.
        pack: makes the layers' kernels, or their reference.
        dtype: of the activations. The kernels' is float16.

    Attributes:
        row_bytes: bytes of the buffer for each frame of a batch.
        traffic: bytes that each layer reads and writes a frame, without weights, by its name.
    """

    def __init__(
        self,
        weights: GeneratorWeights,
        device: torch.device,
        pack: Pack | None = None,
        *,
        dtype: torch.dtype = torch.float16,
    ):
        self._dtype = dtype
        self._layers = layers(weights)
        self._places = places(self._layers)
        pack = pack or kernels_of
        self._runs = [pack(layer, device) for layer in self._layers]
        self._values = max(place.end for place in self._places.values())
        self.row_bytes = self._values * dtype.itemsize
        self.traffic = {layer.name: layer.traffic for layer in self._layers}

    def bytes(self, n: int) -> int:
        """Return the bytes of the buffer for a batch of n frames."""
        return n * self.row_bytes

    def __call__(self, inputs: Tensor, audio: Tensor, out: Tensor) -> Tensor:
        """Generate the ROI with the mouth that fits.

        All activations are in one allocation, which PyTorch's allocator keeps for the next call, or
        the CUDA graph that captures the call. The host waits for nothing.

        Args:
            inputs: (n, 6, 320, 320) float16 or float32, contiguous: see `kernels.face_input`.
                Channels 3-5 are not read, because they are channels 0-2 with the mouth set to 0.
            audio: (n, 32, 16, 16), see `kernels.feature_windows`.
            out: (n, 3, 320, 320) float16 or float32, to write into.

        Returns:
            `out`.
        """
        n, (height, width) = len(out), out.shape[2:]
        if (height, width) != (ROI_SIZE, ROI_SIZE) or inputs.shape != (n, 6, height, width):
            raise ValueError(
                f"inputs are {tuple(inputs.shape)} and out is {tuple(out.shape)}; expected "
                f"(n, 6, {ROI_SIZE}, {ROI_SIZE}) and (n, 3, {ROI_SIZE}, {ROI_SIZE})"
            )
        if audio.shape != (n, 32, 16, 16):
            raise ValueError(f"audio is {tuple(audio.shape)}; expected {(n, 32, 16, 16)}")
        if n == 0:
            return out
        # Triton launches on the current GPU.
        with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
            self._run(inputs, audio, out)
        return out

    def _run(self, inputs: Tensor, audio: Tensor, out: Tensor) -> None:
        n = len(out)
        memory = torch.empty(n * self._values, dtype=self._dtype, device=out.device)

        def tensor(value: Activation | None) -> Tensor | None:
            if value is None:
                return None
            if value.name in OUTSIDE:
                return inputs if value.name == "inputs" else out
            begin = n * self._places[value.name].begin
            part = memory[begin : begin + n * value.values]
            return part.view(n, value.side, value.side, value.channels)

        for layer, run in zip(self._layers, self._runs, strict=True):
            x, written = tensor(layer.x), tensor(layer.out)
            assert x is not None and written is not None
            if layer.x.name == "audio":
                x.copy_(audio.permute(0, 2, 3, 1))
            run(
                x, written, lower=tensor(layer.lower), beside=tensor(layer.beside),
                expanded=tensor(layer.expanded), convolved=tensor(layer.convolved),
            )  # fmt: skip


def reference_of(layer: Layer, device: torch.device) -> Run:
    """Return a layer in plain PyTorch, computed in float32."""
    weights = layer.weights

    def run(
        x: Tensor, out: Tensor, *, lower: Tensor | None, beside: Tensor | None, **scratch: object
    ) -> object:
        if isinstance(weights, Dense):
            return out.copy_(reference.dense(x, weights))
        return out.copy_(
            reference.block(
                x, weights, lower=lower, beside=beside, head=layer.head, planar=layer.planar
            )
        )

    return run


def kernels_of(layer: Layer, device: torch.device) -> Run:
    """Return a layer's kernels, with its weights on the device."""
    from . import launch  # needs Triton

    return launch.kernels_of(layer, device)
