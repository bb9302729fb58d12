"""Mix the channels of a sound down to mono, for the networks, and to stereo, for the video."""

import warnings
from functools import cache

import numpy as np

THREE_DB = 2**-0.5
# Smallest fraction of the loudest channel's energy that a mono mix has to keep. A voice in one of
# two channels keeps 1/4; a voice in both, in phase, keeps more. Opposite phases keep almost
# nothing, and so does one of many channels without names.
LEAST_KEPT = 0.1
# Energy of a channel, for 1 Hz, before a sound that comes in pieces is judged: that of 50 ms at -40
# dB. Of less, a few samples may cancel by chance.
LEAST_ENERGY = 0.05 * 1e-4
AT_ONCE = 1 << 16  # samples, so that long pieces need little memory

# Weights of a channel in left, right and mono, by FFmpeg's name of the channel. They follow ITU-R
# BS.775, also for the speakers above and below the listener.
_LEFT, _RIGHT = (1.0, 0.0, THREE_DB), (0.0, 1.0, THREE_DB)
_SIDE_LEFT, _SIDE_RIGHT = (THREE_DB, 0.0, 0.5), (0.0, THREE_DB, 0.5)
_CENTRE, _BACK = (THREE_DB, THREE_DB, 1.0), (0.5, 0.5, 0.5)
_SILENT = (0.0, 0.0, 0.0)
_WEIGHTS = {
    **dict.fromkeys(("FL", "FLC", "DL", "WL", "BFL"), _LEFT),
    **dict.fromkeys(("FR", "FRC", "DR", "WR", "BFR"), _RIGHT),
    **dict.fromkeys(("BL", "SL", "SDL", "SSL", "TFL", "TSL", "TBL", "TTL"), _SIDE_LEFT),
    **dict.fromkeys(("BR", "SR", "SDR", "SSR", "TFR", "TSR", "TBR", "TTR"), _SIDE_RIGHT),
    **dict.fromkeys(("BC", "TC", "TFC", "TBC", "BFC"), _BACK),
    **dict.fromkeys(("LFE", "LFE2", "UNSD"), _SILENT),
    "FC": _CENTRE,
    "AMBI0": _CENTRE,  # the omnidirectional component of ambisonics
    **dict.fromkeys((f"AMBI{i}" for i in range(1, 1024)), _SILENT),
}


def to_mono(samples: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Mix (channels, n) float32 down to (n,).

    Two channels, and channels without known names, are averaged. Others are mixed by ITU-R BS.775:
    the center at 0 dB, front left and right at -3 dB, side and back at -6 dB, no LFE. The mix may
    exceed 1.
    """
    if len(samples) <= 2 or not _known(names):
        return samples.mean(axis=0, dtype=np.float32)
    return _weights(names)[2] @ samples


def to_stereo(samples: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Mix (channels, n) float32 down to (2, n).

    Two channels stay as they are. One channel, or the mean of channels without known names, becomes
    both. Others are mixed by ITU-R BS.775: center, side and back at -3 dB, no LFE. The mix may
    exceed 1.
    """
    if len(samples) == 2:
        return samples[::-1] if names == ("FR", "FL") else samples
    if len(samples) == 1 or not _known(names):
        return samples.mean(axis=0, dtype=np.float32)[None].repeat(2, axis=0)
    return _weights(names)[:2] @ samples


def _known(names: tuple[str, ...]) -> bool:
    return bool(names) and all(name in _WEIGHTS for name in names)


@cache
def _weights(names: tuple[str, ...]) -> np.ndarray:
    """Return the weight of each channel in left, right and mono, (3, channels) float32."""
    return np.array([_WEIGHTS[name] for name in names], np.float32).T.copy()


class Meter:
    """Measures, block by block, how much of a track's energy its mono mix keeps."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._channels: np.ndarray | None = None
        self._mix = 0.0
        self._changed = False

    def add(self, samples: np.ndarray, names: tuple[str, ...], mono: np.ndarray) -> None:
        """Count a block of (channels, n) float32 and its mixdown (n,)."""
        if self._channels is None:
            self._names, self._channels = names, np.zeros(len(samples))
        elif (self._names, len(self._channels)) != (names, len(samples)):
            self._changed = True
        if self._changed or len(samples) == 1:
            return
        self._channels += [np.dot(channel, channel) for channel in samples]
        self._mix += float(np.dot(mono, mono))

    def lost_channel(self) -> tuple[int, float] | None:
        """Find out whether the loudest channel is lost in the mono mix.

        Channels that the mix leaves out, such as LFE, do not count.

        Returns:
            The loudest channel, and the fraction of its energy that the mix keeps. None if that is
            at least `LEAST_KEPT`, or if the channels change in the middle of the track.
        """
        if self._changed or self._channels is None or len(self._channels) == 1:
            return None
        energy = self._channels
        if len(energy) > 2 and _known(self._names):
            energy = np.where(_weights(self._names)[2] > 0, energy, 0)
        loudest = int(energy.argmax())
        if not energy[loudest] or self._mix >= LEAST_KEPT * energy[loudest]:
            return None
        return loudest, self._mix / energy[loudest]


class Mixer:
    """Mixes a sound of one or two channels down to mono while it comes, whatever its pieces are.

    From where on the mix keeps less than `LEAST_KEPT` of the loudest channel's energy so far, that
    channel is taken alone, until it keeps more, and a warning says so. So a microphone whose
    balanced cable makes the right channel the negative of the left one is heard.

    Args:
        sample_rate: Hz.
    """

    def __init__(self, sample_rate: int):
        self._least = LEAST_ENERGY * sample_rate
        self._sums: np.ndarray | None = None  # of squares, of each channel and of the mix
        self._alone: int | None = None

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """Take (C, n) float32 samples, return the (n,) samples of their mix."""
        if len(sound) == 1 or not sound.shape[1]:
            return sound.mean(axis=0, dtype=np.float32)
        pieces = np.split(sound, range(AT_ONCE, sound.shape[1], AT_ONCE), axis=1)
        return np.concatenate([self._mix(piece) for piece in pieces])

    def _mix(self, sound: np.ndarray) -> np.ndarray:
        mono = sound.mean(axis=0, dtype=np.float32)
        if self._sums is None:
            self._sums = np.zeros((len(sound) + 1, 1))
        squares = np.square(np.vstack([sound, mono]), dtype=np.float64)
        sums = np.hstack([self._sums, squares]).cumsum(axis=1)[:, 1:]  # one after another
        self._sums = sums[:, -1:].copy()
        channels, kept = sums[:-1], sums[-1]
        loudest = channels.max(axis=0)
        lost = (loudest > self._least) & (kept < LEAST_KEPT * loudest)
        if not lost.any():
            return mono
        if self._alone is None:
            first = int(lost.argmax())
            self._alone = int(channels[:, first].argmax())
            warnings.warn(
                f"the mono mix of a sound keeps little of channel {self._alone}, the loudest; "
                f"channel {self._alone} is used alone",
                stacklevel=2,
            )
        return np.where(lost, sound[self._alone], mono)
