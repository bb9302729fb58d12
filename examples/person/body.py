"""Neck, shoulders and clothes."""

from functools import cache

import numpy as np

from .face import outline
from .paint import Canvas, bump, mirror, points, rgb, smoothstep, spline, vec
from .skin import FILL, KEY, normals, shade

_BLACK = rgb("000000")
_NECK = points("58,90 55,140 54,178 58,206 72,230 104,256 150,284 160,340 90,420 0,460")
_TORSO = points("66,216 84,236 128,253 186,268 244,290 286,326 308,384 322,470 334,600 344,790")
_LAPEL = points(
    "70,221 94,258 112,300 122,345 146,338 160,372 128,468 82,560 30,640 10,676 "
    "34,560 62,430 76,330 76,262"
)


@cache
def neck() -> Canvas:
    """Draw the skin of neck and chest."""
    canvas = Canvas(-180, 80, 180, 470)
    x, y = canvas.grid()
    skin = canvas.polygon(np.concatenate([spline(_NECK), mirror(spline(_NECK))[::-1]]))
    height = canvas.soften(_neck_height(x, y), 2)
    canvas.paint(shade(height, canvas.scale, rgb("f1c0a1")), skin)
    canvas.tint(rgb("6a3526"), 0.42 * (1 - smoothstep(170, 262, y + 0.10 * x)))
    canvas.tint(rgb("5c2c20"), 0.45 * smoothstep(30, 62, x) * (1 - smoothstep(205, 250, y)))
    chain = spline(points("-84,214 -60,260 -28,296 0,306 28,296 60,260 84,214"))
    canvas.tint(rgb("7a4232"), 0.30 * skin * canvas.stroke(chain + vec(1, 2.5), 1.6, 1.0))
    canvas.paint(rgb("c79a52"), 0.85 * skin * canvas.stroke(chain, 1.1))
    turn = np.linspace(0, 2 * np.pi, 32)
    for radius, shift, color in ((5.0, 0, "a87938"), (4.2, 0, "e6bf78"), (1.6, -1.2, "fff4d6")):
        disc = np.stack([radius * np.sin(turn), 311 + radius * np.cos(turn)], 1) + shift
        canvas.paint(rgb(color), canvas.polygon(disc, 0.3))
    collar = spline(points("-84,236 -74,270 -44,316 0,334 44,316 74,270 84,236"))
    canvas.tint(rgb("7a4232"), 0.40 * canvas.stroke(collar, 12, 6))
    return canvas


def _neck_height(x, y) -> np.ndarray:
    """Return the depth towards the viewer, in units."""
    half = 61 + 110 * smoothstep(186, 290, y) + 90 * smoothstep(260, 470, y)
    height = 58 * (1 - np.clip(np.abs(x) / half, 0, 1) ** 2.3) ** 0.6
    for side in (-1, 1):
        # The muscle from behind the ear to the breastbone.
        centre = side * (50 - 37 * np.clip((y - 120) / 135, 0, 1))
        muscle = np.exp(-0.5 * ((x - centre) / 8) ** 2)
        height = height + 2.3 * muscle * (1 - smoothstep(238, 262, y))
        out = side * x
        bone = 262 - 10 * np.clip((out - 18) / 90, 0, 1) + 3 * np.sin(out / 30)
        length = smoothstep(12, 26, out) * (1 - smoothstep(90, 130, out))
        height = height + 4.5 * np.exp(-0.5 * ((y - bone) / 5.5) ** 2) * length
    return (height - 6 * bump(x, y, 0, 258, 10, 12)).astype(np.float32)


@cache
def chin_shadow() -> Canvas:
    """Return the shadow that the head casts on the neck."""
    canvas = Canvas(-140, 60, 150, 290, scale=1.0)
    shape = outline() * vec(0.84, 1.0) + vec(12, 26)
    contact = outline() * vec(0.86, 1.0) + vec(3, 7)
    canvas.paint(_BLACK, 0.46 * canvas.polygon(shape, 12))
    canvas.paint(_BLACK, 0.30 * canvas.polygon(contact, 5))
    x, y = canvas.grid()
    canvas.rgba *= ((1 - smoothstep(205, 262, y)) * (1 - smoothstep(60, 100, np.abs(x))))[..., None]
    return canvas


def _cloth(height: np.ndarray, scale: float, tone) -> np.ndarray:
    nx, ny, nz = normals(height, scale)
    key = np.clip((nx * KEY[0] + ny * KEY[1] + nz * KEY[2] + 0.25) / 1.25, 0, 1)
    fill = np.clip((nx * FILL[0] + ny * FILL[1] + nz * FILL[2] + 0.2) / 1.2, 0, 1)
    light = 0.98 * key[..., None] * vec(1.0, 0.97, 0.92)
    light += 0.22 * fill[..., None] * vec(0.85, 0.95, 1.1)
    return np.clip(np.asarray(tone) ** 2.2 * (light + 0.12), 0, 1) ** np.float32(1 / 2.2)


