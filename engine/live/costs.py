"""What batches of an avatar cost, as measured."""

from ..device.batch_sizes import batch_sizes, round_up_to

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
