"""Which frames the contact sheet shows. Each frame has a gray of its own."""

import numpy as np

from engine.faces import Landmarks
from engine.preparing.sheet import COLUMNS, SIDE, TEXT, Sheet


def face(size: float = 60, nose: float = 0.5) -> Landmarks:
    """A face in the middle of a picture of 200 x 200."""
    points = np.full((468, 3), 100, np.float32)
    points[[234, 454], 0] = 100 - size / 2, 100 + size / 2
    points[1, 0] = 100 + (nose - 0.5) * size
    return Landmarks(points, 1.0)


def shown(frames: list[Landmarks | None], first: int = 0) -> list[int]:
    """Return the numbers of the frames on the sheet of a film."""
    count = first + len(frames)
    sheet = Sheet(count)
    for number, landmarks in enumerate([None] * first + frames):
        sheet.add(number, np.full((200, 200, 3), number, np.uint8), landmarks)
    pixels = np.asarray(sheet.draw(np.zeros((count, 4), int), 25.0))
    rows = len(pixels) // (SIDE + TEXT)
    tiles = [
        pixels[row * (SIDE + TEXT) + 30, column * SIDE + 30]
        for row in range(rows)
        for column in range(COLUMNS)
    ]
    return [int(tile[0]) for tile in tiles if tile[0] != 255]  # white: nothing there


def test_frames_of_all_parts():
    assert shown([face()] * 160) == [10, 30, 50, 70, 90, 110, 130, 150, 0, 0]


def test_a_part_without_a_face_has_no_picture():
    """Instead of the next eight frames with one, that would all be the same."""
    assert shown([face()] * 64, first=96) == [96, 110, 130, 150, 96, 96, 0]


def test_the_frames_with_the_most_turned_and_the_smallest_face():
    frames = [face()] * 160
    frames[40], frames[41], frames[42] = face(nose=0.3), face(nose=0.8), face(nose=0.6)
    frames[60], frames[61], frames[62] = face(50), face(40), face(55)
    assert shown(frames)[8:] == [41, 61]


def test_gaps():
    """The first frame of each of the first four."""
    frames = [face()] * 160
    for first in (20, 40, 60, 80, 100):
        frames[first : first + 5] = [None] * 5
    assert shown(frames)[10:] == [20, 40, 60, 80]
