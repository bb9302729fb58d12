"""Eyes and brows."""

from functools import cache

import numpy as np

from .paint import Canvas, bump, mirror, points, resample, rgb, smoothstep, spline, vec
from .pose import Pose

_CENTRE = vec(57.0, -1.5)
_IRIS, _PUPIL = 16.6, 6.8
# The eye on the right of the picture, from the inner corner to the outer.
_UPPER = points("25.5,6.5 31,-0.5 42,-12.0 56,-16.8 71,-15.0 82,-8.5 90.5,-1.0")
_LOWER = points("25.5,6.5 32,7.6 44,10.8 58,12.2 72,10.6 82,5.8 90.5,-1.0")
_LASH = rgb("2a1712")

# On the right and on the left of the picture, units.
EYE_BOXES = ((16, -34, 102, 19), (-102, -34, -16, 19))


def eye(flip: bool, pose: Pose) -> Canvas:
    """Draw one eye with its lids; `flip` draws the one on the left of the picture."""
    canvas = Canvas(*EYE_BOXES[flip], scale=3.0)
    shut = pose.blink
    # Lids follow the vertical gaze slightly.
    drop = shut + 0.10 * pose.gaze_y * (1 - shut)
    lower = spline(_LOWER) - vec(0, 1.6 * shut)
    upper = spline(_UPPER)
    upper = upper + (lower - upper) * vec(1, drop)
    upper[:, 1] = np.minimum(upper[:, 1], lower[:, 1])
    opening = mirror(np.concatenate([upper, lower[::-1]]), flip)
    upper, lower = mirror(upper, flip), mirror(lower, flip)
    _lid(canvas, flip, shut)
    if shut < 0.98:
        _ball(canvas, flip, pose, opening, upper)
    _lashes(canvas, upper, lower, flip, shut)
    return canvas


def _lid(canvas: Canvas, flip: bool, shut: float) -> None:
    crease = spline(points("28,-3 35,-12 46,-20.5 59,-24.3 74,-21.8 86,-13.5 93.5,-5.5"))
    crease = mirror(crease + vec(0, 2.5 * shut), flip)
    lid = np.concatenate([crease, mirror(spline(_LOWER)[::-1], flip)])
    canvas.paint(rgb("b9796a"), (0.26 + 0.04 * shut) * canvas.polygon(lid, 2.5 + 1.5 * shut))
    outer = mirror(spline(points("68,-21 82,-15 96,-7 93,2 80,-6"), closed=True), flip)
    canvas.paint(rgb("7a463c"), 0.34 * canvas.polygon(outer, 3.5))
    width = np.interp(np.arange(len(crease)), [0, len(crease) * 0.6, len(crease)], [0.8, 2.2, 0.8])
    canvas.paint(rgb("7a4033"), (0.62 - 0.28 * shut) * canvas.stroke(crease, width, 0.7))
    shine = mirror([(43, -15.5 + 7 * shut), (56, -20.2 + 8 * shut), (69, -18.2 + 8 * shut)], flip)
    canvas.paint(rgb("ffe2cf"), (0.22 + 0.12 * shut) * canvas.stroke(spline(shine), 3.0, 1.8))


@cache
def _iris() -> np.ndarray:
    """Return the texture of the iris, (256, 256, 3) float32, filling the square."""
    y, x = (np.mgrid[:256, :256].astype(np.float32) - 127.5) / 128
    r, angle = np.hypot(x, y), np.arctan2(y, x)
    rng = np.random.default_rng(3)
    fibre = np.zeros_like(r)
    for k in rng.integers(9, 70, 26):
        fibre += np.sin(k * angle + rng.uniform(0, 6.28) + 1.5 * np.sin(7 * r + k)) / 5
    t = np.clip((r - 0.36) / 0.5, 0, 1)[..., None]
    color = rgb("96622f") * (1 - t) + rgb("6a5237") * t
    color = (
        color
        * (1 + 0.13 * fibre * smoothstep(0.3, 0.6, r) * (1 - smoothstep(0.8, 1, r)))[..., None]
    )
    # Light enters at the upper left and leaves at the lower right.
    color = color * (0.66 + 0.75 * bump(x, y, 0.25, 0.48, 0.6, 0.42))[..., None]
    color = color * (1 - 0.80 * smoothstep(0.74, 1.0, r))[..., None]
    return color.astype(np.float32)


