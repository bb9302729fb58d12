"""The figures of a film, and what is said about them: errors and warnings."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from ..errors import InputError
from ..faces import Boxes
from ..faces.boxes import LONGEST_GAP
from .lips import FEWEST, Lips, compare_lips
from .measures import Measures
from .sound import Survey, speech_fraction

Gaps = Literal["interpolate", "cut", "refuse"]

LEAST_BOX, SMALL_BOX = 64, 160  # pixels
TURNED = 0.3, 0.7  # of `Measures.turned`
DARK = 40  # levels of luma
DRIFT, DRIFT_SECONDS = 0.15, 2.0  # relative change of the light, in means of so many seconds
DOUBLED = 0.02  # fraction of frames
CLIPPED = 0.001  # fraction of samples
LEAST_SPEECH = 0.3  # fraction of the frames
SHORT = 60  # seconds
OUT = 2  # pixels of the face box that may be out of the frame
ENDS_APART = 0.4  # seconds between the ends of the sound and the picture
LAG, SURE, UNSURE = 2, 0.3, 0.15  # frames; correlations of lips and sound
SHOWN = 5  # places that a message names


@dataclass(frozen=True)
class FaceFigures:
    """The face, in the frames that are kept."""

    frames_without: int
    """Frames of the film without a face."""
    frames_missing: int
    """Those among them that are left out, and at whose times the film has no picture."""
    gaps: list[tuple[int, int, bool]]
    """Successive frames without a face: the first one, the end (exclusive), whether their boxes
    are interpolated. Others are left out. Numbers are those of the film at the avatar's rate."""
    cuts: list[int]
    """First frames of new shots."""
    box_min: int
    """Side of the smallest face box in pixels."""
    box_median: int
    box_max: int
    turned_min: float
    """Where the nose is, from 0, at one cheek, to 1."""
    turned_max: float
    turned_frames: int
    other_faces: int
    """Frames with other faces."""
    chin_out: int
    """Frames whose chin is out of the picture."""
    box_out: int
    """Frames whose face box is partly out of the picture."""
    luma: float
    """Median luma of the face, 0 to 255."""
    luma_drift: float
    """Largest relative difference of luma between parts of two seconds."""
    repeated: int
    """Frames that show what the one before shows."""


@dataclass(frozen=True)
class SoundFigures:
    """The sound."""

    rate: int
    channels: int
    seconds: float
    """From the film's first frame to the end of the sound."""
    peak: float
    clipped: float
    """Fraction of the samples at full scale."""
    speech: float
    """Fraction of the frames with speech."""
    compared: int
    """Frames with a face, whose lips are compared with the sound."""
    lips: Lips | None
    """The lag of the sound behind the lips in frames, and their correlation; None if they cannot
    be compared."""


def face_figures(
    measures: Measures, boxes: Boxes, kept: np.ndarray, height: int, width: int, fps: Fraction
) -> FaceFigures:
    """Compute the figures of a film of which at least one frame is kept."""
    found = ~np.isnan(measures.boxes[:, 0])
    seen = found & kept
    final = boxes.boxes[kept]
    sides = final[:, 2] - final[:, 0]
    turned = measures.turned[seen]
    chin = measures.chin[seen]
    out = (final.min(axis=1) < -OUT) | (final[:, 2] > width + OUT) | (final[:, 3] > height + OUT)
    chin_out = (chin < 0).any(axis=1) | (chin[:, 0] > width) | (chin[:, 1] > height)
    luma = measures.luma[seen]
    luma = luma[~np.isnan(luma)]
    return FaceFigures(
        frames_without=int((~found).sum()),
        frames_missing=int((measures.missing & ~kept).sum()),
        gaps=[(gap.start, gap.stop, gap.filled) for gap in boxes.gaps],
        cuts=list(boxes.cuts),
        box_min=int(sides.min()),
        box_median=int(np.median(sides)),
        box_max=int(sides.max()),
        turned_min=round(float(turned.min()), 3),
        turned_max=round(float(turned.max()), 3),
        turned_frames=int(((turned < TURNED[0]) | (turned > TURNED[1])).sum()),
        other_faces=int((measures.others[kept] > 0).sum()),
        chin_out=int(chin_out.sum()),
        box_out=int(out.sum()),
        luma=round(float(np.median(luma)) if luma.size else 0.0, 1),
        luma_drift=round(_drift(measures.luma[kept], fps), 3),
        repeated=int(measures.repeated[kept].sum()),
    )


