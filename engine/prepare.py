"""`python -m engine.prepare`: a film of a person in, an avatar folder out."""

import argparse
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from .avatar import Avatar
from .cache import VERSION
from .command import Apart, Parser, program, run
from .errors import InputError, printable
from .faces import Detector, Mesh, Tracker, face_networks, smooth
from .media.mp4 import Mp4Writer
from .media.video import SPARE_CORES
from .preparing.figures import (
    FaceFigures,
    Gaps,
    SoundFigures,
    errors_of,
    face_figures,
    frames_to_keep,
    sound_figures,
    warnings_of,
)
from .preparing.film import Damaged, Film
from .preparing.folder import check_folder, copy_film, new_folder
from .preparing.measures import Measures
from .preparing.sheet import Sheet
from .preparing.sound import survey_sound, write_speech

StrPath = str | os.PathLike[str]
Rate = Literal["25", "source"]
Person = int | Literal["largest"]
# Without CABAC and deblocking (fastdecode) and B-frames, decoding takes a third of the time, and
# with a keyframe a second, it may begin anywhere.
X264 = {"preset": "veryfast", "crf": "16", "tune": "fastdecode", "bf": "0"}


@dataclass(frozen=True)
class Summary:
    """What was made of a film."""

    output: StrPath
    """The avatar folder."""
    frames: int
    fps: Fraction
    copied: bool
    """Whether the frames are those of the film's file, not encoded again."""
    face: FaceFigures
    sound: SoundFigures | None
    """None with `audio=False`."""
    warnings: list[str]
    """What is wrong with the film, one line each."""

    def __str__(self) -> str:
        face, sound = self.face, self.sound
        parts = [
            f"{self.output}: {self.frames} frames, {float(self.frames / self.fps):.1f} s at "
            f"{float(self.fps):.6g} a second{', copied as they are' if self.copied else ''}",
            f"face boxes of {face.box_min} to {face.box_max} pixels",
        ]
        if sound is not None:
            parts.append(f"speech {sound.speech:.0%}")
        if sound is not None and sound.lips is not None:
            parts.append(f"lips and sound {sound.lips.lag:+} frames ({sound.lips.correlation:.2f})")
        parts.append("no warnings" if not self.warnings else f"{len(self.warnings)} warnings")
        return "; ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    options = vars(_parse(arguments))
    return run(lambda: print(printable(prepare(**options))), interrupted="nothing was written")


def prepare(
    film: StrPath,
    output: StrPath,
    *,
    fps: Rate = "25",
    gaps: Gaps = "interpolate",
    person: Person = "largest",
    audio: bool = True,
    force: bool = False,
    models: Path | None = None,
    progress: bool = True,
) -> Summary:
    """Make an avatar folder of a film. The arguments are the command's options.

    The folder has the native layout, without networks: `avatar.json`, the frames, `boxes.json`, and
    the speech in `aud.wav`; `prepare.json` has all figures, and `prepare.png` shows what was found.
    Warnings say what is wrong with the film. After an error, nothing is written.

    Raises:
        InputError: the film or an option cannot be used.
    """
    target = Path(output)
    check_folder(target, film, force=force)
    with Apart() as apart, _recorded() as said, new_folder(target) as folder:
        source = apart(Film, film, None if fps == "source" else Fraction(25))
        survey = None
        if audio:
            survey = apart(survey_sound, film, source.zero)
            for note in survey.notes:
                warnings.warn(note, stacklevel=2)
        new_tracker, versions = open_tracker(models, person)
        found = _follow_all(source, new_tracker, folder, apart, progress=progress)
        kept, face = _judge(source, found, gaps)
        copied = _finish_frames(source, folder, kept, apart)
        sound = None
        if survey is not None:
            loudness = apart(
                write_speech,
                folder / "aud.wav",
                film,
                survey,
                zero=source.zero,
                fps=source.fps,
                kept=kept,
            )
            sound = sound_figures(survey, found.measures.openness, loudness, kept, source.fps)
        count = int(kept.sum())
        for line in warnings_of(
            face,
            sound,
            frames=count,
            doubled=source.doubled,
            left_out=source.left_out,
            fps=source.fps,
        ):
            warnings.warn(f"{film}: {line}", stacklevel=2)
        summary = Summary(output, count, source.fps, copied is not None, face, sound, list(said))
        _write_records(folder, target.name, source, summary, found, kept, copied)
        options = {"fps": fps, "gaps": gaps, "person": person, "audio": audio}
        record = _record(source, summary, options, versions)
        (folder / "prepare.json").write_text(json.dumps(record, indent=2) + "\n")
        _check(folder, count)
    return summary


