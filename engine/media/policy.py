"""Refuse videos that cannot be used as an avatar's frames, and warn of faults in others."""

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

# "avatar": a render or a training, which uses every frame as it is, because each has a face box.
# "film": making an avatar from a film, which may convert frames.
POLICY: dict[str, dict[Purpose, str]] = {
    # Counting frames would shift them by up to seconds. With a film, frames can be taken by their
    # times.
    "variable rate": {"avatar": REFUSE, "film": TAKE},
    "unusual rate": {"avatar": REFUSE, "film": TAKE},
    # A film's colors can be mapped to SDR, once.
    "HDR": {"avatar": REFUSE, "film": TAKE},
    "wide gamut": {"avatar": REFUSE, "film": TAKE},
    "unknown matrix": {"avatar": REFUSE, "film": REFUSE},
    "odd angle": {"avatar": REFUSE, "film": REFUSE},
    # All frames exist, but some look worse than they should.
    "interlaced": {"avatar": WARN, "film": WARN},
    "damaged": {"avatar": WARN, "film": WARN},
    "begins in the middle": {"avatar": WARN, "film": WARN},
    # An avatar's boxes are in stored pixels, so the mp4 of a render keeps the pixel aspect ratio. A
    # film can be converted to square pixels.
    "wide pixels": {"avatar": TAKE, "film": TAKE},
    # Applied by `Video`, as are edit lists.
    "turned or mirrored": {"avatar": TAKE, "film": TAKE},
}


def check_video(path: str | os.PathLike, stream: VideoStream, purpose: Purpose) -> None:
    """Check a video by `POLICY`: raise or warn for each fault.

    Raises:
        InputError: the video has a fault that is refused for this purpose.
    """
    for fault, message in _faults(stream):
        _act(fault, f"{path} {message}", purpose)


def check_damage(
    path: str | os.PathLike, damaged: Iterable[int], total: int, purpose: Purpose
) -> None:
    """Report damaged frames by `POLICY`."""
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
            "example: ffmpeg -i IN -vf fps=25 OUT.mp4",
        )
    if stream.fps is not None and not allowed(stream.fps):
        yield (
            "unusual rate",
            f"has {float(stream.fps):g} frames a second; expected {MIN_FPS} to {MAX_FPS}",
        )
    if stream.orientation is None:
        yield (
            "odd angle",
            "has a rotation that is not a multiple of 90 degrees; re-encode it upright",
        )
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
            f"has the colors of {PRIMARIES_WIDE[stream.primaries]}; convert them to BT.709, for "
            f"example: ffmpeg -i IN -vf colorspace=all=bt709{transfer}:format=yuv420p OUT.mp4",
        )
    if stream.matrix not in MATRICES:
        yield (
            "unknown matrix",
            f"has a color matrix (number {stream.matrix} of ITU-T H.273) that cannot be converted "
            "to RGB here; convert it, for example: ffmpeg -i IN -vf scale=out_color_matrix=bt709,"
            "format=yuv420p OUT.mp4",
        )
    if stream.left_out:
        yield (
            "begins in the middle",
            f"begins with {stream.left_out} frames that cannot be decoded, because their reference "
            "frames are missing or damaged; they are left out, and frame 0 is the next one",
        )
    if stream.interlaced:
        yield (
            "interlaced",
            "is interlaced: motion shows combing; deinterlace it, for example: ffmpeg -i IN -vf "
            "bwdif=mode=send_frame OUT.mp4",
        )


def _ranges(numbers: list[int]) -> str:
    """Format 3, 4, 5, 9 as "3-5, 9", with at most ten ranges."""
    ranges: list[str] = []
    for number in numbers:
        first, _, last = ranges[-1].partition("-") if ranges else ("", "", "")
        if ranges and int(last or first) == number - 1:
            ranges[-1] = f"{first}-{number}"
        else:
            ranges.append(str(number))
    more = f" and {len(ranges) - 10} more" if len(ranges) > 10 else ""
    return ", ".join(ranges[:10]) + more
