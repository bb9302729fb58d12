"""How long speech takes from its coming to its going out again, as a picture with sound."""

from collections import deque

from .session import EncodedPiece

MOST_MARKS = 3000


class Delay:
    """Compares when samples came with when they were handed out.

    Attributes:
        milliseconds: of the last frame that played samples of this client; None before there is
            one.
    """

    def __init__(self) -> None:
        self._marks = deque[tuple[int, float]](maxlen=MOST_MARKS)  # samples before it, time
        self._ends = deque[int](maxlen=MOST_MARKS)  # of utterances, in samples
        self._pushed = self._played = 0
        self.milliseconds: int | None = None

    def pushed(self, samples: int, now: float) -> None:
        """Note samples that came."""
        self._marks.append((self._pushed, now))
        self._pushed += samples

    def flushed(self) -> None:
        """Note the end of an utterance."""
        self._ends.append(self._pushed)

    def interrupted(self) -> None:
        """Note that what waits is dropped."""
        self._marks.clear()
        self._ends.clear()
        self._played = self._pushed

    def taken(self, piece: EncodedPiece, now: float) -> None:
        """Note a piece that is handed out."""
        if piece.speaking and self._played < self._pushed:
            while len(self._marks) > 1 and self._marks[1][0] <= self._played:
                self._marks.popleft()
            if self._marks:
                self.milliseconds = round(1000 * (now - self._marks[0][1]))
            self._played += piece.sound.shape[1]
        if piece.end and self._ends:
            self._played = self._ends.popleft()
