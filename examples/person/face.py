"""Skin, nose and ears: the face without eyes and mouth."""

from functools import cache

import numpy as np

from .paint import Canvas, bump, mirror, points, rgb, smoothstep, spline
from .skin import shade

# Right half of the outline, from the top of the skull to the chin.
_HALF = points("0,-186 52,-178 95,-140 116,-84 121,-30 118,20 108,66 90,106 64,140 35,163 12,170.5")


def outline() -> np.ndarray:
    """Return the outline of the head, float32 (N, 2) in units."""
    return spline([*_HALF, *mirror(_HALF[:0:-1])], closed=True)


def _height(x, y) -> np.ndarray:
    """Return the depth of the face towards the viewer, in units."""
    # Wider than the outline at the top and bottom, where the vertical curve shapes the depth.
    reach = np.interp(y, [-190, -130, -30, 60, 110, 180], [104, 118, 126, 115, 98, 74]).astype(
        np.float32
    )
    side = np.clip(np.abs(x) / reach, 0, 1)
    z = 100 * (1 - side**2.4) ** 0.55
    z = z * np.clip(1 - np.abs((y + 5) / 205) ** 3.2, 0, 1) ** 0.55
    # Nose: bridge, tip, wings.
    along = smoothstep(-42, 52, y) * (1 - smoothstep(56, 73, y))
    z = z + (5 + 21 * along) * along**0.5 * np.exp(-0.5 * (x / (8.5 + 5 * along)) ** 2)
    z = z + 11 * bump(x, y, 0, 52, 10.5, 10)
    for side in (-1, 1):
        z = z + 9.5 * bump(x, y, side * 19, 57, 7, 7.5)
        z = z - 3.5 * bump(x, y, side * 30, 62, 6, 9)
        # Sockets, brows, lids, cheekbones, cheeks, the corners of the mouth.
        z = z - 9.5 * bump(x, y, side * 50, -4, 34, 17)
        z = z - 4.5 * bump(x, y, side * 26, -8, 9, 13)
        z = z + 4.0 * bump(x, y, side * 58, -36, 38, 10)
        z = z + 6.5 * bump(x, y, side * 58, -2, 22, 11)
        z = z + 6.0 * bump(x, y, side * 76, 40, 32, 22)
        z = z - 3.0 * bump(x, y, side * 78, 92, 20, 26)
        z = z - 2.0 * bump(x, y, side * 53, 101, 9, 9)
        z = z + 0.9 * bump(x, y, side * 7.5, 79, 3.5, 8)
    z = z + 9.0 * bump(x, y, 0, 98, 44, 26)
    z = z - 1.4 * bump(x, y, 0, 79, 4.5, 8)
    z = z - 4.0 * bump(x, y, 0, 129, 26, 8)
    z = z + 8.0 * bump(x, y, 0, 150, 26, 14)
    return (z - 3.0 * bump(x, y, 0, -44, 18, 12)).astype(np.float32)


@cache
def face() -> Canvas:
    """Draw the skin of the face."""
    canvas = Canvas(-136, -200, 136, 186)
    x, y = canvas.grid()
    height = canvas.soften(_height(x, y), 2.6)
    color = shade(height, canvas.scale)
    canvas.paint(color, canvas.polygon(outline()))
    # Blood near the surface: cheeks, nose, chin, lids.
    warm = 0.20 * (bump(x, y, -78, 48, 27, 20) + bump(x, y, 80, 48, 27, 20))
    warm += 0.13 * bump(x, y, 0, 54, 17, 13) + 0.06 * bump(x, y, 0, 152, 26, 16)
    canvas.tint(rgb("dd7a68"), warm)
    for side in (False, True):
        _nostril(canvas, side)
    # The key light casts the shadow of the nose down and to the right.
    shadow = spline(points("-14,68 8,70 27,64 34,72 24,84 6,80"), closed=True)
    canvas.tint(rgb("9b5a48"), 0.26 * canvas.polygon(shadow, 5))
    # Hair shades the forehead and the temples.
    forehead = canvas.soften(1 - smoothstep(-132, -96, y + 0.10 * x), 5)
    canvas.tint(rgb("7d4a3a"), 0.42 * forehead)
    temples = smoothstep(96, 128, np.abs(x) + 0.10 * np.maximum(y, 0) - 0.12 * np.minimum(y, 0))
    canvas.tint(rgb("8a503e"), 0.38 * temples)
    # Sheen where the bone is near: nose, cheeks, brow, the bow of the lip, chin.
    for cx, cy, sx, sy, alpha in (
        (-2, 50, 4.5, 4, 0.30),
        (-1.5, 8, 3.2, 24, 0.16),
        (-70, 34, 17, 8, 0.22),
        (66, 34, 14, 7, 0.13),
        (-18, -82, 38, 20, 0.13),
        (-62, -30, 22, 4, 0.14),
        (62, -30, 20, 4, 0.10),
        (-3, 147, 13, 8, 0.15),
        (0, 84.5, 4, 3, 0.16),
    ):
        canvas.tint(rgb("fff1e2"), alpha * bump(x, y, cx, cy, sx, sy))
    grain = np.random.default_rng(5).normal(0, 1, canvas.shape).astype(np.float32)
    grain = canvas.soften(grain, 0.5)
    canvas.rgba[..., :3] *= 1 + 0.016 * grain[..., None]
    canvas.rgba[..., :3] = np.clip(canvas.rgba[..., :3], 0, canvas.rgba[..., 3:])
    return canvas


