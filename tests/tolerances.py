"""The tolerances of all comparisons in the tests: one table, with the reasons.

A key is the stage, the dtype of the result, and the implementation to compare with. Results that
must be bit-exact are not listed; such tests use `torch.equal`.
"""

from dataclasses import dataclass

import numpy as np
import torch

F32, U8 = torch.float32, torch.uint8


@dataclass(frozen=True)
class Tolerance:
    """The bounds of |actual - expected|, and why they are needed."""

    largest: float  # in the unit of the result: levels for uint8, units of the mel for a mel
    why: str
    share: float = 1.0  # of the values, that may differ at all
    relative: float = 0.0  # of |expected|, in addition to `largest`


_TIES = "float32 sums in another order decide differently about values between two levels"
_OPENCV = "OpenCV's weights are fixed-point numbers or float32, ours float64 rounded once"

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
    ("face_input", U8, "OpenCV"): Tolerance(1, _OPENCV, share=1e-3),
    ("composite", U8, "reference"): Tolerance(1, _TIES, share=1e-4),
    ("composite", U8, "OpenCV"): Tolerance(1, _OPENCV, share=1e-3),
    ("faces under 40 pixels", U8, "OpenCV"): Tolerance(
        1, "a few pixels enlarged repeat themselves, so one tie is a whole row"
    ),
    ("resize", U8, "reference"): Tolerance(1, _TIES, share=1e-4),
    ("resize bicubic", U8, "OpenCV"): Tolerance(1, _OPENCV, share=1e-3),
    ("resize bilinear", U8, "OpenCV"): Tolerance(
        1, "OpenCV's bilinear weights are multiples of 1/2048", share=0.12
    ),
    ("resize", U8, "PyTorch in float64"): Tolerance(
        0.501, "rounded to the nearest level; 0.001 for the float32 sums"
    ),
    ("convert_color", U8, "formula"): Tolerance(
        0.51, "rounded to the nearest level; 0.01 for the integer weights"
    ),
    ("convert_color", U8, "NV12 and back"): Tolerance(
        3, "the limited range has 220 levels of Y and 225 of U and V"
    ),
    ("convert_color", U8, "Y of FFmpeg"): Tolerance(1, "FFmpeg's fast conversion rounds otherwise"),
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
    actual, expected = (_signed(values) for values in (actual, expected))
    assert actual.shape == expected.shape
    expected = expected.to(actual.device)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    off = (actual - expected).abs().masked_fill_(same, 0)
    assert not off.isnan().any(), "NaN on one side only"
    worst = (off - tolerance.relative * expected.abs().nan_to_num(0)).max() if off.numel() else 0
    assert worst <= tolerance.largest, f"{worst} off: {tolerance}"
    differing, allowed = int((off > 0).sum()), max(at_least, tolerance.share * off.numel())
    assert differing <= allowed, f"{differing} of {off.numel()} values differ: {tolerance}"


def _signed(values: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Return the values as a tensor whose differences neither wrap around nor round."""
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(values))
    return values.float() if values.dtype == U8 else values.double()
