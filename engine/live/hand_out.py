"""Frames that are made, on their way to the sessions."""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from .costs import DeviceCosts
from .job import Rendered, Renderer
from .piece import piece_of
from .session import SessionState, Waiter, finish
from .stream import BoundFrame


class Work(NamedTuple):
    """A frame of a session that is bound and waits for its picture."""

    state: SessionState
    bound: BoundFrame
    generation: int
    silent: bool


class Batch(NamedTuple):
    """A batch that is being made."""

    renderer: Renderer
    work: list[Work]
    rendered: Rendered
    begin: float


class HandOut:
    """Hands out frames to the sessions, and learns what their batches cost.

    Batches that are still being made, on a GPU, wait in a queue for a thread that calls `next`.

    Args:
        now: the clock, seconds.
        costs: to add to.
    """

    def __init__(self, now: Callable[[], float], costs: DeviceCosts):
        self._now, self._costs, self._last_made = now, costs, 0.0
        self._made: SimpleQueue[Batch | threading.Event | None] = SimpleQueue()

    def put(self, batch: Batch) -> None:
        """Hand out a batch, now if it is made."""
        if batch.rendered.wait is None:
            self._deliver(batch)
        else:
            self._made.put(batch)

    def mark(self, event: threading.Event) -> None:
        """Set an event after the batches that are there."""
        self._made.put(event)

    def end(self) -> None:
        """Let `next` return False after the batches that are there."""
        self._made.put(None)

    def next(self) -> bool:
        """Wait for a batch and hand it out; return False at the end."""
        return self._take(self._made.get())

    def take_all(self) -> None:
        """Hand out the batches that are there, where no thread does."""
        ended = False
        with suppress(Empty):
            while True:
                ended = not self._take(self._made.get_nowait()) or ended
        if ended:
            self.end()

    def _take(self, batch: Batch | threading.Event | None) -> bool:
        # A batch is kept no longer than this call, because it holds its avatar.
        if isinstance(batch, threading.Event):
            batch.set()
        elif batch is not None:
            self._deliver(batch)
        return batch is not None

    def _deliver(self, batch: Batch) -> None:
        renderer, work, rendered, begin = batch
        if rendered.wait is not None:
            rendered.wait()
        now, waiters = self._now(), list[Waiter]()
        for (state, bound, generation, _), frame in zip(work, rendered.frames, strict=True):
            with state.lock:
                state.in_flight -= 1
                if state.closed:
                    continue
                if generation == state.generation:
                    waiters += state.deliver(piece_of(bound, frame, state.fps), now)
                    state.forget()
                else:  # interrupted: there is room for another
                    state.wake()
        finish(waiters)
        speaking = sum(not item.silent for item in work)
        made = self._now()
        if speaking:
            # Batches overlap on a GPU: one takes the time since the one before it was made.
            self._costs.of(renderer).add(speaking, made - max(begin, self._last_made))
        self._last_made = made