def _ball(canvas: Canvas, flip: bool, pose: Pose, opening: np.ndarray, upper: np.ndarray) -> None:
    x, y = canvas.grid()
    mask = canvas.polygon(opening, 0.15)
    side = -1 if flip else 1
    cx = side * _CENTRE[0] + 6.5 * pose.gaze_x
    cy = _CENTRE[1] - 0.8 + 4.0 * pose.gaze_y
    light = 1 - 0.30 * np.clip(np.abs(x - side * 58) / 30, 0, 1) ** 2.2
    color = rgb("f4ece6") * light[..., None] * np.ones((*mask.shape, 1), np.float32)
    inner = bump(x, y, side * 28.5, 6, 4.0, 4.0)[..., None]
    color = color * (1 - inner) + rgb("d98e80") * inner
    r = np.hypot(x - cx, y - cy)
    texture = _iris()
    row = np.clip(np.round((y - cy) / _IRIS * 128 + 127.5).astype(int), 0, 255)
    column = np.clip(np.round((x - cx) / _IRIS * 128 + 127.5).astype(int), 0, 255)
    ring = (1 - smoothstep(_IRIS - 0.9, _IRIS + 0.5, r))[..., None]
    color = color * (1 - ring) + texture[row, column] * ring
    pupil = (1 - smoothstep(_PUPIL - 0.7, _PUPIL + 0.5, r))[..., None]
    color = color * (1 - pupil) + rgb("120a08") * pupil
    # The upper lid and its lashes cast a shadow on the ball.
    shade = canvas.stroke(upper + vec(0, -1), 9, 2.6)[..., None]
    color = color * (1 - 0.62 * shade * vec(0.85, 1, 1))
    canvas.paint(color, mask)
    # Catch-lights reflect the window, so they move less than the gaze.
    glint_x, glint_y = cx - 5.2 - 1.2 * pose.gaze_x, cy - 5.0 - 1.0 * pose.gaze_y
    pane = points("-2.8,-3.4 2.3,-3.8 2.7,2.9 -2.4,3.3") + vec(glint_x, glint_y)
    window = canvas.polygon(pane, 0.75)
    canvas.paint(rgb("ffffff"), 0.95 * window * mask)
    canvas.paint(rgb("dfe9ff"), 0.45 * bump(x, y, cx + 5.5, cy + 6.0, 1.7, 1.3) * mask)


def _lashes(canvas: Canvas, upper: np.ndarray, lower: np.ndarray, flip: bool, shut: float) -> None:
    side = -1 if flip else 1
    canvas.paint(rgb("e3a393"), 0.55 * (1 - shut) * canvas.stroke(lower + vec(0, 0.3), 1.3, 0.35))
    canvas.paint(rgb("6b3a30"), 0.50 * canvas.stroke(lower[8:] + vec(0, 1.3), 1.2, 0.6))
    wing = upper[-1:] + vec(side * 4.5, -2.8 + 3.6 * shut)
    line = np.concatenate([upper, wing])
    width = np.interp(
        np.arange(len(line)),
        [0, 12, len(line) * 0.72, len(line) - 6, len(line)],
        [0.8, 2.0, 3.5, 3.2, 0.2],
    )
    canvas.paint(_LASH, 0.95 * canvas.stroke(line - vec(0, 0.5), width, 0.25))
    rng = np.random.default_rng(11)
    lashes = []
    roots = resample(upper, 30)[8:]
    for i, root in enumerate(roots):
        u = i / (len(roots) - 1)
        length = (2.2 + 5.6 * u) * rng.uniform(0.7, 1.1)
        lean = side * (-0.25 + 1.35 * u) + rng.uniform(-0.15, 0.15)
        rise = 1.0 - 1.75 * shut
        middle = root + vec(0.52 * lean, -0.42 * rise) * length
        tip = root + vec(0.85 * lean, -0.92 * rise) * length
        lashes.append((spline([root, middle, tip], samples=4), np.linspace(1.15, 0.1, 9), 0.60))
    for i, root in enumerate(resample(lower, 22)[9:-1]):
        tip = root + vec(side * (0.4 + 0.16 * i), 2.6 + rng.uniform(-0.6, 0.6))
        lashes.append((np.stack([root + vec(0, 0.8), tip]), vec(0.7, 0.1), 0.22))
    canvas.paint(_LASH, canvas.strokes(lashes, 0.22))


@cache
def brows() -> Canvas:
    """Draw both brows, the face at rest."""
    canvas = Canvas(-110, -70, 110, -16, scale=2.5)
    rng = np.random.default_rng(23)
    for flip in (True, False):
        top = spline(points("24,-38.5 34,-45.5 52,-52 71,-54 87,-48 101,-35.5"))
        bottom = spline(points("24.5,-31 36,-36.5 54,-42.5 71,-46 87,-43 101,-35"))
        shape = mirror(np.concatenate([top, bottom[::-1]]), flip)
        x, _ = canvas.grid()
        canvas.paint(
            rgb("5d3a2b"), 0.62 * canvas.polygon(shape, 2.0) * smoothstep(20, 48, np.abs(x))
        )
        top, bottom = resample(top, 130), resample(bottom, 130)
        for i in rng.permutation(120):
            u, v = i / 119, rng.uniform(0.0, 1)
            root = bottom[i] + (top[i] - bottom[i]) * v * 0.9
            angle = 1.15 * (1 - u) ** 2.2 + 0.30 - 0.55 * u * (v - 0.3) - 0.75 * u
            length = (8.5 - 2.5 * u) * rng.uniform(0.75, 1.15)
            step = vec(np.cos(angle), -np.sin(angle)) * length
            bend = root + 0.5 * step + vec(-0.2, -0.5)
            hair = mirror(spline([root, bend, root + step], samples=4), flip)
            tone = rgb("3b2118") * rng.uniform(0.85, 1.5)
            canvas.paint(
                tone,
                rng.uniform(0.35, 0.7)
                * (0.25 + 0.75 * min(1, 2.4 * u))
                * canvas.stroke(hair, np.linspace(1.1, 0.2, len(hair)), 0.22),
            )
    return canvas
