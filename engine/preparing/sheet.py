"""A contact sheet of a film: what was found, for the eye."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..faces import Landmarks
from .measures import nose_place

SHOWN = 8  # frames spread over the film
GAPS = 4  # frames without a face, at most
SIDE, TEXT, COLUMNS = 240, 26, 4  # pixels, pixels, pictures in a row
AROUND = 2.0  # side of the part that is shown, by the extent of the mesh


@dataclass
class Picture:
    """A part of a frame, reduced.

    Attributes:
        number: of the frame.
        image: SIDE x SIDE.
        left, top, scale: from pixels of the frame to those of the image.
        points: (468, 2) in pixels of the frame; None without a face.
    """

    number: int
    image: Image.Image
    left: float
    top: float
    scale: float
    points: np.ndarray | None


class Sheet:
    """Collects pictures while the film is read; boxes are drawn at the end, when they are known.

    Args:
        count: frames of the film.
    """

    def __init__(self, count: int):
        self._wanted = [round((i + 0.5) * count / SHOWN - 0.5) for i in range(SHOWN)]
        self._spread: list[Picture] = []
        self._gaps: list[Picture] = []
        self._turned: tuple[float, Picture] | None = None
        self._smallest: tuple[float, Picture] | None = None
        self._in_gap = False

    def add(self, number: int, rgb: np.ndarray, landmarks: Landmarks | None) -> None:
        """Take a frame, (H, W, 3) uint8, if it is worth to be shown."""
        if landmarks is None:
            if not self._in_gap and len(self._gaps) < GAPS:
                self._gaps.append(_whole(number, rgb))
            self._in_gap = True
            return
        self._in_gap = False
        points = landmarks.points[:, :2]
        if self._wanted and number >= self._wanted[0]:  # or the first one with a face after it
            while self._wanted and number >= self._wanted[0]:
                self._wanted.pop(0)
            self._spread.append(_around(number, rgb, points))
        away, size = abs(nose_place(points) - 0.5), float(np.ptp(points[:, 0]))
        if self._turned is None or away > self._turned[0] + 0.005:
            self._turned = away, _around(number, rgb, points)
        if self._smallest is None or size < 0.99 * self._smallest[0]:
            self._smallest = size, _around(number, rgb, points)

    def draw(self, boxes: np.ndarray, fps: float) -> Image.Image:
        """Draw all pictures.

        Args:
            boxes: (N, 4) face boxes of all frames, whether kept or not.
        """
        shown = [(picture, "") for picture in self._spread]
        shown += [(found[1], "turned most") for found in [self._turned] if found]
        shown += [(found[1], "smallest") for found in [self._smallest] if found]
        shown += [(picture, "no face") for picture in self._gaps]
        rows = -(-len(shown) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + TEXT)), "white")
        pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
        for place, (picture, label) in enumerate(shown):
            x, y = place % COLUMNS * SIDE, place // COLUMNS * (SIDE + TEXT)
            box = boxes[picture.number]
            sheet.paste(_drawn(picture, box), (x, y))
            size = f"{box[2] - box[0]} pixels" if picture.points is not None else ""
            line = "   ".join(filter(None, [f"{picture.number / fps:.2f} s", size, label]))
            pen.text((x + SIDE / 2, y + SIDE + TEXT / 2), line, "black", font, anchor="mm")
        return sheet


def _drawn(picture: Picture, box: np.ndarray) -> Image.Image:
    image = picture.image.copy()
    if picture.points is None:
        return image
    pen = ImageDraw.Draw(image)
    place = (picture.points - (picture.left, picture.top)) * picture.scale
    for x, y in place:
        pen.point((x, y), "cyan")
    if box[2] > box[0]:
        corners = (box.reshape(2, 2) - (picture.left, picture.top)) * picture.scale
        pen.rectangle(tuple(corners.ravel()), outline="yellow", width=2)
    return image


def _around(number: int, rgb: np.ndarray, points: np.ndarray) -> Picture:
    """Show a face; what is out of the frame is black."""
    low, high = points.min(axis=0), points.max(axis=0)
    side = max(AROUND * float((high - low).max()), 8.0)
    left, top = (low + high) / 2 - side / 2
    image = Image.fromarray(rgb).transform(
        (SIDE, SIDE),
        Image.Transform.EXTENT,
        (left, top, left + side, top + side),
        Image.Resampling.BILINEAR,
    )
    return Picture(number, image, left, top, SIDE / side, points)


def _whole(number: int, rgb: np.ndarray) -> Picture:
    image = Image.new("RGB", (SIDE, SIDE))
    small = Image.fromarray(rgb)
    small.thumbnail((SIDE, SIDE))
    image.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return Picture(number, image, 0, 0, small.width / rgb.shape[1], None)
