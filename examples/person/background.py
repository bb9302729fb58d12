"""The background: a studio out of focus."""

from functools import cache

import cv2
import numpy as np

from .paint import Canvas, bump, rgb, smoothstep, spline


@cache
def noise(size: tuple[int, int]) -> np.ndarray:
    """Return dither, (H, W) float32 levels, added before truncation to avoid banding."""
    grain = np.random.default_rng(7).normal(0, 0.45, (size[1], size[0])).astype(np.float32)
    return grain + np.float32(0.5)


@cache
def picture(size: tuple[int, int]) -> np.ndarray:
    """Return the background, (H, W, 3) float32 in [0, 1]."""
    canvas = Canvas(0, 0, 720, 1280, scale=0.5)
    x, y = canvas.grid()
    t = smoothstep(-100, 820, x + 0.25 * y)[..., None]
    wall = rgb("d9cfc4") * (1 - t) + rgb("8d8883") * t
    canvas.paint(wall, np.ones(canvas.shape))
    _window(canvas)
    _shelf(canvas)
    _plant(canvas)
    # A lens averages linear light over a disc.
    disc = np.hypot(*np.mgrid[-11:12, -11:12]) <= 11
    lens, edge = disc / np.float32(disc.sum()), cv2.BORDER_REPLICATE
    blurred = cv2.filter2D(canvas.rgba[..., :3] ** 2.2, -1, lens, borderType=edge)
    light = np.asarray(cv2.GaussianBlur(blurred, (0, 0), 2.5, borderType=edge))
    glow = bump(x, y, 60, 330, 330, 460)[..., None] * rgb("fff0dc") * np.float32(0.16)
    vignette = (
        1 - 0.36 * smoothstep(330, 900, np.hypot((x - 330) * 1.15, (y - 560) * 0.8))[..., None]
    )
    result = np.clip((light + glow) * vignette, 0, 1) ** np.float32(1 / 2.2)
    scale = max(size[0] / 720, size[1] / 1280)
    w, h = round(720 * scale), round(1280 * scale)
    result = cv2.resize(result, (max(w, size[0]), max(h, size[1])), interpolation=cv2.INTER_CUBIC)
    left, top = (result.shape[1] - size[0]) // 2, (result.shape[0] - size[1]) // 2
    return np.clip(result[top : top + size[1], left : left + size[0]], 0, 1)


@cache
def veil(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the window's glare and the lens's fall-off: frame = picture * first + second."""
    canvas = Canvas(0, 0, size[0], size[1], scale=1.0)
    x, y = canvas.grid()
    x, y = x / size[0], y / size[1]
    glare = (0.13 * bump(x, y, -0.02, 0.30, 0.34, 0.36))[..., None] * rgb("fff1dc")
    fade = (1 - 0.34 * smoothstep(0.58, 1.10, y) - 0.10 * smoothstep(0.55, 1.1, x))[..., None]
    return (fade * (1 - glare)).astype(np.float32), (fade * glare).astype(np.float32)


def _block(canvas: Canvas, x0, y0, x1, y1, color, alpha=1.0) -> None:
    canvas.paint(rgb(color), alpha * canvas.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]))


def _window(canvas: Canvas) -> None:
    _block(canvas, -40, 60, 190, 760, "fff6e8", 0.95)
    for x in (66, 182):
        _block(canvas, x, 60, x + 10, 760, "b3a596", 0.9)
    for y in (60, 290, 525, 752):
        _block(canvas, -40, y, 190, y + 10, "b3a596", 0.9)
    _block(canvas, -40, 770, 215, 795, "c6b8a8")


def _shelf(canvas: Canvas) -> None:
    _block(canvas, 500, 120, 760, 800, "5d5650", 0.55)
    rng = np.random.default_rng(14)
    tones = ["8a5a44", "c9b79e", "3f5560", "a7825c", "d8cdbd", "54655d", "7b4b45", "bfa98a"]
    for y in (290, 470, 650):
        _block(canvas, 490, y, 760, y + 16, "9a7b5c")
        x = 520.0
        while x < 720:
            w, h = rng.uniform(14, 30), rng.uniform(70, 115)
            if rng.random() < 0.72:
                _block(canvas, x, y - h, x + w - 2, y, tones[rng.integers(len(tones))], 0.85)
            x += w
    for x, y, r, color in (
        (655, 215, 26, "ffd9a0"),
        (560, 420, 15, "ffcf8c"),
        (690, 590, 18, "ffdca8"),
    ):
        turn = np.linspace(0, 2 * np.pi, 40)
        canvas.paint(
            rgb(color), canvas.polygon(np.stack([x + r * np.cos(turn), y + r * np.sin(turn)], 1))
        )


def _plant(canvas: Canvas) -> None:
    rng = np.random.default_rng(4)
    for i in range(26):
        angle = np.radians(-165 + 150 * i / 25 + rng.uniform(-8, 8))
        length = rng.uniform(120, 260)
        root = np.array([60 + rng.uniform(-20, 20), 960.0])
        tip = root + length * np.array([np.cos(angle), np.sin(angle)])
        side = np.array([-np.sin(angle), np.cos(angle)]) * rng.uniform(16, 30)
        middle = (root + tip) / 2
        leaf = spline([root, middle + side, tip, middle - side], closed=True)
        tone = rgb("5f7a55") * rng.uniform(0.6, 1.15)
        canvas.paint(tone, 0.9 * canvas.polygon(leaf))
    _block(canvas, 0, 950, 130, 1120, "b98d6d")
    _block(canvas, -40, 1110, 760, 1300, "6f5a4c", 0.7)
