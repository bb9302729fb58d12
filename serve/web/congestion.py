"""How many bits a player's network carries, from what the player reports."""

from .tracks import OPUS_BITRATE

START = 1_500_000  # bits a second, until a player has reported
LEAST = 150_000
LOSS = (0.02, 0.1)  # shares of packets: with less the bitrate rises, with more it falls
RISE = 1.08  # a report
STEP = 0.1  # smaller changes are not worth a keyframe


class Congestion:
    """The bitrate of a player's pictures.

    It follows the lost packets, as in draft-ietf-rmcat-gcc-02, section 6, and stays below the
    player's own estimate of what its network carries.

    Args:
        most: bits a second.

    Attributes:
        bitrate: of pictures, bits a second.
        loss: the share of packets that the last report says were lost.
    """

    def __init__(self, most: int):
        self._most = max(most, LEAST)
        self.bitrate = min(START, self._most)
        self._by_loss, self._estimate, self.loss = float(self.bitrate), float("inf"), 0.0

    def report(self, loss: float) -> bool:
        """Note the share of lost packets since the last report.

        Returns:
            Whether the bitrate has changed.
        """
        self.loss = loss
        if loss > LOSS[1]:
            self._by_loss *= 1 - 0.5 * loss
        elif loss < LOSS[0]:
            self._by_loss *= RISE
        self._by_loss = min(max(self._by_loss, LEAST), self._most)
        return self._follow()

    def estimate(self, bitrate: int) -> bool:
        """Note a player's estimate of the bits a second of all that it gets.

        Returns:
            Whether the bitrate has changed.
        """
        self._estimate = bitrate - OPUS_BITRATE
        return self._follow()

    def _follow(self) -> bool:
        wanted = int(min(max(min(self._by_loss, self._estimate), LEAST), self._most))
        if wanted == self.bitrate:
            return False
        if abs(wanted - self.bitrate) < STEP * self.bitrate and wanted not in (LEAST, self._most):
            return False
        self.bitrate = wanted
        return True
