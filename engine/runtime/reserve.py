"""Memory of a GPU that whoever fills it first leaves to the networks and their buffers."""

from pathlib import Path

from ..errors import InputError
from ..plans.record import read_record

RESERVED = 2 << 30  # bytes, at least
BUFFERS = 1 << 30  # bytes, for buffers and weights where a plan says what it takes besides


def reserved_bytes(generator: Path | None) -> int:
    """Return the bytes to leave: more than usual where the generator has a plan, given or beside
    it, that takes much to run."""
    if generator is None:
        return RESERVED
    try:
        scratch = read_record(generator.with_suffix(".plan")).scratch_bytes or 0
    except InputError:
        scratch = 0
    return max(RESERVED, BUFFERS + scratch)