def sound_figures(
    survey: Survey, openness: np.ndarray, loudness: np.ndarray, kept: np.ndarray, fps: Fraction
) -> SoundFigures:
    """Compute the figures of the sound.

    Args:
        openness: (N,) of the lips in all frames, kept or not; NaN without a face.
        loudness: (N,) dB of the same frames.
    """
    openness = np.where(kept, openness, np.nan)
    lips = compare_lips(openness, loudness, float(fps))
    return SoundFigures(
        rate=survey.rate,
        channels=survey.channels,
        seconds=round(survey.seconds, 3),
        peak=round(survey.peak, 4),
        clipped=round(survey.clipped, 5),
        speech=round(speech_fraction(loudness[kept]), 3),
        compared=int((~np.isnan(openness)).sum()),
        lips=None if lips is None else Lips(lips.lag, round(lips.correlation, 3)),
    )


def frames_to_keep(
    path: object,
    boxes: Boxes,
    measures: Measures,
    gaps: Gaps,
    fps: Fraction,
    sideways: int,
) -> np.ndarray:
    """Decide which frames become frames of the avatar.

    Args:
        gaps: what to do with frames without one.
        sideways: how often the film has to be turned by 90 degrees to show a face, if that is all
            that is wrong with it.

    Returns:
        (N,) bool.

    Raises:
        InputError: no face was found, or not in frames that must have one.
    """
    found = ~np.isnan(measures.boxes[:, 0])
    if not found.any():
        if sideways:
            transpose = {1: "transpose=cclock", 2: "hflip,vflip", 3: "transpose=clock"}[sideways]
            raise InputError(
                f"{path}: the person lies on the side or stands on the head; turn the film, for "
                f"example: ffmpeg -i IN -vf {transpose} OUT.mp4"
            )
        raise InputError(f"{path}: no face was found in its {len(found)} frames")
    bad = [
        gap
        for gap in boxes.gaps
        if gaps == "refuse" or (gaps == "interpolate" and gap.stop - gap.start > LONGEST_GAP)
    ]
    if bad:
        places = _places([(gap.start, gap.stop) for gap in bad], fps)
        missing = _missing(sum(int(measures.missing[gap.start : gap.stop].sum()) for gap in bad))
        allowed = "none" if gaps == "refuse" else f"at most {LONGEST_GAP} frames in succession"
        raise InputError(
            f"{path}: no face was found in {places}{missing}; expected {allowed}. --gaps cut "
            "leaves such parts out"
        )
    return boxes.valid


def errors_of(path: object, face: FaceFigures) -> Iterator[str]:
    """Yield what makes an avatar of the film useless."""
    if face.box_median < LEAST_BOX:
        yield (
            f"{path}: the face box has {face.box_median} pixels a side; expected at least "
            f"{LEAST_BOX}, better {SMALL_BOX} or more. Film from nearer, or with more pixels"
        )


def warnings_of(
    face: FaceFigures,
    sound: SoundFigures | None,
    *,
    frames: int,
    whole: int,
    doubled: int,
    own_rate: Fraction | None,
    fps: Fraction,
) -> Iterator[str]:
    """Yield what makes an avatar of the film worse than it could be, one line each.

    Args:
        frames: number of frames that are kept.
        whole: number of all frames, kept or not.
        doubled: how many of the film's frames were repeated to get the rate.
        own_rate: the film's; None if it is variable.
    """
    seconds = float(frames / fps)
    if seconds < SHORT:
        yield f"the film has {seconds:.1f} s; a few minutes are better, {SHORT} s the least"
    filled = [(start, stop) for start, stop, fill in face.gaps if fill]
    if filled:
        yield f"no face was found in {_places(filled, fps)}; the face boxes are interpolated"
    lost = [(start, stop) for start, stop, fill in face.gaps if not fill]
    if lost:
        missing = _missing(face.frames_missing)
        yield f"no face was found in {_places(lost, fps)}{missing}; left out, with the sound"
    if face.cuts:
        cuts = ", ".join(_time(cut, fps) for cut in face.cuts[:SHOWN])
        more = _more(len(face.cuts))
        yield f"the picture jumps at {cuts}{more}; film without cuts"
    if face.other_faces:
        yield (
            f"other faces are in {face.other_faces} frames; the one nearest to the last is "
            "followed (--person N chooses another)"
        )
    if face.box_min < SMALL_BOX:
        yield (
            f"the face box has {face.box_min} pixels at its smallest ({face.box_median} in the "
            f"middle); expected {SMALL_BOX} or more, or the mouth will be blurred"
        )
    if face.turned_frames:
        yield (
            f"the head is turned away in {face.turned_frames} frames (the nose is at "
            f"{face.turned_min:.2f} to {face.turned_max:.2f} of the face; expected {TURNED[0]} to "
            f"{TURNED[1]})"
        )
    if face.chin_out:
        yield f"the chin is out of the picture in {face.chin_out} frames"
    elif face.box_out:
        yield f"the face is partly out of the picture in {face.box_out} frames"
    if face.luma < DARK:
        yield f"the face is dark: its luma is {face.luma:.0f} of 255; expected {DARK} or more"
    if face.luma_drift > DRIFT:
        yield (
            f"the light on the face changes by {face.luma_drift:.0%}; expected at most "
            f"{DRIFT:.0%}. Switch off automatic exposure"
        )
    if face.repeated > DOUBLED * frames:
        rate = ""
        if doubled and own_rate != fps:  # else they are in the place of damaged ones
            rate = f", {doubled} of them to get {float(fps):g} a second"
            rate += " (--fps source keeps the rate)" if own_rate else ""
        yield (
            f"{face.repeated} frames ({face.repeated / frames:.1%}) show what the one before "
            f"shows{rate}; expected at most {DOUBLED:.0%}"
        )
    if sound is not None:
        yield from _warnings_of_sound(sound, float(whole / fps), fps)


