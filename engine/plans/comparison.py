"""Compare an exported or converted network with its original: inputs, measures, tolerances."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The largest |difference| allowed, and what it is relative to: 1 for the generator's pixels, the
# largest feature for the audio encoder, whose scale depends on its training. Half an ulp of float16
# is 5e-4 of a value, rounded once per layer, in weights and activations: 13 layers that add up like
# noise give 2e-3; 5e-3 leaves room for the cancellation in them. A trained generator has sharp
# edges, where single pixels differ by more: the demo's by 1.2e-2 on the inputs here (PSNR 69.6 dB),
# by 4.4e-3 on its faces (73.6 dB; 99.99% of the values within 2.1e-3). The PSNR bounds it tighter.
TOLERANCES = {
    ("generator", "fp16"): 3e-2,
    ("generator", "fp32"): 1e-4,
    ("audio_encoder", "fp16"): 5e-3,
    ("audio_encoder", "fp32"): 1e-4,
}
MIN_PSNR = 55.0  # dB, for the generator's output


@dataclass(frozen=True)
class Difference:
    """The difference between a network's outputs and the original's.

    Attributes:
        kind: "generator" or "audio_encoder".
        largest: largest |difference|, in the output's own units.
        relative: the same divided by the output's scale (1 for the generator).
        psnr: PSNR in dB; None for the audio encoder.
    """

    kind: str
    largest: float
    relative: float
    psnr: float | None

    def excess(self, precision: str) -> str | None:
        """Describe what exceeds the tolerance of a precision, "fp16" or "fp32"; None if nothing
        does."""
        tolerance = TOLERANCES[self.kind, precision]
        if not self.relative <= tolerance:  # also NaN
            return f"differs by {self.relative:.2g}; expected at most {tolerance:g}"
        if self.psnr is not None and self.psnr < MIN_PSNR:
            return f"has a PSNR of {self.psnr:.1f} dB; expected at least {MIN_PSNR:g}"
        return None


def measure(kind: str, actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> Difference:
    """Compare a network's outputs, one array per batch, with the original's."""
    wanted = np.concatenate(expected).astype(np.float64)
    error = np.abs(np.concatenate(actual) - wanted)
    largest = float(error.max())
    if kind != "generator":
        return Difference(kind, largest, largest / max(float(np.abs(wanted).max()), 1e-30), None)
    mean_square = float(np.square(error).mean())
    psnr = -10 * math.log10(mean_square) if mean_square else math.inf
    return Difference(kind, largest, largest, psnr)


def random_inputs(kind: str, n: int) -> list[np.ndarray]:
    """Return n float32 inputs with the scale and the structure of real ones."""
    rng = np.random.default_rng(n)
    if kind == "audio_encoder":
        return [rng.uniform(-4, 4, (n, 1, 80, 16)).astype(np.float32)]
    # Smooth with some noise, like a face; the mouth in channels 3-5 is masked.
    blocks = rng.random((n, 3, 10, 10), dtype=np.float32).repeat(32, axis=2).repeat(32, axis=3)
    roi = 0.8 * blocks + 0.2 * rng.random((n, 3, 320, 320), dtype=np.float32)
    masked = roi.copy()
    masked[:, :, 5:310, 5:315] = 0
    # Features are the output of a ReLU.
    audio = np.maximum(rng.standard_normal((n, 32, 16, 16), dtype=np.float32), 0)
    return [np.concatenate((roi, masked), axis=1), audio]
