"""The tolerances of all comparisons in the tests: one table, with the reasons.

A key is the stage, the dtype of the result, and the implementation to compare with. Results that
must be bit-exact are not listed; such tests use `torch.equal`.
"""

from dataclasses import dataclass

import numpy as np
import torch

BF16, F16, F32, U8 = torch.bfloat16, torch.float16, torch.float32, torch.uint8


@dataclass(frozen=True)
class Tolerance:
    """The bounds of |actual - expected|, and why they are needed."""

    largest: float  # in the unit of the result: levels for uint8, units of the mel for a mel
    why: str
    share: float = 1.0  # of the values, that may differ at all
    relative: float = 0.0  # of |expected|, in addition to `largest`
    scaled: float = 0.0  # of the largest |expected|, in addition to `largest`
    beyond: float = 0.0  # share of the values that may be further off than all this
    psnr: float = 0.0  # dB, at least; of values in [0, 1], or of levels for uint8


_TIES = "float32 sums in another order decide differently about values between two levels"
_SUMS = "float32 sums in another order"
_OPENCV = "without Intel's IPP, OpenCV's weights are multiples of 1/2048"

TOLERANCES: dict[tuple[str, torch.dtype, str], Tolerance] = {
    ("log_mel", F32, "librosa"): Tolerance(
        1e-4, "librosa computes in float64; PyTorch in float32 reaches 4.4e-5 on speech"
    ),
    ("log_mel", F32, "reference"): Tolerance(
        1e-4, "the kernel computes in float32, the reference in float64"
    ),
    ("log_mel", F32, "reference, beside a loud tone"): Tolerance(
        1e-3, "the float32 rounding noise of a tone 60 dB louder; PyTorch's FFT has it too"
    ),
    ("log_mel", F32, "itself"): Tolerance(
        1e-5, "another batch or input dtype changes the blocks and so the order of the sums"
    ),
    ("face_input", U8, "reference"): Tolerance(1, _TIES, share=1e-4),
    ("face_input", F32, "reference"): Tolerance(
        0, "the kernel multiplies by 1/255, the reference divides", relative=1e-5
    ),
    ("face_input", U8, "OpenCV"): Tolerance(1, _OPENCV, share=0.12),
    ("composite", U8, "reference"): Tolerance(1, _TIES, share=1e-4),
    ("composite", U8, "OpenCV"): Tolerance(1, _OPENCV, share=0.12),
    ("wide block", F16, "PyTorch"): Tolerance(
        0, "float16 weights, images and depthwise sums", scaled=2e-3
    ),
    ("wide block", F16, "itself"): Tolerance(
        0, "another batch may have other tiles, and so another order of the sums", scaled=1e-3
    ),
    ("dense convolution", F16, "PyTorch"): Tolerance(
        0, "float16 weights, inputs and result", scaled=8e-4
    ),
    ("narrow block", F16, "PyTorch"): Tolerance(
        0, "float16 weights, images and depthwise sums", scaled=2e-3
    ),
    ("narrow block of planes", F16, "PyTorch"): Tolerance(
        0, "the same; expanded values are large and cancel in the projection", scaled=5e-3
    ),
    ("resize", U8, "reference"): Tolerance(1, _TIES, share=1e-4),
    ("resize bicubic", U8, "OpenCV"): Tolerance(1, _OPENCV, share=0.12),
    ("resize bilinear", U8, "OpenCV"): Tolerance(
        1, "OpenCV's bilinear weights are multiples of 1/2048", share=0.12
    ),
    ("resize", U8, "PyTorch in float64"): Tolerance(
        0.501, "rounded to the nearest level; 0.001 for the float32 sums"
    ),
    ("OpenCV's bicubic resize", U8, "PyTorch in float64"): Tolerance(
        1.2, f"rounded to the nearest level; {_OPENCV}, which is 0.7 of a level"
    ),
    ("convert_color", U8, "formula"): Tolerance(
        0.51, "rounded to the nearest level; 0.01 for the integer weights"
    ),
    ("convert_color", U8, "NV12 and back"): Tolerance(
        3, "the limited range has 220 levels of Y and 225 of U and V"
    ),
    ("convert_color", U8, "Y of FFmpeg"): Tolerance(1, "FFmpeg's fast conversion rounds otherwise"),
    # The networks. `engine.plans.comparison` has what the export and the converter allow users'.
    ("generator", F32, "formula"): Tolerance(1e-5, _SUMS, relative=1e-4),
    ("audio_encoder", F32, "formula"): Tolerance(1e-5, _SUMS, relative=1e-4),
    ("generator", F32, "PyTorch"): Tolerance(1e-5, _SUMS),
    ("audio_encoder", F32, "PyTorch"): Tolerance(0, _SUMS, scaled=1e-5),
    ("generator", F16, "PyTorch"): Tolerance(
        2e-3, "half an ulp of float16 at 1 is 2.4e-4, in weights and activations", psnr=55
    ),
    ("audio_encoder", F16, "PyTorch"): Tolerance(
        0, "half an ulp of float16 is 5e-4 of a value, once for each of 13 layers", scaled=5e-3
    ),
    ("generator", F16, "itself"): Tolerance(
        2e-3, "TensorRT computes the rest of a batch with other kernels than whole batches"
    ),
    ("generator", F32, "ONNX Runtime"): Tolerance(
        0, "float32 sums in another order, of a network with random weights", scaled=1e-4
    ),
    ("audio_encoder", F32, "ONNX Runtime"): Tolerance(
        0, "float32 sums in another order, of a network with random weights", scaled=1e-4
    ),
    ("generator", BF16, "ONNX Runtime"): Tolerance(
        1, "8 bits of a value are kept; single pixels at edges differ by more", psnr=55
    ),
    ("converted graph", F16, "formula"): Tolerance(
        1e-2, "half an ulp of float16 at 7 is 2e-3, in weights, input and output"
    ),
    ("linear layer", F32, "itself, not compiled"): Tolerance(1e-6, _SUMS, relative=1e-5),
    # Frames.
    ("frames", U8, "those of a CPU"): Tolerance(
        255, "float16 in place of float32; single pixels at edges differ by more", psnr=50
    ),
    ("frames", U8, "a loop of librosa, OpenCV and PyTorch"): Tolerance(
        1, "the stages' ties, and what the networks make of them at edges", beyond=1e-3
    ),
    ("frames", U8, "those of another runtime"): Tolerance(
        1, "float32 sums in another order; single pixels at edges differ by more", beyond=1e-3
    ),
    ("frames", U8, "those of other batches"): Tolerance(
        2, "the networks' rounding moves a value over a level's edge now and then", share=0.01
    ),
    ("JPEG of RGB or grey", U8, "OpenCV"): Tolerance(0, "both decode with libjpeg-turbo"),
    ("JPEG of CMYK", U8, "OpenCV"): Tolerance(2, "OpenCV divides by 256 in place of 255"),
}