def open_tracker(
    models: Path | None, person: Person
) -> tuple[Callable[[], Tracker], dict[str, str]]:
    """Open the networks that find faces.

    Returns:
        A function that makes a tracker for a film, and the networks' hashes by name.
    """
    files = face_networks(models)
    on_gpu = torch.cuda.is_available() and (
        "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    )
    device = "cuda" if on_gpu else "cpu"
    detector, mesh = Detector(files.detector, device), Mesh(files.mesh, device)
    hashes = {name: _sha256(path) for name, path in files._asdict().items()}
    return lambda: Tracker(detector, mesh, person), hashes


# --- the film, frame by frame ---------------------------------------------------------------------


@dataclass
class _Found:
    """What was found in a film's frames."""

    measures: Measures
    sheet: Sheet
    boxes: Any
    """`faces.Boxes`"""
    sideways: int
    """How often most frames without a face must be turned to show one; 0 if that is of no use."""


def _follow_all(
    film: Film, new_tracker: Callable[[], Tracker], folder: Path, apart: Apart, *, progress: bool
) -> _Found:
    """Find the person in all frames, and write them, unless the file can be copied."""
    while True:
        with tqdm(
            total=len(film), desc="prepare", unit=" frames", disable=None if progress else True
        ) as bar:
            try:
                if film.suffix_to_copy:
                    return _follow(film, new_tracker(), None, apart, bar)
                with _writer(film, folder) as writer:
                    return _follow(film, new_tracker(), writer, apart, bar)
            except Damaged:
                bar.leave = False
        apart(film.leave_out_damage)


def _follow(
    film: Film, tracker: Tracker, writer: Mp4Writer | None, apart: Apart, bar: Any
) -> _Found:
    measures, sheet, turns = Measures(), Sheet(len(film)), [0] * 4
    pictures, last = film.pictures(), None
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
    return _Found(
        measures, sheet, smooth(measures.boxes, measures.cuts), sideways=int(np.argmax(turns))
    )


def _judge(film: Film, found: _Found, gaps: Gaps) -> tuple[np.ndarray, FaceFigures]:
    """Decide which frames are kept, and compute the figures of the face.

    Raises:
        InputError: no avatar can be made of the film.
    """
    has_face = ~np.isnan(found.measures.boxes[:, 0])
    kept = frames_to_keep(film.path, found.boxes, has_face, gaps, film.fps, found.sideways)
    face = face_figures(found.measures, found.boxes, kept, film.height, film.width)
    for line in errors_of(film.path, face):
        raise InputError(line)
    return kept, face


def _finish_frames(film: Film, folder: Path, kept: np.ndarray, apart: Apart) -> Path | None:
    """Copy the film's file, or write the frames again without those that are not kept.

    Returns:
        The copy; None if there is none.
    """
    suffix = film.suffix_to_copy
    if kept.all():
        if suffix is None:
            return None
        copy = folder / f"frames{suffix}"
        apart(copy_film, film.path, copy)
        return copy
    with _writer(film, folder) as writer:
        pictures = film.pictures()
        for keep in kept:
            picture = apart(next, pictures)
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


# --- the folder -----------------------------------------------------------------------------------


def _write_records(
    folder: Path,
    name: str,
    film: Film,
    summary: Summary,
    found: _Found,
    kept: np.ndarray,
    copied: Path | None,
) -> None:
    """Write avatar.json, boxes.json and prepare.png."""
    fps = film.fps
    manifest = {
        "name": name,
        "fps": int(fps) if fps.denominator == 1 else str(fps),
        "frames": "frames.mp4" if copied is None else copied.name,
        "boxes": "boxes.json",
    }
    (folder / "avatar.json").write_text(json.dumps(manifest, indent=2) + "\n")
    rows = ",\n".join(json.dumps(row) for row in found.boxes.boxes[kept].tolist())
    (folder / "boxes.json").write_text(f"[\n{rows}\n]\n")
    found.sheet.draw(found.boxes.boxes, float(fps)).save(folder / "prepare.png")


def _record(
    film: Film, summary: Summary, options: dict[str, Any], networks: dict[str, str]
) -> dict[str, Any]:
    """Return what prepare.json says."""
    stream = film.video.stream
    return {
        "source": {
            "name": Path(film.path).name,
            "sha256": _sha256(film.path),
            "bytes": os.path.getsize(film.path),
            "container": film.video.container,
            "codec": film.video.codec,
            "height": stream.height,
            "width": stream.width,
            "pixel_aspect": str(stream.pixel_aspect),
            "bits": stream.bits,
            "transfer": stream.transfer,
            "primaries": stream.primaries,
            "interlaced": stream.interlaced,
            "fps": None if stream.fps is None else str(stream.fps),
            "frames": len(film.video),
        },
        "versions": {
            "viseme": VERSION,
            "av": metadata.version("av"),
            "onnxruntime": onnxruntime.__version__,
            "networks": networks,
        },
        "options": options,
        "frames": {
            "count": summary.frames,
            "fps": str(film.fps),
            "height": film.height,
            "width": film.width,
            "copied": summary.copied,
            "doubled": film.doubled,
            "left_out": film.left_out,
            "damaged": len(film.damaged),
            "cut_out": len(film) - summary.frames,
        },
        "face": asdict(summary.face),
        "sound": None if summary.sound is None else asdict(summary.sound),
        "warnings": summary.warnings,
    }


def _check(folder: Path, count: int) -> None:
    """Open the avatar as training and rendering do."""
    opened = Avatar.load(folder, networks=False)
    if len(opened) != count:
        raise RuntimeError(f"{len(opened)} frames were written, instead of {count}")


def _sha256(path: StrPath) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _recorded() -> Iterator[list[str]]:
    """Yield a list that gets all warnings, which are shown too."""
    said: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Any, *rest: Any, **more: Any) -> None:
            said.append(str(message))
            show(message, *rest, **more)

        warnings.showwarning = note
        yield said


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m engine.prepare",
        description="Make an avatar folder of a film of one person speaking.",
    )
    add = parser.add_argument
    add("film", metavar="FILM", help="a video with sound: mp4, mov, mkv, webm, ...")
    add("-o", "--output", required=True, metavar="DIR", help="new avatar folder")
    add(
        "--fps",
        choices=("25", "source"),
        default="25",
        help="frame rate: 25, which most networks are for, or the film's own (25)",
    )
    add(
        "--gaps",
        choices=("interpolate", "cut", "refuse"),
        default="interpolate",
        help="frames without a face: interpolate the boxes of up to 5 and refuse more, cut longer "
        "gaps out, or refuse all (interpolate)",
    )
    add(
        "--person",
        type=_person,
        default="largest",
        metavar="N|largest",
        help="whom to follow: the Nth from the left in the first frame with a face (largest)",
    )
    add("--no-audio", dest="audio", action="store_false", help="a film without sound")
    add("--force", action="store_true", help="replace an earlier preparation in DIR")
    add(
        "--models",
        type=Path,
        metavar="DIR",
        help="folder with the networks that find faces, for hosts without a package index",
    )
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return parser.parse_args(arguments)


def _person(text: str) -> Person:
    if text == "largest":
        return "largest"
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text}; expected largest, or a number from 1")
    return int(text)


if __name__ == "__main__":
    program(main)
