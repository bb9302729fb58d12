"""Hair: locks between two guide curves, each of a few hundred individually lit strands."""

from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np

from . import face
from .paint import Canvas, points, resample, rgb, smoothstep, spline, vec
from .skin import KEY

_STEPS = 56
_DARK, _MIDDLE, _LIGHT, _SHEEN = rgb("1f120d"), rgb("4b2c1d"), rgb("8a5734"), rgb("f0c596")


class _Lock(NamedTuple):
    inner: np.ndarray  # guide curves, root to tip, (N, 2) units
    outer: np.ndarray
    strands: int
    tone: float = 1.0
    wave: float = 2.0  # units
    ragged: float = 0.12  # fraction by which the shortest strand is shorter
    root: float = 0.10  # fraction of the length that is shaded at the roots
    tufts: int = 9
    solid: bool = True  # paint the area between the guides under the strands
    rim: float = 0.0  # light from behind along the outer guide


# From the parting over the forehead, down the left of the picture and on to the chest.
_SWEEP = points(
    "34,-132 14,-141 -20,-140 -60,-121 -92,-82 -110,-34 -119,24 -124,84 -132,140 "
    "-150,195 -160,250 -150,305 -128,352 -124,400 -140,446"
)
_CROWN = points(
    "22,-208 -8,-217 -60,-209 -110,-178 -143,-126 -157,-62 -163,10 -172,80 -192,145 "
    "-214,210 -222,275 -210,335 -182,385 -160,430 -150,462"
)
# From the parting to behind the ear on the right.
_TUCK = points(
    "34,-132 52,-141 76,-131 96,-102 108,-66 120,-34 136,-8 147,26 150,70 148,125 "
    "152,185 158,236 156,320"
)
_RIGHT = points(
    "22,-208 60,-214 104,-192 135,-148 151,-96 158,-40 162,10 166,56 172,105 184,160 "
    "196,212 202,250 196,320"
)


def _blend(a, b, t):
    return (1 - t) * np.asarray(a, np.float32) + t * np.asarray(b, np.float32)