def assert_close(
    actual: torch.Tensor | np.ndarray,
    expected: torch.Tensor | np.ndarray,
    tolerance: Tolerance,
    *,
    at_least: int = 1,
) -> None:
    """Assert that two results are of one shape and within the tolerance; NaN only equals NaN.

    Args:
        actual: any dtype, any device.
        expected: of the same shape.
        tolerance: an entry of `TOLERANCES`.
        at_least: number of values that may differ however few there are in all.
    """
    peak = 255 if expected.dtype in (U8, np.uint8) else 1
    actual, expected = (_signed(values) for values in (actual, expected))
    assert actual.shape == expected.shape
    expected = expected.to(actual.device)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    off = (actual - expected).abs().masked_fill_(same, 0)
    assert not off.isnan().any(), "NaN on one side only"
    if not off.numel():
        return
    size = expected.abs().nan_to_num(0)
    allowed = tolerance.relative * size + tolerance.scaled * size.max()
    excess = off - allowed
    further = (~(excess <= tolerance.largest)).sum()
    assert further <= tolerance.beyond * off.numel(), f"{excess.max()} off: {tolerance}"
    differing, most = int((off > 0).sum()), max(at_least, tolerance.share * off.numel())
    assert differing <= most, f"{differing} of {off.numel()} values differ: {tolerance}"
    if tolerance.psnr:
        psnr = -10 * torch.log10((off / peak).square().mean())
        assert psnr >= tolerance.psnr, f"PSNR {psnr:.1f} dB: {tolerance}"


def _signed(values: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return the values as a tensor whose differences neither wrap around nor round."""
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    return values.float() if values.dtype == U8 else values.double()
