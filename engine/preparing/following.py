"""Follow a person through a film, and write its frames."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..command import Apart
from ..errors import InputError
from ..faces import Boxes, Tracker, smooth
from ..media.mp4 import Mp4Writer
from ..media.video import SPARE_CORES
from .film import Damaged, Film
from .folder import copy_film
from .measures import Measures
from .sheet import Sheet

# Without CABAC and deblocking (fastdecode) and B-frames, decoding takes a third of the time, and
# with a keyframe a second, it may begin anywhere.
X264 = {"preset": "veryfast", "crf": "16", "tune": "fastdecode", "bf": "0"}


@dataclass
class Found:
    """What was found in a film's frames."""

    measures: Measures
    sheet: Sheet
    boxes: Boxes
    sideways: int
    """How often most frames without a face must be turned to show one; 0 if that is of no use."""


def follow_all(
    film: Film, new_tracker: Callable[[], Tracker], folder: Path, *, progress: bool
) -> Found:
    """Find the person in all frames, and write them, unless the file can be copied."""
    while True:
        with tqdm(
            total=len(film), desc="prepare", unit=" frames", disable=None if progress else True
        ) as bar:
            try:
                if film.suffix_to_copy:
                    return _follow(film, new_tracker(), None, bar)
                with _writer(film, folder) as writer:
                    return _follow(film, new_tracker(), writer, bar)
            except Damaged:
                bar.leave = False
        with Apart() as apart:
            apart(film.leave_out_damage)


def _follow(film: Film, tracker: Tracker, writer: Mp4Writer | None, bar: Any) -> Found:
    measures, sheet, turns, last = Measures(), Sheet(len(film)), [0] * 4, None
    # It ends before the writer is closed, which must not happen while it encodes: after Ctrl-C it
    # waits for the call that was interrupted.
    with Apart() as apart:
        pictures = film.pictures()
        while (picture := apart(next, pictures, None)) is not None:
            number = len(measures)
            if picture.missing:
                measures.skip()
            elif picture.source == last:
                measures.repeat()
            else:
                last = picture.source
                tracked = tracker.follow(picture.rgb)
                points = tracked.landmarks
                measures.add(picture.rgb, points, others=tracked.others, cut=tracked.cut)
                sheet.add(number, picture.rgb, points)
                turns[tracked.turns] += points is None and tracked.turns > 0
            if writer is not None:
                apart(writer.write_frame, picture.rgb)
            bar.update()
    boxes = smooth(measures.boxes, measures.cuts)
    return Found(measures, sheet, boxes, sideways=int(np.argmax(turns)))


def finish_frames(film: Film, folder: Path, kept: np.ndarray) -> Path | None:
    """Copy the film's file, or write the frames again without those that are not kept.

    Returns:
        The copy; None if there is none.

    Raises:
        InputError: the film is no longer what it was.
    """
    suffix = film.suffix_to_copy
    if kept.all():
        if suffix is None:
            return None
        copy = folder / f"frames{suffix}"
        copy_film(film.path, copy)
        return copy
    with _writer(film, folder) as writer, Apart() as apart:
        pictures = film.pictures()
        for keep in kept:
            try:
                picture = apart(next, pictures)
            except Damaged:
                raise InputError(f"{film.path} changed while it was in use") from None
            if keep:
                apart(writer.write_frame, picture.rgb)
    return None


def _writer(film: Film, folder: Path) -> Mp4Writer:
    return Mp4Writer(
        folder / "frames.mp4",
        height=film.height,
        width=film.width,
        fps=film.fps,
        x264={**X264, "g": str(max(round(film.fps), 1))},
        threads=0 if SPARE_CORES else 1,
    )
