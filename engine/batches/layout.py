"""Find out how a client's pictures lie in memory."""

import numpy as np

SURE = 0.5  # of the other layout's error
CLOSE = 0.15  # of the range of a picture: the error of crops of the same face


def is_planar(faces: np.ndarray, own: np.ndarray) -> bool:
    """Whether all ROIs come first, and then all masked ones; False in doubt.

    The second picture of the two layouts differs: it is the masked ROI of the first frame, or the
    ROI of the second frame.

    Args:
        faces: (n, 6, 320, 320) float32, the client's.
        own: (2, 6, 320, 320) float32, the generator's input made of the avatar's first two frames.
    """
    if len(faces) == 1:  # both layouts are the same
        return False
    second = faces[0, 3:]
    interleaved, planar = (
        np.abs(second - mine).mean(dtype=np.float64) for mine in (own[0, 3:], own[1, :3])
    )
    return bool(planar < min(SURE * interleaved, CLOSE))
