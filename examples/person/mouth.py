"""The mouth: lips, teeth and tongue between curves y(x), evaluated per pixel.

The curves are functions of s = x / half width, so any two shapes of `Mouth` blend.
"""

from dataclasses import dataclass

import numpy as np

from .paint import Canvas, bump, rgb, smoothstep, vec
from .pose import Mouth

_SEAM = 101.0  # y where closed lips meet, units
_DROP = 17.0  # distance that the chin drops with an open jaw, units
MOUTH_BOX = (-84, 62, 84, 166)  # units


def jaw(mouth: Mouth) -> float:
    """Return how far the chin is lowered, in units."""
    return _DROP * mouth.openness * (1 - 0.30 * mouth.rounding)


def _soft(distance, width=0.55):
    """Return the coverage of a soft edge at `distance` units inside it."""
    return smoothstep(-width, width, distance)


def _profile(s, power: float):
    return np.maximum(1 - s * s, 0) ** power


@dataclass(frozen=True)
class _Lips:
    """Curves y(x) in units, float32 (1, W); the mouth reaches from -half to half."""

    half: float
    inner: float
    top: np.ndarray
    upper: np.ndarray  # lower edge of the upper lip
    lower: np.ndarray  # upper edge of the lower lip
    bottom: np.ndarray


def _lips(mouth: Mouth, x: np.ndarray) -> _Lips:
    o, w, r = mouth.openness, mouth.width, mouth.rounding
    half = 47 * (1 + 0.17 * w - 0.40 * r - 0.05 * o)
    inner = half * (0.985 - 0.025 * o - 0.12 * r)
    s, si = np.clip(x / half, -1, 1), np.clip(x / inner, -1, 1)
    # Corners rise in a smile and drop with the jaw by half as much.
    corner = (-3.0 - 6.5 * w + 5.5 * o) * (1 - 0.6 * r)
    rest = _SEAM - 1.5 + corner * np.abs(s) ** 2.2
    rest = rest - 0.3 * (1 - 0.6 * r) * np.exp(-(((np.abs(s) - 0.42) / 0.2) ** 2))
    # With closed lips, the tubercle of the upper lip rests in a dent of the lower lip.
    tubercle = 2.1 * (1 - 0.6 * r) * np.exp(-((s / 0.20) ** 2))
    dent = tubercle * np.exp(-4 * (o + 0.3 * mouth.teeth + 0.3 * mouth.tongue + 0.2 * r))
    # Teeth and tongue part lips that the jaw leaves closed.
    shut = (1 - o) ** 2
    lift = 7.0 * o * (1 - 0.3 * r) + 3.0 * mouth.teeth * o
    lift += (3.4 * mouth.teeth + 2.2 * mouth.tongue + 1.2 * r) * shut
    fall = (30 - 9 * r) * o + 1.0 * mouth.teeth * o
    fall += (3.4 * mouth.teeth + 3.6 * mouth.tongue + 1.4 * r) * shut
    up, down = 0.90 - 0.40 * r - 0.15 * o, 0.80 - 0.30 * r - 0.22 * o
    upper = rest + tubercle - lift * _profile(si, up)
    lower = rest + dent + fall * _profile(si, down)
    # Puckered lips are thick; broad or open ones are thin.
    full = (1 + 0.34 * r) * (1 - 0.10 * w) * (1 - 0.16 * o)
    bow = 1 + 0.16 * np.exp(-(((np.abs(s) - 0.27) / 0.16) ** 2)) - 0.10 * np.exp(-((s / 0.12) ** 2))
    bow = bow * (1 - 0.25 * np.abs(s) * (1 - r))
    blunt = o * (1 - r)
    # The outlines span the full width of the mouth, the gap only the inner width.
    top = rest + tubercle - lift * _profile(s, up)
    top = top - 12.2 * full * bow * _profile(s, 0.78 - 0.30 * r - 0.26 * blunt)
    bottom = rest + dent + fall * _profile(s, down)
    bottom = bottom + 16.0 * full * _profile(np.abs(s) ** 1.25, 0.80 - 0.32 * r - 0.30 * blunt)
    return _Lips(half, inner, top, upper, lower, bottom)


def mouth_canvas(mouth: Mouth) -> Canvas:
    """Draw the lips, and the teeth and tongue between them."""
    canvas = Canvas(*MOUTH_BOX)
    x, y = canvas.grid()
    lips = _lips(mouth, x)
    _surroundings(canvas, mouth, lips, x, y)
    edge = _soft(lips.half - np.abs(x), 0.8)
    hole = (
        _edge(y, lips.upper, canvas)
        * _edge(-y, -lips.lower, canvas)
        * _soft(lips.inner - np.abs(x), 0.8)
    )
    # The coverage fades with the gap, because closed lips show nothing between them.
    hole = hole * smoothstep(0.15, 1.6, lips.lower - lips.upper)
    _inside(canvas, mouth, lips, hole, x, y)
    _upper_lip(canvas, lips, edge, x, y)
    _lower_lip(canvas, mouth, lips, edge, x, y)
    _seam(canvas, mouth, lips, edge, x, y)
    return canvas


