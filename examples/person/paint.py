"""Canvas and brushes: antialiased masks from splines, painted over each other with soft edges.

Coordinates are in *units* (see `pose.py`): x to the right, y down, origin between the eyes.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

_BITS = 6  # sub-pixel bits of OpenCV's fixed-point coordinates


def vec(*values: float) -> np.ndarray:
    """Return the values as float32 (N,)."""
    return np.array(values, np.float32)


def points(text: str) -> np.ndarray:
    """Parse '1,2 3,4', the syntax of an SVG polygon's `points`, into float32 (2, 2)."""
    return np.array([pair.split(",") for pair in text.split()], np.float32)


def spline(through, *, closed: bool = False, samples: int = 12) -> np.ndarray:
    """Return the Catmull-Rom curve through points (N, 2): float32 (M, 2).

    Args:
        samples: points per segment.
    """
    p = np.asarray(through, np.float32)
    p = np.concatenate(
        [p[-1:], p, p[:2]] if closed else [2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]]
    )
    t = np.linspace(0, 1, samples, endpoint=False, dtype=np.float32)[None, :, None]
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


def resample(curve: np.ndarray, count: int) -> np.ndarray:
    """Return `count` points at equal arc-length steps along a polyline (N, 2): float32."""
    length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(curve, axis=0).T))])
    at = np.linspace(0, length[-1], count)
    return np.stack([np.interp(at, length, curve[:, i]) for i in (0, 1)], axis=1).astype(np.float32)


def ribbon(line, width) -> np.ndarray:
    """Return the outline of a line; `width` is one number, or one per point."""
    p = np.asarray(line, np.float32)
    tangent = np.gradient(p, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], 1)
    normal /= np.maximum(np.hypot(*normal.T)[:, None], 1e-6)
    half = normal * (np.broadcast_to(np.asarray(width, np.float32), len(p))[:, None] / 2)
    return np.concatenate([p + half, (p - half)[::-1]])


def mirror(shape, flip: bool = True) -> np.ndarray:
    """Return the points, reflected in the vertical axis if `flip`."""
    return np.asarray(shape, np.float32) * (vec(-1, 1) if flip else 1)


def smoothstep(low: float, high: float, x):
    """Return 0 below `low`, 1 above `high`, and a cubic ramp between them."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def bump(x, y, cx: float, cy: float, sx: float, sy: float):
    """Return a Gaussian of height 1 at (cx, cy), with standard deviations sx and sy."""
    return np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))


def rgb(code: str) -> np.ndarray:
    """Parse 'e8c0a0' into float32 (3,) in [0, 1]."""
    return np.frombuffer(bytes.fromhex(code), np.uint8).astype(np.float32) / 255


@dataclass
class Canvas:
    """A rectangle of units with a premultiplied RGBA picture, float32 in [0, 1]."""

    x0: float
    y0: float
    x1: float
    y1: float
    scale: float = 2.0  # pixels per unit; more than the frame's, so that warping stays sharp
    rgba: np.ndarray = field(init=False, repr=False)

    def __post_init__(self):
        self.rgba = np.zeros((*self.shape, 4), np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return round((self.y1 - self.y0) * self.scale), round((self.x1 - self.x0) * self.scale)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return x (1, W) and y (H, 1) of the pixel centres, in units."""
        h, w = self.shape
        x = (np.arange(w, dtype=np.float32) + 0.5) / self.scale + np.float32(self.x0)
        y = (np.arange(h, dtype=np.float32) + 0.5) / self.scale + np.float32(self.y0)
        return x[None, :], y[:, None]

    def fixed(self, shape) -> np.ndarray:
        """Convert units to OpenCV's fixed-point pixel coordinates."""
        p = (np.asarray(shape, np.float32) - vec(self.x0, self.y0)) * self.scale - 0.5
        return np.round(p * (1 << _BITS)).astype(np.int32)

    def polygon(self, outline, blur: float = 0) -> np.ndarray:
        """Return the mask (H, W) of a filled polygon; `blur` is a standard deviation in units."""
        mask = np.zeros(self.shape, np.uint8)
        cv2.fillPoly(mask, [self.fixed(outline)], 255, cv2.LINE_AA, _BITS)
        return self.soften(mask.astype(np.float32) / 255, blur)

    def stroke(self, line, width, blur: float = 0) -> np.ndarray:
        """Return the mask of a line; `width` in units is one number, or one per point."""
        return self.polygon(ribbon(line, width), blur)

    def strokes(self, lines, blur: float = 0) -> np.ndarray:
        """Return one mask of many (line, width, strength), later ones painted over earlier ones."""
        mask = np.zeros(self.shape, np.uint8)
        for line, width, strength in lines:
            shape = [self.fixed(ribbon(line, width))]
            cv2.fillPoly(mask, shape, round(255 * strength), cv2.LINE_AA, _BITS)
        return self.soften(mask.astype(np.float32) / 255, blur)

    def soften(self, mask: np.ndarray, blur: float) -> np.ndarray:
        """Blur a mask by a standard deviation of `blur` units; 0 returns the mask."""
        if not blur:
            return mask
        return cv2.GaussianBlur(mask, (0, 0), blur * self.scale, borderType=cv2.BORDER_REPLICATE)

    def paint(self, color, alpha) -> None:
        """Paint `color` ((3,) or (H, W, 3)) over the picture, `alpha` (H, W) in [0, 1]."""
        alpha = np.asarray(alpha, np.float32)[..., None]
        self.rgba *= 1 - alpha
        self.rgba[..., :3] += alpha * np.asarray(color, np.float32)
        self.rgba[..., 3:] += alpha

    def tint(self, color, alpha) -> None:
        """Paint like `paint`, but only where the canvas is painted already."""
        alpha = np.asarray(alpha, np.float32)[..., None]
        color = np.asarray(color, np.float32) * self.rgba[..., 3:]
        self.rgba[..., :3] += alpha * (color - self.rgba[..., :3])

    def strands(self, paths: np.ndarray, colors: np.ndarray, widths) -> None:
        """Draw hairs: paths (N, M, 2) in units, colors (N, M, 3), widths (N,) in canvas pixels."""
        # Colours are unpremultiplied while drawing, because OpenCV's antialiasing ignores alpha.
        alpha = np.ascontiguousarray(np.round(self.rgba[..., 3] * 255).astype(np.uint8))
        base = self.rgba[..., :3] / np.maximum(self.rgba[..., 3:], 1e-3)
        mean = colors.reshape(-1, 3).mean(axis=0)
        base = np.where(self.rgba[..., 3:] > 0.02, base, mean)
        picture = np.round(np.clip(base, 0, 1) * 255).astype(np.uint8)
        fixed = self.fixed(paths)
        shades = np.clip(colors * 255, 0, 255).astype(int).tolist()
        for path, shade, width in zip(fixed, shades, widths, strict=True):
            cv2.polylines(alpha, [path], False, 255, int(width), cv2.LINE_AA, _BITS)
            steps = path.tolist()
            for a, b, color in zip(steps[:-1], steps[1:], shade, strict=False):
                cv2.line(picture, a, b, color, int(width), cv2.LINE_AA, _BITS)
        self.rgba[..., 3] = alpha / np.float32(255)
        self.rgba[..., :3] = picture / np.float32(255) * self.rgba[..., 3:]
