"""How many bits a player's network carries, from what the player reports."""

from .tracks import OPUS_BITRATE

START = 1_500_000  # bits a second, until a player has reported
LEAST = 150_000
UNPROVEN = 600_000  # the least for an estimate that neither losses nor a delay confirm
LOSS = (0.02, 0.1)  # shares of packets: with less the bitrate rises, with more it falls
DELAYED = 0.1  # seconds that a round trip takes longer than the shortest one
RISE = 1.08  # a report
FALL = 0.95  # of an estimate that is lower than the one before
STEP = 0.1  # smaller changes are not worth a keyframe


class Congestion:
    """The bitrate of a player's pictures.

    It follows the lost packets, as in draft-ietf-rmcat-gcc-02, section 6, and the player's own
    estimates of what its network carries. Browsers estimate much too little, for minutes, where
    little is sent for a while: after a still face, say. So an estimate counts when it falls, and as
    long as the round trips or the losses confirm it.

    Args:
        most: bits a second.

    Attributes:
        bitrate: of pictures, bits a second.
    """

    def __init__(self, most: int):
        self._most = max(most, LEAST)
        self.bitrate = min(START, self._most)
        self._by_loss, self._by_estimate = float(self.bitrate), float(self._most)
        self._estimate, self._shortest = float("inf"), float("inf")
        self._congested = False

    def report(self, loss: float, round_trip: float | None = None) -> bool:
        """Note the share of lost packets since the last report, and the seconds of a round trip.

        Returns:
            Whether the bitrate has changed.
        """
        delayed = False
        if round_trip is not None:
            self._shortest = min(self._shortest, max(round_trip, 0.0))
            delayed = round_trip - self._shortest > DELAYED
        self._congested = delayed or loss >= LOSS[0]
        if loss > LOSS[1]:
            self._by_loss *= 1 - 0.5 * loss
        elif loss < LOSS[0]:
            self._by_loss *= RISE
        if self._congested:
            self._by_estimate = min(self._by_estimate, self._estimate)
        else:
            self._by_estimate *= RISE
        return self._follow()

    def estimate(self, bitrate: int) -> bool:
        """Note a player's estimate of the bits a second of all that it gets.

        Returns:
            Whether the bitrate has changed.
        """
        pictures = float(min(bitrate, 10 * self._most) - OPUS_BITRATE)
        falls, self._estimate = pictures < FALL * self._estimate, pictures
        if falls or self._congested:
            lowest = LEAST if self._congested else UNPROVEN
            self._by_estimate = min(self._by_estimate, max(pictures, lowest))
        self._by_estimate = max(self._by_estimate, pictures)
        return self._follow()

    def _follow(self) -> bool:
        self._by_loss = self._bounded(self._by_loss)
        self._by_estimate = self._bounded(self._by_estimate)
        wanted = int(min(self._by_loss, self._by_estimate))
        if wanted == self.bitrate:
            return False
        if abs(wanted - self.bitrate) < STEP * self.bitrate and wanted not in (LEAST, self._most):
            return False
        self.bitrate = wanted
        return True

    def _bounded(self, bitrate: float) -> float:
        return min(max(bitrate, LEAST), self._most)
