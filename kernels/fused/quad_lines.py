"""Rows of pixels, resampled sideways: a lane has four neighbouring columns, with all channels.

The taps of four columns lie in a window of a few pixels, which is loaded and converted once. So a
column has a weight for each pixel of the window that any of its taps may fall on, whatever the box
or the size; most of these weights are zero in one lane or another.

In a window, the taps of column k begin FIRST[k] to REACH[k] pixels after those of the first, see
`reaches`.
"""

import triton
import triton.language as tl

from .quads import byte_of

Reach = tuple[int, int, int, int]  # of each of four columns


def reaches(source: int, target: int, slack: int) -> tuple[Reach, Reach]:
    """Return the pixels from a column's taps to those of the 0 to 3 next ones: at least, at most.

    Args:
        slack: by how many pixels the taps of the first column may be moved to be in the image.
    """
    least = (max(column * source // target - slack, 0) for column in range(4))
    most = (-(-column * source // target) for column in range(4))
    first0, first1, first2, first3 = least
    reach0, reach1, reach2, reach3 = most
    return (first0, first1, first2, first3), (reach0, reach1, reach2, reach3)


@triton.constexpr_function
def window_count(column, TAPS, FIRST, REACH):
    """Return how many pixels of the window may have a tap of a column."""
    return REACH[column] + TAPS - FIRST[column]


@triton.jit
def spread(
    tap, weights, base, edges,
    COLUMN: tl.constexpr, TAPS: tl.constexpr, FIRST: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    """Give the weights of a column's taps to the pixels of the window that they may fall on.

    Taps, of which the first is at pixel `tap`, are clamped to the edges, where a pixel gets the
    weights of several. The window begins at pixel `base`.
    """
    low, high = edges
    base += FIRST[COLUMN]
    places = ()
    for number in tl.static_range(TAPS):
        place = tl.minimum(tl.maximum(tap + number, low), high) - base
        places = places + (place,)  # noqa: RUF005 (Triton has no unpacking)
    result = ()
    for pixel in tl.static_range(window_count(COLUMN, TAPS, FIRST, REACH)):
        # The last tap may be on any pixel, the first one on none of the last ones.
        weight = tl.where(places[TAPS - 1] == pixel, weights[TAPS - 1], 0.0)
        for number in tl.static_range(TAPS - 1):
            if pixel <= window_count(COLUMN, TAPS, FIRST, REACH) - TAPS + number:
                weight += tl.where(places[number] == pixel, weights[number], 0.0)
        result = result + (weight,)  # noqa: RUF005
    return result


@triton.jit
def load_window(row, byte, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, ALIGNED: tl.constexpr):
    """Load PIXELS pixels of a row from byte `byte` on, as float32, channel after channel.

    The 4-byte words that hold them are loaded, and one more, so up to 3 bytes before them and up to
    7 after them. ALIGNED rows begin at multiples of 4 bytes.
    """
    BYTES: tl.constexpr = PIXELS * CHANNELS
    if not ALIGNED:
        address = row.to(tl.uint64)
        before = (address & 3).to(tl.int32)
        row = (address - before.to(tl.uint64)).to(row.dtype)
        byte += before
    at = row.to(tl.pointer_type(tl.uint32)) + (byte >> 2)
    word = tl.load(at)
    shift = ((byte & 3) * 8).to(tl.uint64)
    levels = ()
    for number in tl.static_range((BYTES + 3) // 4):
        if ALIGNED and CHANNELS == 4:
            whole = word
            word = tl.load(at + (number + 1)) if number + 1 < PIXELS else word
        else:
            after = tl.load(at + (number + 1))
            whole = ((word.to(tl.uint64) | (after.to(tl.uint64) << 32)) >> shift).to(tl.uint32)
            word = after
        for part in tl.static_range(4):
            if number * 4 + part < BYTES:
                level = byte_of(whole, part)
                if part == 3 and BYTES > 21:
                    # As the lowest bits of 2**23: so many conversions alone would be the limit.
                    value = (level | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
                else:
                    value = level.to(tl.float32)
                levels = levels + (value,)  # noqa: RUF005
    return levels


@triton.jit
def _window_value(
    levels, weights, CHANNEL: tl.constexpr, COLUMN: tl.constexpr,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, FIRST: tl.constexpr, REACH: tl.constexpr,
):  # fmt: skip
    START: tl.constexpr = FIRST[COLUMN] * CHANNELS + CHANNEL
    value = levels[START] * weights[0]
    for pixel in tl.static_range(1, window_count(COLUMN, TAPS, FIRST, REACH)):
        value += levels[START + pixel * CHANNELS] * weights[pixel]
    return value


@triton.jit
def window_line(
    row, byte, weights, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    FIRST: tl.constexpr, REACH: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Resample a row sideways, where one window holds the taps of all four columns.

    The window begins at byte `byte` of the row.

    Returns:
        Four columns of the first channel, then of the next one.
    """
    PIXELS: tl.constexpr = REACH[3] + TAPS
    levels = load_window(row, byte, CHANNELS, PIXELS, ALIGNED)
    line = ()
    for channel in tl.static_range(CHANNELS):
        for column in tl.static_range(4):
            value = _window_value(
                levels, weights[column], channel, column, CHANNELS, TAPS, FIRST, REACH
            )
            line = line + (value,)  # noqa: RUF005
    return line


@triton.jit
def pixel_line(
    row, bases, last, weights, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
    FIRST: tl.constexpr, REACH: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """Resample a row sideways, each column from a base of its own, up to pixel `last`.

    The bases are the first taps if APART, else all that of the window. Returns the same as
    `window_line`.
    """
    line = ()
    for channel in tl.static_range(CHANNELS):
        for column in tl.static_range(4):
            base = bases[column] + (0 if APART else FIRST[column])
            value = tl.load(row + (base * CHANNELS + channel)).to(tl.float32) * weights[column][0]
            for pixel in tl.static_range(
                1, TAPS if APART else window_count(column, TAPS, FIRST, REACH)
            ):
                at = tl.minimum(base + pixel, last) * CHANNELS + channel
                value += tl.load(row + at).to(tl.float32) * weights[column][pixel]
            line = line + (value,)  # noqa: RUF005
    return line


@triton.jit
def four(a, b, c, d):
    """Join four columns: (LANES,) each -> (LANES, 4)."""
    joined = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(joined, (a.shape[0], 4))
