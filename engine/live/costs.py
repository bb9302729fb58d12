"""What batches of an avatar cost, as measured."""

import time
from weakref import WeakKeyDictionary

from ..device.batch_sizes import batch_sizes, round_up_to
from .job import Job, Renderer

NEW = 0.1  # weight of a new measurement
MOST = 4  # times the old value that a new one counts at most


class BatchCosts:
    """Seconds that frames take in batches of each size.

    Args:
        batch_size: the largest.
    """

    def __init__(self, batch_size: int):
        self._sizes = batch_sizes(batch_size)
        self._seconds_per_frame: dict[int, float] = {}

    def add(self, frames: int, seconds: float) -> None:
        """Take a measurement of a whole batch."""
        size, new = round_up_to(self._sizes, frames), seconds / frames
        old = self._seconds_per_frame.get(size, new)
        new = min(new, MOST * old)  # one stall of the machine says nothing of what a frame costs
        self._seconds_per_frame[size] = (1 - NEW) * old + NEW * new

    def seconds(self, frames: int) -> float:
        """Return the seconds of a batch of that many frames; 0 as long as nothing is known."""
        size = round_up_to(self._sizes, min(frames, self._sizes[-1]))
        per_frame = self._seconds_per_frame.get(size, self.seconds_per_frame)
        return frames * per_frame

    @property
    def seconds_per_frame(self) -> float:
        """Seconds a frame in batches of the size that is best; 0 as long as nothing is known."""
        return min(self._seconds_per_frame.values(), default=0.0)


class DeviceCosts:
    """What batches cost, of each avatar on a device."""

    def __init__(self) -> None:
        self._costs: WeakKeyDictionary[Renderer, BatchCosts] = WeakKeyDictionary()

    def of(self, renderer: Renderer) -> BatchCosts:
        return self._costs.setdefault(renderer, BatchCosts(renderer.batch_size))

    def remove(self, renderer: Renderer) -> None:
        """Forget an avatar."""
        self._costs.pop(renderer, None)

    def measure(self, renderer: Renderer, job: Job, *, times: int = 3) -> None:
        """Learn what batches of one frame, and of as many as there may be, cost."""
        for frames in {1, renderer.batch_size}:
            took = []
            for _ in range(times):
                begin = time.perf_counter()
                rendered = renderer.render([job] * frames)
                if rendered.wait is not None:
                    rendered.wait()
                took.append(time.perf_counter() - begin)
            self.of(renderer).add(frames, min(took))
