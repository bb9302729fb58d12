"""What the scheduler asks of a renderer."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from .features import Window


class Job(NamedTuple):
    """A frame to make.

    Attributes:
        slot, frame: number of the session's feature ring, and of the frame in its stream.
        picture: number of the avatar's frame.
        silent: whether all features that the frame reads are those of silence.
    """

    slot: int
    frame: int
    picture: int
    silent: bool


class Rendered(NamedTuple):
    """Frames that are made, or being made on a GPU.

    Attributes:
        frames: one for each job, which are the caller's to keep.
        wait: waits until they are there; None if they are.
    """

    frames: list[Tensor]
    wait: Callable[[], object] | None = None


class Rings(Protocol):
    """The features of many streams."""

    def open(self) -> int | None:
        """Return the number of a free ring; None if there is none."""
        ...

    def close(self, slot: int) -> None:
        """Free a ring."""
        ...


class Renderer(Protocol):
    """Makes features and frames of one avatar, for one thread.

    Attributes:
        batch_size: the most frames at once.
        rings: which streams there are.
    """

    batch_size: int

    @property
    def rings(self) -> Rings: ...

    def hear(self, windows: list[Window]) -> None:
        """Compute features of any number of streams."""
        ...

    def render(self, jobs: list[Job]) -> Rendered:
        """Make frames, at most `batch_size`, whose features were computed before."""
        ...
