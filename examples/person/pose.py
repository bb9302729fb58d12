"""The moving parts: mouth, pose and idle motion, and the face's place in the frame.

Drawing happens in *units* of 1.1 pixels of the 720x1280 frame. The origin is the midpoint of the
eyes: they lie at x = -57 and 57, the nose ends at y = 66, the lips meet at y = 101, the chin ends
at y = 170.
"""

from dataclasses import dataclass
from math import cos, exp, pi, sin

import numpy as np

SIZE = (720, 1280)
PERIOD = 10.0  # length of the idle loop, seconds
SCALE = 1.1  # pixels per unit at SIZE
EYES = (360.0, 452.0)  # the origin in a frame of SIZE, head at rest, pixels
PIVOT = (0.0, 205.0)  # the head turns about the base of the neck
_FACE_BOX = (-110.0, 20.0, 110.0, 240.0)
_MOUTH_BOX = (-60.0, 74.0, 60.0, 150.0)


@dataclass(frozen=True)
class Mouth:
    """Shape of the mouth; the default is closed and relaxed. Every field blends linearly."""

    openness: float = 0.0  # 0 closed .. 1 wide open ("ah"); moves the jaw
    width: float = 0.0  # -1 narrow .. 0 relaxed .. 1 broad ("ee", a smile)
    rounding: float = 0.0  # 0 .. 1 puckered ("oo", "w")
    teeth: float = 0.0  # 0 .. 1 bared; parts closed lips ("f", "v", "s")
    tongue: float = 0.0  # 0 low and hidden .. 1 raised to the upper teeth ("l", "th")


@dataclass(frozen=True)
class Pose:
    """Position of everything except the mouth."""

    x: float = 0.0  # head to the right, pixels of a 720x1280 frame
    y: float = 0.0  # head down, pixels of a 720x1280 frame
    tilt: float = 0.0  # head clockwise, degrees
    yaw: float = 0.0  # -1 .. 1, face turned about 8 degrees to the left .. right of the picture
    blink: float = 0.0  # 0 open .. 1 shut
    brow: float = 0.0  # -1 lowered .. 1 raised
    gaze_x: float = 0.0  # -1 .. 1, right
    gaze_y: float = 0.0  # -1 .. 1, down
    breath: float = 0.0  # 0 out .. 1 in


def _blink(since: float) -> float:
    """Return the lid closure `since` seconds after a blink begins: 80 ms down, 200 ms up."""
    if not 0 <= since < 0.28:
        return 0.0
    rise = since / 0.08 if since < 0.08 else 1 - (since - 0.08) / 0.20
    return rise * rise * (3 - 2 * rise)


def _wave(t: float, cycles: int, phase: float) -> float:
    return sin(2 * pi * (cycles * t / PERIOD + phase))


def idle(t: float) -> Pose:
    """Return the pose of the idle loop at `t` seconds; `idle(t) == idle(t + 10)`."""
    t %= PERIOD
    breath = 0.5 - 0.5 * cos(2 * pi * 3 * t / PERIOD)
    # Whole numbers of cycles close the loop; a sum of several hides the repetition.
    dart = exp(-(((t - 3.2) / 0.9) ** 4)) - 0.8 * exp(-(((t - 7.6) / 0.7) ** 4))
    return Pose(
        x=5.5 * _wave(t, 1, 0.05) + 2.6 * _wave(t, 2, 0.30) + 0.8 * _wave(t, 5, 0.1),
        y=2.4 * _wave(t, 2, 0.55) + 1.3 * _wave(t, 3, 0.20) - 1.6 * breath,
        tilt=1.25 * _wave(t, 1, 0.40) + 0.55 * _wave(t, 3, 0.75),
        yaw=0.42 * _wave(t, 1, 0.10) + 0.20 * _wave(t, 2, 0.45),
        blink=max(_blink(t - start) for start in (1.40, 4.52, 8.28)),
        brow=0.18 * _wave(t, 2, 0.0) + 0.10 * _wave(t, 3, 0.6),
        gaze_x=0.30 * dart - 0.10 * _wave(t, 1, 0.10),
        gaze_y=0.10 * _wave(t, 2, 0.2),
        breath=breath,
    )


def idle_mouth(t: float) -> Mouth:
    """Return the mouth of the idle loop at `t` seconds: closed, with a slight varying smile."""
    t %= PERIOD
    return Mouth(width=0.44 + 0.08 * _wave(t, 1, 0.8) + 0.03 * _wave(t, 3, 0.35))


def fit(size: tuple[int, int]) -> tuple[float, float, float]:
    """Return scale and offset (pixels) with which a frame of SIZE covers one of `size`."""
    scale = max(size[0] / SIZE[0], size[1] / SIZE[1])
    return scale, (size[0] - scale * SIZE[0]) / 2, (size[1] - scale * SIZE[1]) / 2


def head_matrix(pose: Pose, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the affine map from units to pixels of the frame: float64 (2, 3)."""
    scale, left, top = fit(size)
    c, s = cos(pose.tilt * pi / 180), sin(pose.tilt * pi / 180)
    turn = SCALE * np.array([[c, -s], [s, c]])
    pivot = np.array(PIVOT)
    origin = np.array([EYES[0] + pose.x, EYES[1] + pose.y]) + SCALE * pivot - turn @ pivot
    return np.column_stack([scale * turn, scale * origin + (left, top)])


def face_box(pose: Pose, *, size: tuple[int, int] = SIZE) -> tuple[int, int, int, int]:
    """Return the square around the lower face, from the bridge of the nose to below the chin.

    It moves with the head only, and contains every shape of the mouth.

    Args:
        pose: position of the head.
        size: width and height of the frame in pixels.

    Returns:
        x0, y0, x1, y1 in pixels, end-exclusive.
    """
    x0, y0, x1, y1 = _FACE_BOX
    x, y = head_matrix(pose, size) @ ((x0 + x1) / 2, (y0 + y1) / 2, 1)
    side = 2 * round((x1 - x0) / 2 * SCALE * fit(size)[0])
    left, top = round(x - side / 2), round(y - side / 2)
    return left, top, left + side, top + side


def mouth_box(pose: Pose) -> tuple[int, int, int, int]:
    """Return the bounding box of the lips over all their shapes, in a frame of SIZE.

    Returns:
        x0, y0, x1, y1 in pixels, end-exclusive.
    """
    x0, y0, x1, y1 = _MOUTH_BOX
    corners = head_matrix(pose) @ np.array([[x0, x1, x0, x1], [y0, y0, y1, y1], [1, 1, 1, 1]])
    left, top = np.floor(corners.min(axis=1)).astype(int).tolist()
    right, bottom = np.ceil(corners.max(axis=1)).astype(int).tolist()
    return left, top, right, bottom
