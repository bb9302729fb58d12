"""Check that a client's masked ROIs are what some runtimes take them for."""

import numpy as np

from kernels import MASK_COLUMNS, MASK_ROWS

from ..errors import InputError

STEP = 1 / 255  # a difference that 8 bits would not show
INSIDE = (..., slice(*MASK_ROWS), slice(*MASK_COLUMNS))
BORDERS: tuple[tuple[object, ...], ...] = (
    (..., slice(None, MASK_ROWS[0]), slice(None)),
    (..., slice(MASK_ROWS[1], None), slice(None)),
    (..., slice(*MASK_ROWS), slice(None, MASK_COLUMNS[0])),
    (..., slice(*MASK_ROWS), slice(MASK_COLUMNS[1], None)),
)


def check_masked(references: np.ndarray, masked: np.ndarray) -> None:
    """Check that each masked ROI is its ROI with the mouth set to 0, in a tenth of a millisecond
    each.

    Args:
        references, masked: (n, 3, 320, 320) float32, finite.

    Raises:
        InputError: one is something else.
    """
    for number, (reference, other) in enumerate(zip(references, masked, strict=True)):
        inside = other[INSIDE]
        if max(inside.max(), -inside.min()) > STEP or any(
            np.abs(reference[border] - other[border]).max() > STEP for border in BORDERS
        ):
            raise InputError(
                f"the masked ROI of picture {number} is not its ROI with rows {MASK_ROWS[0]} to "
                f"{MASK_ROWS[1] - 1} and columns {MASK_COLUMNS[0]} to {MASK_COLUMNS[1] - 1} set to "
                "0, as which the generator's runtime takes it; send such pictures, or choose "
                "another runtime for this avatar (networks.runtime of the server)"
            )
