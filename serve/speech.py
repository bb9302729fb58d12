"""What was pushed to a live session and not shown yet."""

from engine.live import Piece
from engine.live.stream import MOST_UTTERANCES

MESSAGE_SECONDS = 60.0  # of sound in a message, at most
INLINE_SECONDS = 0.1  # of sound whose conversion takes less than a millisecond
WAITING_SECONDS = 590.0  # of speech that may wait to be shown; a session takes 600 s
WAITING_BYTES = 64 << 20  # of such speech, as float32


class Backlog:
    """Speech that waits in a session.

    Attributes:
        open: whether the utterance goes on.
        utterances: whose end was not taken yet, the open one included.
        waiting: samples of these, about.
        most: samples that may wait.
    """

    def __init__(self, sample_rate: int, channels: int):
        self._rate = sample_rate
        most = min(WAITING_SECONDS * sample_rate, WAITING_BYTES / (4 * channels))
        self.most = int(max(most, MESSAGE_SECONDS * sample_rate))
        self.open, self.utterances, self.waiting = False, 0, 0

    def has_room(self, count: int, ends: int = 0) -> bool:
        """Return whether there is room for so many samples.

        Args:
            ends: of utterances, that are on their way to the session.
        """
        ended = self.utterances - self.open + ends
        return self.waiting + count <= self.most and ended < MOST_UTTERANCES

    @property
    def full(self) -> str:
        """What to tell a client whose speech has no room."""
        waiting, most = (n / self._rate for n in (self.waiting, self.most))
        return (
            f"{waiting:.0f} s of speech wait to be shown; expected at most {most:.0f} s with what "
            f"comes now, in at most {MOST_UTTERANCES} utterances"
        )

    def begin(self) -> None:
        """Note that samples are in the session. Not before, because who asks for a piece before
        gets silence."""
        if not self.open:
            self.open = True
            self.utterances += 1

    def flush(self) -> None:
        self.open = False

    def clear(self) -> None:
        """Note an interruption."""
        self.open, self.utterances, self.waiting = False, 0, 0

    def take(self, piece: Piece) -> None:
        """Note a piece that was taken."""
        if piece.speaking:
            self.waiting = max(self.waiting - piece.sound.shape[1], 0)
        if piece.end:
            self.utterances = max(self.utterances - 1, 0)
