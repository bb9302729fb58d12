"""Shading of skin: from a height field to colours."""

import cv2
import numpy as np

from .paint import rgb, vec

KEY = vec(-0.50, -0.52, 0.69)  # towards the window, up and to the left of the picture
FILL = vec(0.80, -0.05, 0.60)
TONE = rgb("f4c6a8")


def _linear(srgb):
    return np.asarray(srgb, np.float32) ** 2.2


def normals(height: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the unit normals of a height field (H, W) in units, with `scale` samples per unit."""
    dy, dx = np.gradient(height, 1 / scale)
    length = np.sqrt(dx * dx + dy * dy + 1)
    return -dx / length, -dy / length, 1 / length


def shade(height: np.ndarray, scale: float, tone=TONE) -> np.ndarray:
    """Return the colour (H, W, 3) of lit skin.

    Light wraps around the terminator, red most, which imitates subsurface scattering.
    """
    nx, ny, nz = normals(height, scale)
    facing_key = nx * KEY[0] + ny * KEY[1] + nz * KEY[2]
    facing_fill = nx * FILL[0] + ny * FILL[1] + nz * FILL[2]
    # Ambient occlusion: points below the blurred height receive less light.
    hollow = cv2.GaussianBlur(height, (0, 0), 9 * scale) - height
    occlusion = np.clip(1 - 0.030 * np.maximum(hollow, 0), 0.55, 1)
    wrap, power = vec(0.62, 0.46, 0.40), vec(1.15, 1.35, 1.42)
    key = np.clip((facing_key[..., None] + wrap) / (1 + wrap), 0, 1) ** power
    fill = np.clip((facing_fill[..., None] + 0.35) / 1.35, 0, 1)
    light = 0.97 * key * vec(1.0, 0.965, 0.92)
    light += 0.19 * fill * vec(0.92, 0.97, 1.06)
    light += 0.19 * (0.75 - 0.25 * ny)[..., None] * vec(1.0, 0.95, 0.93)
    light *= occlusion[..., None] ** vec(0.75, 1.0, 1.05)
    half = (KEY + vec(0, 0, 1)) / np.linalg.norm(KEY + vec(0, 0, 1))
    mirror = np.clip(nx * half[0] + ny * half[1] + nz * half[2], 0, 1)
    gloss = (0.050 * mirror**14 + 0.045 * mirror**60) * occlusion
    return np.clip(_linear(tone) * light + gloss[..., None], 0, 1) ** np.float32(1 / 2.2)
