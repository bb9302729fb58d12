"""What a launch has to do, as a formula of its shapes; each kernel has one beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """The work of one launch."""

    runs: Mapping[str, int]  # of each part (a function of the kernel), by all programs together
    moved: int  # bytes that no implementation can do without reading or writing
    made: int  # bytes of the results
    items: int  # frames or images
    # 128-byte lines that one access of 4 bytes or less touches, where a part's are not adjacent.
    lines: Mapping[str, float] = field(default_factory=dict)
