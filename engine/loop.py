"""How the avatar's frames repeat."""

import operator
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Literal, get_args

from .errors import InputError, shortened

Loop = Literal["pingpong", "wrap"]
LOOPS: tuple[Loop, ...] = get_args(Loop)


def frame_numbers(count: int, loop: Loop = "pingpong", start: int | None = None) -> Iterator[int]:
    """Return the number of the avatar's frame for each video frame, without end.

    Args:
        count: frames of the avatar.
        loop: "pingpong": start, start + 1, ..., count - 1, count - 2, ..., 0, 1, ...; "wrap":
            start, start + 1, ... modulo count.
        start: by default 1 for "pingpong" (0 for a single frame), 0 for "wrap".

    Raises:
        InputError: `loop` is another word, or `start` is not the number of a frame.
    """
    if loop not in LOOPS:
        raise InputError(f"loop is {loop!r}; expected one of: {', '.join(LOOPS)}")
    if start is None:
        start = min(1, count - 1) if loop == "pingpong" else 0
    try:
        start = operator.index(start)
    except TypeError:
        raise InputError(f"start frame is {shortened(start)}; expected an integer") from None
    if not 0 <= start < count:
        raise InputError(f"start frame is {start}; expected 0 to {count - 1}")
    back = range(count - 2, 0, -1) if loop == "pingpong" else ()
    return islice(cycle([*range(count), *back]), start, None)
