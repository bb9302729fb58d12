"""`python -m engine.prepare`: a film of a person in, an avatar folder out."""

import argparse
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch

from .command import Apart, Parser, program, run
from .errors import InputError, printable
from .faces import Detector, Mesh, Tracker, face_networks
from .files import Outputs
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
from .preparing.film import Film
from .preparing.folder import check_folder, new_folder
from .preparing.following import Found, finish_frames, follow_all
from .preparing.record import check_avatar, sha256, write_avatar, write_record
from .preparing.sound import survey_sound, write_speech

StrPath = str | os.PathLike[str]
Rate = Literal["25", "source"]
Person = int | Literal["largest"]


@dataclass(frozen=True)
class Summary:
    """What was made of a film."""

    output: StrPath
    """The avatar folder."""
    frames: int
    fps: Fraction
    copied: bool
    """Whether the frames are those of the film's file, not encoded again."""
    doubled: int
    """How many of the film's frames were repeated to get the rate."""
    left_out: int
    """How many were left out for it."""
    face: FaceFigures
    sound: SoundFigures | None
    """None with `audio=False`."""
    warnings: list[str]
    """What is wrong with the film, one line each."""

    def __str__(self) -> str:
        face, sound = self.face, self.sound
        parts = [
            f"{self.output}: {self.frames} frame{'s' * (self.frames != 1)}, "
            f"{float(self.frames / self.fps):.1f} s at {float(self.fps):.6g} a second"
            f"{', copied as they are' if self.copied else ''}",
            f"{self.doubled} frames repeated and {self.left_out} left out to get this rate",
            f"face boxes of {face.box_min} to {face.box_max} pixels",
        ]
        if sound is not None:
            parts.append(f"speech {sound.speech:.0%}")
        if sound is not None and sound.lips is not None:
            parts.append(f"lips and sound {sound.lips.lag:+} frames ({sound.lips.correlation:.2f})")
        count = len(self.warnings)
        parts.append(f"{count or 'no'} warning{'s' * (count != 1)}; look at prepare.png")
        return "; ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    options = vars(_parse(arguments))
    outputs = Outputs(options["output"])
    return run(lambda: print(printable(prepare(**options))), interrupted=outputs)


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
    # `apart` ends first: after Ctrl-C it waits for the call that was interrupted.
    with _recorded() as said, new_folder(target, film, force=force) as folder, Apart() as apart:
        source = apart(Film, film, None if fps == "source" else Fraction(25))
        survey = None
        if audio:
            survey = apart(survey_sound, film, source.zero)
            for note in survey.notes:
                warnings.warn(note, stacklevel=2)
        new_tracker, networks = open_tracker(models, person)
        found = follow_all(source, new_tracker, folder, progress=progress)
        kept, face = _judge(source, found, gaps, person)
        copied = finish_frames(source, folder, kept)
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
            whole=len(kept),
            doubled=source.doubled,
            own_rate=source.video.fps,
            fps=source.fps,
        ):
            warnings.warn(f"{film}: {line}", stacklevel=2)
        summary = Summary(
            output=output,
            frames=count,
            fps=source.fps,
            copied=copied is not None,
            doubled=source.doubled,
            left_out=source.left_out,
            face=face,
            sound=sound,
            warnings=list(said),
        )
        write_avatar(folder, target.absolute().name, source, found, kept, copied)
        write_record(
            folder,
            source,
            face,
            sound,
            frames=count,
            copied=summary.copied,
            options={"fps": fps, "gaps": gaps, "person": person, "audio": audio},
            networks=networks,
            warnings=summary.warnings,
        )
        check_avatar(folder, count)
        source.check_unchanged()
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
    hashes = {name: sha256(path) for name, path in files._asdict().items()}
    return lambda: Tracker(detector, mesh, person), hashes


def _judge(film: Film, found: Found, gaps: Gaps, person: Person) -> tuple[np.ndarray, FaceFigures]:
    """Decide which frames are kept, and compute the figures of the face.

    Raises:
        InputError: no avatar can be made of the film.
    """
    has_face = ~np.isnan(found.measures.boxes[:, 0])
    faces = int(found.measures.others.max())
    if person != "largest" and not has_face.any() and 0 < faces < person:
        raise InputError(
            f"{film.path}: --person is {person}, but no frame has more than {faces} "
            f"face{'s' * (faces > 1)}"
        )
    kept = frames_to_keep(film.path, found.boxes, found.measures, gaps, film.fps, found.sideways)
    face = face_figures(found.measures, found.boxes, kept, film.height, film.width, film.fps)
    for line in errors_of(film.path, face):
        raise InputError(line)
    return kept, face


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
