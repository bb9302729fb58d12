"""When the next frame of each session should be made."""

import heapq
import itertools

from .job import Renderer
from .session import SessionState

Entry = tuple[float, int, SessionState]  # when, whose turn, the session


class Plan:
    """The sessions that have a frame to make, in two heaps. For one thread.

    A session has one entry that counts. Those before it stay in a heap until they are its first.

    Attributes:
        real_time: entries of sessions in real time.
        asked: those of sessions as fast as they are taken, in what time the others leave.
    """

    def __init__(self) -> None:
        self.real_time: list[Entry] = []
        self.asked: list[Entry] = []
        self._turns: dict[SessionState, int] = {}  # which entry of a session is the one that counts
        self._turn = itertools.count()

    def __len__(self) -> int:
        """Return how many sessions have a frame to make."""
        return len(self._turns)

    def put(self, state: SessionState, when: float | None) -> None:
        """Plan a session's next frame from that time on; None for not now."""
        if when is None:
            self.drop(state)
            return
        self._turns[state] = turn = next(self._turn)
        heapq.heappush(self._heap_of(state), (when, turn, state))

    def put_back(self, entry: Entry) -> None:
        """Return an entry that was taken out of a heap."""
        heapq.heappush(self._heap_of(entry[2]), entry)

    def drop(self, state: SessionState) -> None:
        """Plan nothing for a session."""
        self._turns.pop(state, None)

    def counts(self, entry: Entry) -> bool:
        """Whether an entry is its session's last one."""
        return self._turns.get(entry[2]) == entry[1]

    def skip(self) -> None:
        """Let both heaps begin with an entry that counts."""
        for heap in (self.real_time, self.asked):
            while heap and not self.counts(heap[0]):
                heapq.heappop(heap)

    def remove(self, renderer: Renderer) -> None:
        """Forget all sessions of an avatar."""
        for state in [state for state in self._turns if state.renderer is renderer]:
            del self._turns[state]
        for heap in (self.real_time, self.asked):
            heap[:] = [entry for entry in heap if entry[2].renderer is not renderer]
            heapq.heapify(heap)

    def _heap_of(self, state: SessionState) -> list[Entry]:
        return self.real_time if state.clock == "wall" else self.asked
