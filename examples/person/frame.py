"""The whole person: layers warped by the pose, painted back to front."""

import cv2
import numpy as np

from . import background, body, eyes, face, hair
from .mouth import MOUTH_BOX, jaw, mouth_canvas
from .paint import Canvas, smoothstep
from .pose import EYES, SCALE, SIZE, Mouth, Pose, fit, head_matrix

_REACH = 24  # units; no layer deviates further from the rigid motion of the head


class _View:
    """A region of the frame and its mapping from pixels to units."""

    def __init__(
        self, pose: Pose, mouth: Mouth, size: tuple[int, int], region: tuple[int, int, int, int]
    ):
        self.pose, self.jaw, self.size, self.region = pose, jaw(mouth), size, region
        self.head = head_matrix(pose, size)
        self.picture = background.picture(size)[region[1] : region[3], region[0] : region[2]].copy()

    def _window(self, box: tuple[float, ...], rise: float) -> tuple[int, int, int, int]:
        """Return the part of the region (pixels) that a layer in that box (units) can cover."""
        # The body lags behind the head.
        dx, dy = _REACH + abs(self.pose.x), rise + abs(self.pose.y)
        x, y = np.array([box[0] - dx, box[2] + dx]), np.array([box[1] - dy, box[3] + dy])
        corners = self.head @ np.stack([x[[0, 1, 0, 1]], y[[0, 0, 1, 1]], np.ones(4)])
        left, top = np.floor(corners.min(axis=1)).astype(int).tolist()
        right, bottom = np.ceil(corners.max(axis=1)).astype(int).tolist()
        x0, y0, x1, y1 = self.region
        return max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)

    def touches(self, box: tuple[float, ...]) -> bool:
        """Return whether a layer in that box that only turns with the head shows in the region."""
        x0, y0, x1, y1 = self._window(box, -abs(self.pose.y))
        return x0 < x1 and y0 < y1

    def over(self, canvas: Canvas, where, *, shadow: bool = False) -> None:
        """Paint `canvas` over the picture; `where(view, x, y)` maps head units to canvas units."""
        x0, y0, x1, y1 = self._window((canvas.x0, canvas.y0, canvas.x1, canvas.y1), _REACH)
        if x0 >= x1 or y0 >= y1:
            return
        px = np.arange(x0, x1, dtype=np.float32)[None, :] + np.float32(0.5)
        py = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5)
        back = np.linalg.inv(self.head[:, :2])
        a = back.astype(np.float32)
        b = (back @ self.head[:, 2]).astype(np.float32)
        x, y = where(self, a[0, 0] * px + a[0, 1] * py - b[0], a[1, 0] * px + a[1, 1] * py - b[1])
        x = ((x - canvas.x0) * canvas.scale - 0.5).astype(np.float32)
        y = ((y - canvas.y0) * canvas.scale - 0.5).astype(np.float32)
        layer = cv2.remap(canvas.rgba, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        left, top = self.region[:2]
        target = self.picture[y0 - top : y1 - top, x0 - left : x1 - left]
        target *= 1 - layer[..., 3:]
        if not shadow:
            target += layer[..., :3]


def _turned(view: _View, x, y):
    """Map head units to a face that looks ahead: protruding parts move most when it turns."""
    round_ = np.maximum(1 - (x / 150) ** 2, 0) * np.maximum(1 - ((y + 10) / 230) ** 2, 0)
    nose = np.exp(-0.5 * ((x / 24) ** 2 + ((y - 46) / 26) ** 2))
    return x - view.pose.yaw * (13 * round_ + 4 * nose), y


def _jawed(view: _View, x, y):
    """Map like `_turned`, with the chin moved back up to its position at rest."""
    x, y = _turned(view, x, y)
    return x, y - view.jaw * smoothstep(96, 156 + view.jaw, y)


def _jaw_shadow(view: _View, x, y):
    x, y = _turned(view, x, y)
    # Only near the chin: nothing outside the face box may move with the mouth.
    return x, y - 0.5 * view.jaw * (1 - smoothstep(185, 222, y))


def _browed(view: _View, x, y):
    x, y = _turned(view, x, y)
    return x, y + 4.5 * view.pose.brow


def _standing(view: _View, x, y):
    """Map head units to units of the body, which only breathes."""
    head, (scale, left, top) = view.head, fit(view.size)
    px = head[0, 0] * x + head[0, 1] * y + head[0, 2]
    py = head[1, 0] * x + head[1, 1] * y + head[1, 2]
    bx = ((px - left) / scale - EYES[0]) / SCALE
    by = ((py - top) / scale - EYES[1]) / SCALE
    rise = view.pose.breath * smoothstep(190, 330, by) * (1 - 0.5 * smoothstep(420, 760, by))
    bx = bx * (1 - 0.006 * rise) - 0.25 * view.pose.x / SCALE
    return bx, by + 3.6 * rise - 0.15 * view.pose.y / SCALE


def _between(low: float, high: float):
    """Return a map that follows the head above `low` and the body below `high`."""

    def where(view: _View, x, y):
        bx, by = _standing(view, x, y)
        hx, hy = _turned(view, x, y)
        weight = smoothstep(low, high, y)
        return hx + (bx - hx) * weight, hy + (by - hy) * weight

    return where


def draw(
    pose: Pose,
    mouth: Mouth = Mouth(),  # noqa: B008 - frozen
    *,
    size: tuple[int, int] = SIZE,
    region: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """Draw the person.

    Args:
        pose: head, eyes, brows and breath.
        mouth: shape of the mouth.
        size: width and height of the whole frame in pixels.
        region: x0, y0, x1, y1 in pixels, end-exclusive: draw only this part of the frame.

    Returns:
        (H, W, 3) uint8 RGB: the frame or its region. The same arguments give the same pixels.

    Raises:
        ValueError: the region is empty or not inside the frame.
    """
    x0, y0, x1, y1 = region = region or (0, 0, *size)
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        raise ValueError(f"region {region} is not inside a frame of {size[0]}x{size[1]}")
    view = _View(pose, mouth, size, region)
    view.over(hair.back(), _between(110, 330))
    view.over(body.neck(), _between(150, 262))
    view.over(body.clothes(), _between(-100, -50))
    view.over(body.chin_shadow(), _jaw_shadow, shadow=True)
    view.over(face.face(), _jawed)
    for flip in (True, False):
        if view.touches(eyes.EYE_BOXES[flip]):
            view.over(eyes.eye(flip, pose), _turned)
    view.over(eyes.brows(), _browed)
    if view.touches(MOUTH_BOX):
        view.over(mouth_canvas(mouth), _turned)
    view.over(hair.front(), _between(110, 330))
    keep, glare = (part[y0:y1, x0:x1] for part in background.veil(size))
    noise = background.noise(size)[y0:y1, x0:x1, None]
    return np.clip((view.picture * keep + glare) * 255 + noise, 0, 255).astype(np.uint8)