def _warnings_of_sound(sound: SoundFigures, seconds: float, fps: Fraction) -> Iterator[str]:
    if sound.clipped > CLIPPED:
        yield (
            f"{sound.clipped:.1%} of the sound is clipped; expected at most {CLIPPED:.1%}. Record "
            "at a lower level"
        )
    if sound.speech < LEAST_SPEECH:
        yield f"there is speech in {sound.speech:.0%} of the film; expected {LEAST_SPEECH:.0%}"
    if sound.seconds < seconds - ENDS_APART:
        yield f"the sound ends {seconds - sound.seconds:.1f} s before the picture"
    if sound.seconds > seconds + ENDS_APART:
        yield f"the last {sound.seconds - seconds:.1f} s of the sound have no picture; left out"
    if sound.compared < FEWEST:
        yield (
            f"the lips and the sound cannot be compared in {sound.compared} frames with a face; "
            f"expected {FEWEST} or more"
        )
    elif sound.lips is None or sound.lips.correlation < UNSURE:
        found = "nothing" if sound.lips is None else f"a correlation of {sound.lips.correlation}"
        yield (
            f"the person does not seem to speak: the lips and the sound have {found} in common; "
            f"expected {SURE} or more"
        )
    elif sound.lips.correlation > SURE and abs(sound.lips.lag) >= LAG:
        lag = sound.lips.lag
        yield (
            f"the sound is {abs(lag)} frames ({1000 * abs(lag) / float(fps):.0f} ms) "
            f"{'later' if lag > 0 else 'earlier'} than the lips (correlation "
            f"{sound.lips.correlation}); shift it, for example: ffmpeg -itsoffset "
            f"{-lag / float(fps):.3f} -i IN -i IN -map 1:v -map 0:a -c copy OUT.mp4"
        )


def _drift(luma: np.ndarray, fps: Fraction) -> float:
    """Return the range of the means of parts of two seconds, relative to their median."""
    length = max(round(DRIFT_SECONDS * fps), 1)
    parts = [luma[i : i + length] for i in range(0, len(luma), length)]
    if len(parts) > 1 and len(parts[-1]) < length / 2:
        parts.pop()
    means = np.array([np.nanmean(part) for part in parts if not np.isnan(part).all()])
    middle = float(np.median(means)) if means.size else 0.0
    return float(np.ptp(means)) / middle if middle else 0.0


def _missing(count: int) -> str:
    return f" ({count} of them have no picture near their time)" if count else ""


def _places(ranges: list[tuple[int, int]], fps: Fraction) -> str:
    """Describe ranges of frames, and when they are: "6 frames at 0:01.20"."""
    named = [
        f"{stop - start} frame{'s' * (stop - start > 1)} at {_time(start, fps)}"
        for start, stop in ranges[:SHOWN]
    ]
    return ", ".join(named) + _more(len(ranges))


def _time(frame: int, fps: Fraction) -> str:
    minutes, hundredths = divmod(round(100 * frame / fps), 6000)
    return f"{minutes}:{hundredths / 100:05.2f}"


def _more(count: int) -> str:
    return f" and {count - SHOWN} more" if count > SHOWN else ""
