"""What is done with videos whose frames cannot all be taken as they are."""

import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal

from ..errors import InputError
from .frame_rate import MAX_FPS, MIN_FPS, allowed
from .stream import MATRICES, PRIMARIES_WIDE, TRANSFERS_HDR, UNSPECIFIED, VideoStream

REFUSE, WARN, TAKE = "refuse", "warn", "take"
Purpose = Literal["avatar", "film"]

# A render and a training open an avatar, whose frames have boxes and are taken one by one.
# `engine.prepare` makes an avatar of a film, and may change frames.
POLICY: dict[str, dict[Purpose, str]] = {
    # Counting frames would put them up to seconds off; `prepare` takes them by their times.
    "variable rate": {"avatar": REFUSE, "film": TAKE},
    "unusual rate": {"avatar": REFUSE, "film": TAKE},
    # Neither can be undone exactly without a library for it.
    "HDR": {"avatar": REFUSE, "film": REFUSE},
    "wide gamut": {"avatar": REFUSE, "film": REFUSE},
    "unknown matrix": {"avatar": REFUSE, "film": REFUSE},
    "odd angle": {"avatar": REFUSE, "film": REFUSE},
    # Frames are there, only not as they should be.
    "interlaced": {"avatar": WARN, "film": WARN},
    "damaged": {"avatar": WARN, "film": WARN},
    "begins in the middle": {"avatar": WARN, "film": WARN},
    # An avatar's boxes count stored pixels, so the mp4 of a render says how wide they are shown;
    # `prepare` makes them square.
    "wide pixels": {"avatar": TAKE, "film": TAKE},
    # Applied by `Video`, as are edit lists.
    "turned or mirrored": {"avatar": TAKE, "film": TAKE},
}


def judge(path: str | os.PathLike, stream: VideoStream, purpose: Purpose) -> None:
    """Refuse a video, or warn of it, as `POLICY` has it for this purpose.

    Raises:
        InputError: it is refused.
    """
    for fault, message in _faults(stream):
        _act(fault, f"{path} {message}", purpose)


def judge_damage(
    path: str | os.PathLike, damaged: Iterable[int], total: int, purpose: Purpose
) -> None:
    """Say which frames are damaged, by the same policy."""
    numbers = sorted(damaged)
    message = (
        f"{path} is damaged; frames that are broken, or predicted from broken ones: "
        f"{_ranges(numbers)} ({len(numbers)} of {total})"
    )
    _act("damaged", message, purpose)


def _act(fault: str, message: str, purpose: Purpose) -> None:
    action = POLICY[fault][purpose]
    if action == REFUSE:
        raise InputError(message)
    if action == WARN:
        warnings.warn(message, stacklevel=4)


def _faults(stream: VideoStream) -> Iterator[tuple[str, str]]:
    if not stream.constant:
        steps = [(after - before) * stream.time_base for before, after in pairwise(stream.times)]
        yield (
            "variable rate",
            f"has a variable frame rate ({float(1000 * min(steps)):.0f} to "
            f"{float(1000 * max(steps)):.0f} ms from frame to frame); make it constant, for "
            "example: ffmpeg -i IN -vf fps=25 OUT.mp4, or with python -m engine.prepare",
        )
    if stream.fps is not None and not allowed(stream.fps):
        yield (
            "unusual rate",
            f"has {float(stream.fps):g} frames a second; {MIN_FPS} to {MAX_FPS} are allowed",
        )
    if stream.orientation is None:
        yield "odd angle", "is to be shown turned by an odd angle; write it upright"
    if stream.transfer in TRANSFERS_HDR:
        yield (
            "HDR",
            f"is HDR ({TRANSFERS_HDR[stream.transfer]}); map it to SDR, for example: ffmpeg -i IN "
            "-vf zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,tonemap=mobius:desat=0,"
            "zscale=t=bt709:m=bt709:r=tv,format=yuv420p OUT.mp4",
        )
    elif stream.primaries in PRIMARIES_WIDE:
        transfer = ":itrc=bt709" if stream.transfer in (0, UNSPECIFIED) else ""
        yield (
            "wide gamut",
            f"has the colours of {PRIMARIES_WIDE[stream.primaries]}; convert them to BT.709, for "
            f"example: ffmpeg -i IN -vf colorspace=all=bt709{transfer}:format=yuv420p OUT.mp4",
        )
    if stream.matrix not in MATRICES:
        yield (
            "unknown matrix",
            f"has a colour matrix (number {stream.matrix} of ITU-T H.273) that cannot be converted "
            "to RGB here; convert it, for example: ffmpeg -i IN -vf scale=out_color_matrix=bt709,"
            "format=yuv420p OUT.mp4",
        )
    if stream.left_out:
        yield (
            "begins in the middle",
            f"begins with {stream.left_out} frames that cannot be decoded, as those that they are "
            "predicted from are missing or damaged; they are left out, and frame 0 is the next one",
        )
    if stream.interlaced:
        yield (
            "interlaced",
            "is interlaced: what moves has combs; deinterlace it, for example: ffmpeg -i IN -vf "
            "bwdif=mode=send_frame OUT.mp4",
        )


def _ranges(numbers: list[int]) -> str:
    """3, 4, 5, 9 -> "3-5, 9"; at most ten of them."""
    said: list[str] = []
    for number in numbers:
        first, _, last = said[-1].partition("-") if said else ("", "", "")
        if said and int(last or first) == number - 1:
            said[-1] = f"{first}-{number}"
        else:
            said.append(str(number))
    return ", ".join(said[:10]) + (f" and {len(said) - 10} more" if len(said) > 10 else "")
