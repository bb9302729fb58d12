"""GPU memory that stays free for the networks and their buffers when frames are uploaded."""

from pathlib import Path

from ..errors import InputError
from ..plans.record import read_record

BUFFERS = 1 << 30  # bytes for buffers and weights
# The same with what a runtime needs for 25 frames, unless the record of a plan gives that.
RESERVED = BUFFERS + 25 * 96_000_000


def reserved_bytes(generator: Path | None, *, trusted: bool = True) -> int:
    """Return the bytes to keep free.

    They are more than `RESERVED` if the generator's plan, which must be trusted, needs much scratch
    memory.
    """
    if generator is None or not trusted:
        return RESERVED
    try:
        scratch = read_record(generator.with_suffix(".plan")).scratch_bytes or 0
    except InputError:
        scratch = 0
    return max(RESERVED, BUFFERS + scratch)