def _edge(y, curve, canvas: Canvas, width: float = 0.55):
    """Return the coverage below a curve y(x), equally soft on steep and flat parts."""
    slope = np.gradient(curve[0]) * canvas.scale
    return _soft((y - curve) / np.sqrt(1 + np.minimum(np.abs(slope), 6) ** 2)[None], width)


def _surroundings(canvas: Canvas, mouth: Mouth, lips: _Lips, x, y) -> None:
    """Paint the skin around the lips: shadow below, dimples, folds to the nose."""
    reach = np.clip(x / lips.half, -1, 1)
    below = bump(x, y - lips.bottom, 0, 4.5, 0.55 * lips.half, 4.2) * (y > lips.bottom - 6)
    canvas.paint(rgb("8e4b3c"), 0.36 * below * (1 - 0.35 * mouth.openness))
    rim = np.exp(-(((y - lips.top + 1.6) / 1.5) ** 2)) * _profile(reach, 0.5)
    canvas.paint(rgb("ffe3d2"), 0.20 * rim)
    corner_y = float(lips.upper[0, np.argmin(np.abs(x[0] - lips.half))])
    for side in (-1, 1):
        canvas.paint(
            rgb("7c3f33"), 0.26 * bump(x, y, side * (lips.half + 1.0), corner_y - 0.4, 3.6, 3.4)
        )
        cheek = (
            28
            + 0.42 * (y - 64)
            + 9 * max(mouth.width, 0) * smoothstep(62, 96, y)
            - 4 * mouth.rounding
        )
        fold = np.exp(-0.5 * ((x * side - cheek) / (3.0 + 0.03 * (y - 62))) ** 2)
        fold = fold * smoothstep(63, 76, y) * (1 - smoothstep(88, 118, y))
        canvas.paint(
            rgb("9a5443"), (0.10 + 0.20 * max(mouth.width, 0) + 0.05 * mouth.openness) * fold
        )