def _at(curve: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Return the points of `curve` (N, 2) at `place` (...) in [0, 1]."""
    at = place * (len(curve) - 1)
    low = np.minimum(at.astype(int), len(curve) - 2)
    return _blend(curve[low], curve[low + 1], (at - low)[..., None])


def _paint(canvas: Canvas, lock: _Lock, seed: int, thick: float = 0.4) -> None:
    rng = np.random.default_rng(seed)
    inner, outer = (resample(spline(g), 4 * _STEPS) for g in (lock.inner, lock.outer))
    ends = 1 - lock.ragged * rng.beta(1.2, 2.2, (lock.strands, 1))
    v = np.linspace(0, 1, _STEPS) * ends
    u = rng.uniform(0, 1, (lock.strands, 1))
    # Strands form tufts, which narrow towards the tips.
    tuft = (np.round(u * lock.tufts + rng.normal(0, 0.2, u.shape))) / lock.tufts
    place = (
        u + (tuft - u) * 0.62 * smoothstep(0.1, 1.0, v) + rng.normal(0, 0.012, u.shape) * (0.3 + v)
    )
    start, end = _at(inner, v), _at(outer, v)
    paths = start + (end - start) * place[..., None]
    across = (end - start) / np.maximum(np.linalg.norm(end - start, axis=2, keepdims=True), 1e-3)
    phase = 5.0 * tuft + rng.normal(0, 0.25, u.shape)
    sway = lock.wave * smoothstep(0.25, 0.95, v) * np.sin(11.0 * v + phase)
    paths = paths + sway[..., None] * across
    # Depth: the skull's dome, and the roundness of the lock and of its tufts on it.
    x, y = paths[..., 0], paths[..., 1]
    side = np.clip(2 * place - 1, -1, 1)
    ridge = np.cos(2 * np.pi * lock.tufts * (place - tuft))
    depth = (
        150
        * np.sqrt(1.02 - np.clip(x / 235, -1, 1) ** 2)
        * np.sqrt(1.06 - (np.minimum(y + 20, 0) / 205) ** 2)
    )
    depth = depth + 26 * np.sqrt(1.1 - side**2) + 4 * ridge
    tangent = np.gradient(np.concatenate([paths, depth[..., None]], axis=2), axis=1)
    # Catmull-Rom guides have no continuous second derivative, which shading would show.
    tangent = cv2.blur(tangent, (9, 1), borderType=cv2.BORDER_REPLICATE)
    tangent /= np.linalg.norm(tangent, axis=2, keepdims=True)
    # Kajiya and Kay (1989): diffuse light is proportional to the sine of the angle to the light.
    half = (KEY + vec(0, 0, 1)) / np.linalg.norm(KEY + vec(0, 0, 1))
    along = np.clip(tangent @ half + 0.10 + rng.normal(0, 0.05, (lock.strands, 1)), -1, 1)
    sheen = np.sqrt(1 - along**2) ** 60 * rng.uniform(0.25, 1.0, (lock.strands, 1))
    # Light that passed through the hair: coloured, with a broader and shifted highlight.
    glow = np.sqrt(1 - np.clip(along - 0.26, -1, 1) ** 2) ** 16
    lit = np.sqrt(1 - np.clip(tangent @ KEY, -1, 1) ** 2)
    lit = lit * (0.60 + 0.40 * np.sqrt(np.maximum(1.0 - side**2, 0)))
    lit = lit * (0.76 - 0.30 * np.clip(x / 170, -1, 1)) * lock.tone
    lit = lit * (0.55 + 0.45 * smoothstep(0.0, lock.root, v))
    lit = lit * rng.normal(1, 0.15, (lock.strands, 1)) * (0.76 + 0.24 * ridge)
    t = np.clip(lit, 0, 1.25)[..., None]
    colors = np.where(
        t < 0.5, _blend(_DARK, _MIDDLE, t * 2), _blend(_MIDDLE, _LIGHT, np.minimum(t * 2 - 1, 1.2))
    )
    shine = 0.40 * sheen[..., None] * _SHEEN + 0.16 * glow[..., None] * rgb("b8743c")
    colors = colors + lock.tone * shine * smoothstep(0.0, lock.root, v)[..., None]
    # Light from behind: the window on the left, the room on the right.
    edge = lock.rim * smoothstep(0.55, 1.0, side)
    colors = colors + (0.16 * edge * smoothstep(80, 160, -x))[..., None] * rgb("ffe9cf")
    colors = colors + (0.13 * edge * smoothstep(80, 160, x))[..., None] * rgb("bccbe0")
    if lock.solid:
        keep = int(len(inner) * (1 - lock.ragged))
        hull = np.concatenate([inner[:keep], outer[:keep][::-1]])
        canvas.paint(_DARK * (0.9 + 0.5 * lock.tone), canvas.polygon(hull, 1.0))
    widths = np.where(rng.uniform(0, 1, lock.strands) < thick, 2, 1)
    canvas.strands(paths.astype(np.float32), colors, widths)


@cache
def _tucked() -> Canvas:
    """Draw the right of the picture: in front of the temple, behind the ear and shoulder."""
    canvas = Canvas(0, -230, 216, 330)
    _paint(canvas, _Lock(_TUCK, _RIGHT, 1800, 0.86, 3.0, 0.1, root=0.07, rim=1.0), 1)
    return canvas


@cache
def back() -> Canvas:
    """Draw the hair behind the neck."""
    canvas = Canvas(-236, -230, 216, 420)
    mass = spline(
        points(
            "0,-208 84,-190 138,-120 154,-20 164,80 178,170 174,260 120,300 0,300 -120,320 "
            "-190,300 -190,180 -172,60 -156,-30 -138,-124 -86,-190"
        ),
        closed=True,
    )
    canvas.paint(rgb("281711"), canvas.polygon(mass, 1.5))
    left = _Lock(
        points("-60,-60 -62,60 -64,140 -70,220 -80,300"),
        points("-150,-80 -166,20 -186,130 -204,220 -196,300"),
        700,
        0.42,
        4,
    )
    right = _Lock(
        points("50,-60 56,60 62,140 76,220 96,310"),
        points("146,-90 164,20 176,110 194,190 190,310"),
        800,
        0.55,
        5,
    )
    for seed, lock in enumerate((left, right)):
        _paint(canvas, lock, 40 + seed)
    _stamp(canvas, _tucked())
    return canvas


@cache
def front() -> Canvas:
    """Draw the hair in front of the face, with the ear."""
    canvas = Canvas(-244, -230, 216, 480)
    left, right = (_SWEEP, _CROWN), (_TUCK, _RIGHT)
    _stamp(canvas, _tucked(), until=(80, 110))
    _stamp(canvas, face.ear())
    _paint(canvas, _part(right, 0.0, 0.5, 420, 6, tone=0.9, wave=0.6), 2)
    _paint(canvas, _Lock(*left, 2600, tone=0.95, wave=5.0, ragged=0.2, tufts=12, rim=1.0), 3)
    _paint(canvas, _part(left, 0.0, 0.45, 900, tone=1.06, wave=8.0, ragged=0.26, tufts=5), 4)
    # Short hairs along the hairline, then loose strands.
    _paint(canvas, _part(left, -0.07, 0.10, 90, 7, tone=0.9, wave=1.5, ragged=0.7), 20, 0)
    _paint(canvas, _part(right, -0.07, 0.10, 90, 6, tone=0.9, wave=1.5, ragged=0.6), 21, 0)
    _paint(canvas, _part(left, -0.06, 0.10, 26, tone=1.1, wave=9.0, ragged=0.5), 5, 0)
    _paint(canvas, _part(left, 0.90, 1.05, 40, tone=1.1, wave=9.0, ragged=0.5), 6, 0)
    _paint(canvas, _part(right, 0.90, 1.04, 20, 9, tone=0.8, wave=3.0, ragged=0.5), 7, 0)
    return canvas


def _part(
    guides: tuple[np.ndarray, np.ndarray],
    low: float,
    high: float,
    strands: int,
    knots: int | None = None,
    **options: Any,
) -> _Lock:
    """Return strands alone, between two places from the inner guide (0) to the outer (1)."""
    inner, outer = (_blend(guides[0], guides[1], place)[:knots] for place in (low, high))
    return _Lock(inner, outer, strands, solid=False, **options)


def _stamp(canvas: Canvas, other: Canvas, until: tuple[float, float] = (9e3, 9e4)) -> None:
    """Paint `other` over `canvas`, faded out between two heights."""
    row = round((other.y0 - canvas.y0) * canvas.scale)
    column = round((other.x0 - canvas.x0) * canvas.scale)
    h, w = other.shape
    target = canvas.rgba[row : row + h, column : column + w]
    rgba = other.rgba * (1 - smoothstep(*until, other.grid()[1]))[..., None]
    target *= 1 - rgba[..., 3:]
    target += rgba