def _nostril(canvas: Canvas, flip: bool) -> None:
    hole = spline(
        mirror(points("6,66.5 9,63.5 15,62.3 19.5,64.5 17,67.5 10,68.5"), flip),
        closed=True,
    )
    canvas.tint(rgb("7c3c30"), 0.55 * canvas.polygon(hole, 2.2))
    canvas.tint(rgb("4a1d18"), 0.62 * canvas.polygon(hole, 1.0))
    wing = spline(mirror(points("17,48 25,53 27.5,60 24,66.5 19,67.5"), flip))
    canvas.tint(rgb("8f4f3e"), 0.42 * canvas.stroke(wing, np.linspace(1, 3, len(wing)), 1.4))
    base = spline(mirror([(0, 71.5), (5, 70.5), (9, 69)], flip))
    canvas.tint(rgb("8f4f3e"), 0.40 * canvas.stroke(base, 2.5, 1.5))


@cache
def ear() -> Canvas:
    """Draw the ear on the right of the picture, with its ring."""
    canvas = Canvas(100, -40, 166, 92)
    x, y = canvas.grid()
    outer = spline(
        points("116,-8 124,-22 138,-25 147,-14 147,4 142,22 137,38 130,50 121,52 114,42"),
        closed=True,
    )
    mask = canvas.polygon(outer)
    inside = canvas.polygon(outer, 6)
    height = 16 * inside + 6 * bump(x, y, 128, 44, 8, 9)
    canvas.paint(shade(height.astype(np.float32), canvas.scale, rgb("e9ad92")), mask)
    canvas.tint(rgb("c96a58"), 0.20 * mask)
    rim = spline(points("124,-12 131,-17 138,-14 139,0 135,18 129,32"))
    width = np.interp(np.arange(len(rim)), [0, 20, len(rim)], [1, 5, 2])
    canvas.tint(rgb("7e3d31"), 0.55 * canvas.stroke(rim, width, 1.6))
    shell = spline(points("121,4 128,0 130,12 126,24 120,22"), closed=True)
    canvas.tint(rgb("6e3128"), 0.60 * canvas.polygon(shell, 2.2))
    fold = spline([(143, -16), (144, 2), (139, 22), (133, 40)])
    canvas.tint(rgb("ffd9c4"), 0.45 * canvas.stroke(fold, 2.4, 1.2))
    canvas.tint(rgb("6b3327"), 0.5 * (1 - smoothstep(112, 126, x)))
    _ring(canvas)
    return canvas


def _ring(canvas: Canvas) -> None:
    turn = np.linspace(0, 2 * np.pi, 48, dtype=np.float32)
    loop = np.stack([126.5 + 8.5 * np.sin(turn), 61 - 12 * np.cos(turn)], 1)
    canvas.paint(rgb("9a6a2c"), canvas.stroke(loop, 2.9))
    canvas.paint(rgb("e9c27a"), canvas.stroke(loop, 1.7))
    canvas.paint(rgb("fff3d0"), canvas.stroke(loop[32:42], 1.3, 0.3))