def _inside(canvas: Canvas, mouth: Mouth, lips: _Lips, hole, x, y) -> None:
    if not hole.any():
        return
    s = np.clip(x / lips.inner, -1, 1)
    depth = smoothstep(0, 26, y - lips.upper)
    color = rgb("2a0a0c") * (1 - depth[..., None]) + rgb("56191b") * depth[..., None]
    color = color * (1 - 0.5 * np.abs(s[..., None]) ** 3)
    # Lower teeth and tongue move with the jaw; the upper teeth do not move.
    jaw_edge = lips.lower[0, lips.lower.shape[1] // 2]
    low_top = jaw_edge - 1.0 - 6.0 * mouth.teeth + 2.5 * s**2
    color = _teeth(
        color, x, y, low_top, None, 0.62 * smoothstep(0.1, 0.9, mouth.teeth), 5.4, 0.62 * lips.inner
    )
    up = mouth.tongue
    skull = _SEAM - 10.5 - 1.5 * mouth.openness
    rim = skull + 7.0 + 5.6 * mouth.teeth + 1.2 * mouth.openness + 1.0 * up - 2.6 * s**2
    low = jaw_edge - 3.0 - 5 * mouth.openness
    tip_y = low + up * min(0.0, skull + 5.5 + 5.6 * mouth.teeth - low)
    wide = lips.inner * (0.70 - 0.22 * up)
    body = np.clip(np.abs(x) / wide, 0, 1)
    surface = tip_y + (5.0 + 7 * up) * body**2.4
    cover = (
        _soft(y - surface, 0.9)
        * _soft(wide - np.abs(x), 1.6)
        * smoothstep(0.06, 0.22, mouth.openness + up)
    )
    tone = rgb("d9736f") * (0.62 + 0.38 * up + 0.10 * mouth.openness)
    lit = (
        0.70
        + 0.34 * np.exp(-(((y - surface - 5) / 6) ** 2))
        - 0.16 * np.exp(-((x / 2.2) ** 2)) * (y > surface + 2)
    )
    tongue = tone * (lit * (1 - 0.35 * body**2))[..., None]
    wet = 0.30 * up * bump(x, y, -5, tip_y + 5, 7, 2)
    tongue = tongue + wet[..., None]
    color = color * (1 - cover[..., None]) + tongue * cover[..., None]
    bared = smoothstep(0.02, 0.30, mouth.teeth + 0.75 * mouth.openness + 0.25 * up)
    color = _teeth(color, x, y, None, rim, bared, 7.6, 0.90 * lips.inner)
    # The lips cast a shadow on the teeth and the tongue.
    shadow = np.exp(-np.maximum(y - lips.upper, 0) / (1.2 + 2.6 * mouth.openness))
    shadow = shadow + 0.6 * np.exp(-np.maximum(lips.lower - y, 0) / 1.6)
    shadow = (0.36 + 0.20 * mouth.openness) * np.clip(shadow, 0, 1) ** 1.3
    color = color * (1 - shadow[..., None] * vec(0.86, 1.0, 1.04))
    canvas.paint(np.clip(color, 0, 1), hole)


def _teeth(color, x, y, top, rim, alpha: float, pitch: float, reach: float):
    """Blend a row of teeth into `color`: upper ones down to `rim`, or lower ones up to `top`."""
    # Incisors look widest, because the arch turns the others sideways.
    bend = pitch * 3.9 * np.arcsin(np.clip(x / (pitch * 5.0), -1, 1))
    phase = bend / pitch
    gap = np.exp(-(((phase - np.round(phase)) / 0.075) ** 2))
    scallop = 1.3 * np.abs(phase - np.round(phase) + 0.0) ** 0.8
    cover = (
        _soft(rim - 0.9 + scallop - y, 0.6) if top is None else _soft(y - top - 1.0 + scallop, 0.6)
    )
    cover = alpha * cover * _soft(reach - np.abs(x), 5.0)
    around = np.clip(np.abs(x) / (pitch * 4.4), 0, 1)
    tone = rgb("fff5e9") * (1 - 0.46 * around**2)[..., None]
    tone = tone * (1 - 0.15 * gap[..., None] * vec(0.8, 1.0, 1.15))
    return color * (1 - cover[..., None]) + tone * cover[..., None]


def _wrinkles(x, half: float):
    return np.sin(0.9 * x + 0.4) * np.sin(0.37 * x + 1.1) * _profile(np.clip(x / half, -1, 1), 1.0)


def _upper_lip(canvas: Canvas, lips: _Lips, edge, x, y) -> None:
    v = np.clip((y - lips.top) / np.maximum(lips.upper - lips.top, 0.5), 0, 1)
    s = np.clip(x / lips.half, -1, 1)
    light = 1.02 - 0.30 * v**1.5 - 0.07 * s - 0.10 * s**2 + 0.035 * _wrinkles(x, lips.half) * v
    light = light + 0.10 * np.exp(-(((v - 0.22) / 0.2) ** 2)) * np.exp(
        -(((np.abs(s + 0.03) - 0.28) / 0.25) ** 2)
    )
    color = rgb("c46d66") * light[..., None]
    mask = _edge(y, lips.top, canvas, 1.5) * _edge(-y, -(lips.upper + 0.3), canvas) * edge
    canvas.paint(np.clip(color, 0, 1), mask)


def _lower_lip(canvas: Canvas, mouth: Mouth, lips: _Lips, edge, x, y) -> None:
    v = np.clip((y - lips.lower) / np.maximum(lips.bottom - lips.lower, 0.5), 0, 1)
    s = np.clip(x / lips.half, -1, 1)
    light = 0.86 + 0.30 * np.exp(-(((v - 0.36) / 0.28) ** 2)) - 0.30 * smoothstep(0.55, 1.0, v)
    light = light - 0.09 * s - 0.16 * s**2 + 0.045 * _wrinkles(x + 3, lips.half) * (1 - v)
    color = rgb("d07a72") * light[..., None]
    gloss = np.exp(-(((v - 0.34 - 0.05 * s) / 0.13) ** 2)) * np.exp(-(((s + 0.16) / 0.30) ** 2))
    gloss = gloss * (0.80 + 0.20 * np.sin(1.3 * x + 2.0 * np.sin(0.4 * x)))
    color = color + (0.24 + 0.08 * mouth.rounding) * gloss[..., None] * rgb("ffe9e2")
    mask = _edge(y, lips.lower - 0.3, canvas) * _edge(-y, -lips.bottom, canvas, 2.0) * edge
    canvas.paint(np.clip(color, 0, 1), mask)


def _seam(canvas: Canvas, mouth: Mouth, lips: _Lips, edge, x, y) -> None:
    gap = lips.lower - lips.upper
    middle = (lips.lower + lips.upper) / 2
    # Rounded lips have no seam at the corners.
    closed = (1 - smoothstep(0.5, 4.0, gap)) * (
        1 - mouth.rounding * smoothstep(0.72, 1.0, np.abs(x) / lips.inner)
    )
    s = np.clip(x / lips.half, -1, 1)
    line = np.exp(-(((y - middle) / 0.85) ** 2)) * closed * (0.9 - 0.25 * np.abs(s) ** 3)
    soft = np.exp(-(((y - middle - 0.5) / 2.6) ** 2)) * closed
    canvas.tint(rgb("6a2526"), 0.35 * soft * edge)
    canvas.tint(rgb("4a1517"), 0.80 * line * edge)