@cache
def clothes() -> Canvas:
    """Draw a blazer over a light top, down to below the edge of the frame."""
    canvas = Canvas(-356, 200, 356, 790)
    x, y = canvas.grid()
    torso = np.concatenate([spline(_TORSO), mirror(spline(_TORSO))[::-1]])
    body = canvas.polygon(torso)
    chest = bump(x, y, -88, 470, 80, 80) + bump(x, y, 88, 470, 80, 80)
    form = 90 * canvas.polygon(torso, 34) + 26 * chest
    grain = np.random.default_rng(8).normal(0, 1, canvas.shape).astype(np.float32)
    weave = 0.6 * canvas.soften(grain, 0.45) + 0.9 * canvas.soften(grain[::-1], 1.2)

    _top(canvas, form, weave)
    edge = spline(points("72,190 70,216 78,300 66,420 36,560 2,690"))
    opening = np.concatenate([edge, mirror(edge)[::-1]])
    mask = body * (1 - canvas.polygon(opening))
    relief = form + _folds(canvas)
    color = _cloth(relief, canvas.scale, rgb("2b5963")) * (1 + 0.05 * weave[..., None])
    canvas.tint(rgb("40342e"), 0.55 * canvas.soften(mask, 7) * (1 - mask))
    canvas.paint(color, mask)
    front = spline([(14, 660), (4, 690), (-2, 730), (-4, 790)])
    canvas.tint(rgb("0e2227"), 0.55 * canvas.stroke(front + vec(-4, 2), 9, 4))
    canvas.tint(rgb("0e2227"), 0.45 * canvas.stroke(front, 1.4, 0.6))
    _lapels(canvas, form, weave)
    return canvas


def _folds(canvas: Canvas) -> np.ndarray:
    """Return the relief of the jacket: sleeve seams and drag lines."""
    relief = np.zeros(canvas.shape, np.float32)
    for flip in (False, True):
        seam = mirror(spline(points("232,284 242,330 240,400 232,480 236,600 240,790")), flip)
        relief -= 7.0 * canvas.stroke(seam, 5, 4.5)
        relief -= 4.0 * canvas.stroke(seam, 1.6, 0.9)
        for line, depth, width in (
            ([(236, 350), (206, 372), (176, 420)], 5, 9),
            ([(238, 430), (204, 470), (182, 540)], 6, 11),
            ([(236, 520), (200, 590), (150, 640)], 6, 13),
            ([(262, 330), (292, 400), (300, 480)], 4, 10),
            ([(248, 470), (282, 520), (322, 540)], 6, 11),
            ([(246, 600), (280, 640), (330, 650)], 6, 12),
            ([(240, 690), (180, 720), (110, 700)], 6, 14),
            ([(128, 470), (150, 560), (140, 680)], 4, 14),
        ):
            fold = spline(mirror(line, flip) + (vec(6, 9) if flip else 0))
            taper = width * np.sin(np.linspace(0.15, 3.0, len(fold)))
            relief += depth * (
                canvas.stroke(fold, taper, 5) - 0.8 * canvas.stroke(fold + vec(7, 5), taper, 6)
            )
    return relief


def _top(canvas: Canvas, form: np.ndarray, weave: np.ndarray) -> None:
    edge = points("-76,244 -70,276 -44,316 0,333 44,316 70,276 76,244")
    shape = np.concatenate([spline(edge), [(130, 760), (-130, 760)]])
    mask = canvas.polygon(shape)
    relief = form + 4 * canvas.polygon(shape, 2.5)
    for start, end, depth in (
        (-40, -16, 3),
        (-12, -4, 2.5),
        (22, 6, 3),
        (52, 26, 3.5),
        (-62, -34, 3.5),
    ):
        fold = spline([(start, 342), ((start + end) / 2 + 4, 430), (end, 560), (end, 700)])
        relief += depth * canvas.stroke(fold, np.linspace(3, 12, len(fold)), 5)
    color = _cloth(relief, canvas.scale, rgb("efe6da")) * (1 + 0.018 * weave[..., None])
    canvas.paint(color, mask)
    hem = spline(edge) + vec(0, 5)
    canvas.tint(rgb("a58f7e"), 0.35 * canvas.stroke(hem, 1.4, 0.6))


def _lapels(canvas: Canvas, form: np.ndarray, weave: np.ndarray) -> None:
    for flip in (False, True):
        shape = mirror(_LAPEL, flip)
        # Only the long edges are curved; their end points stay corners.
        edge = np.concatenate(
            [
                spline(shape[:4], samples=8),
                spline(shape[4:10], samples=8),
                spline(shape[10:], samples=8),
            ]
        )
        shadow = canvas.polygon(edge + vec(5, 8), 6)
        mask = canvas.polygon(edge)
        covered = canvas.rgba[..., 3].copy()
        canvas.tint(rgb("0e1f24"), 0.50 * shadow * (1 - mask))
        relief = form + 7 * canvas.polygon(edge, 3.5) + 2.5 * canvas.polygon(edge, 1.0)
        color = _cloth(relief, canvas.scale, rgb("31636d")) * (1 + 0.05 * weave[..., None])
        canvas.paint(color, mask)
        gorge = spline(mirror([(76, 290), (98, 318), (123, 346)], flip))
        canvas.tint(rgb("12282d"), 0.55 * canvas.stroke(gorge, 1.6, 0.7))
        canvas.rgba *= (np.maximum(covered, mask) / np.maximum(canvas.rgba[..., 3], 1e-3))[
            ..., None
        ]
