"""Images -> images of another size, between two pixels each way: the kernel of two modes.

A pixel of the result is between two columns of the source, and between two rows. The columns'
weights are whole numbers, of which a pair adds up to `total`; so a line (a row of the source,
resampled sideways) is one too, at most 255 times the total. A lane has four neighbouring columns.
Their pixels lie in a window of a few, which is loaded as words; instructions of the GPU pick two
bytes for each column and multiply them by its pair of weights. The sums begin at `start`, the bits
of a float32 of which the last one counts 1, and so they are the bits of that number plus the sum.

That number is a multiple of the total, 2**23 to 2**24, or one more, see below. So the value between
two lines is that number plus a sum too, rounded to a whole number: 1 / total of a level. Divided by
the total it is a whole number and a level, and the whole number goes away in the same instruction.

In "bilinear" it rounds to the next level; a value is off by less than 10**-4 of a level.

In "direct" it truncates, and the level is exact: `total` is the product of the rows' and columns'
denominators, so what is between two lines is the whole number S of the reference, S // total the
level. A row's weight is rounded twice, as a product of a reciprocal; `linear_plan` leaves out the
few sizes for which the value would be off by 0.5 or more before it is rounded. So it is exact after
that: N + S, where N is the number that the sums begin at. The reciprocal of the total is off by d,
less than 2**-24 of itself, so the quotient is off by (N + S) * d, less than 1, in units of
1 / total. If d is negative, N is one more: in either case, the quotient is too large by 0 or more,
less than 1.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..spec import ResizeMode
from . import instructions
from .instructions import dot, join, level, multiply_add, pick, store_levels
from .resize_plan import LANES, LinearPlan, reciprocal
from .sampling import clamp_to_edge


@triton.constexpr_function
def _numbers(places, word, first):
    """Return what `pick` takes to add the bytes of a word to those of the words before it.

    Args:
        places: of up to four bytes in consecutive words, ascending.
        word: number of the word.
        first: number of the first word, whose bytes have not been moved.
    """
    numbers = 0
    for number, place in enumerate(places):
        if place // 4 == word:
            numbers |= (place % 4 + (4 if word > first else 0)) << 4 * number
        elif place // 4 < word:
            numbers |= (place % 4 if word == first + 1 else number) << 4 * number
    return numbers


@triton.constexpr_function
def _places(channel, FIRST, PIXELS, CHANNELS):
    """Return where a window has a channel of up to four pixels, from pixel FIRST on."""
    return tuple(
        pixel * CHANNELS + channel for pixel in range(FIRST, min(FIRST + 4, PIXELS))
    )  # fmt: skip


@triton.constexpr_function
def _word_of(places, number):
    return places[number] // 4


@triton.jit
def _plane(words, CHANNEL: tl.constexpr, FIRST: tl.constexpr, PIXELS: tl.constexpr,
           CHANNELS: tl.constexpr):  # fmt: skip
    """Return a channel of four pixels of a window, or of those that there are."""
    PLACES: tl.constexpr = _places(CHANNEL, FIRST, PIXELS, CHANNELS)
    START: tl.constexpr = _word_of(PLACES, 0)
    STOP: tl.constexpr = _word_of(PLACES, -1)
    plane = words[START]
    if STOP == START and CHANNELS > 1:
        plane = pick(plane, plane, _numbers(PLACES, START, START))
    for number in tl.static_range(START + 1, STOP + 1):
        plane = pick(plane, words[number], _numbers(PLACES, number, START))
    return plane


@triton.jit
def _load_words(row, shift, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ALIGNED: tl.constexpr):
    """Load a window, of which the first word begins `shift` bits after `row` if ALIGNED."""
    if not ALIGNED:
        address = row.to(tl.uint64)
        before = address & 3
        shift = before.to(tl.uint32) * 8
        row = (address - before).to(row.dtype)
    at = row.to(tl.pointer_type(tl.uint32))
    BYTES: tl.constexpr = PIXELS * CHANNELS
    WHOLE: tl.constexpr = ALIGNED and CHANNELS == 4
    LAST: tl.constexpr = (BYTES - 1 + (0 if WHOLE else 3)) // 4
    word = tl.load(at)
    words = ()
    for number in tl.static_range((BYTES + 3) // 4):
        after = word
        if number + 1 == LAST and not WHOLE and BYTES <= 4 * LAST:
            # It may be after the row, which may be the last one, if no byte of it is needed.
            after = tl.load(at + LAST, mask=shift > (4 * LAST - BYTES) * 8, other=0)
        elif number < LAST:
            after = tl.load(at + (number + 1))
        words = words + (word if WHOLE else join(word, after, shift),)  # noqa: RUF005
        word = after
    return words


@triton.jit
def _row_start(number, picture):
    """Return the address of a row, as bytes from the beginning of its image."""
    height, row_bytes = picture
    return clamp_to_edge(number, height) * row_bytes


@triton.jit
def _byte_line(number, picture, columns, CHANNELS: tl.constexpr):
    """Resample a row sideways, a byte at a time."""
    byte, _, _, picks, weights, start = columns
    byte += _row_start(number, picture)
    line = ()
    for channel in tl.static_range(CHANNELS):
        for column in tl.static_range(4):
            pixels = (picks[column // 2] >> (8 * (column % 2))).to(tl.int32)
            left = tl.load(byte + ((pixels & 15) * CHANNELS + channel)).to(tl.uint32)
            right = tl.load(byte + (((pixels >> 4) & 15) * CHANNELS + channel)).to(tl.uint32)
            pair = weights[column]
            total = left * (pair & 0xFFFF) + right * (pair >> 16) + start
            line = line + (total.to(tl.float32, bitcast=True),)  # noqa: RUF005
    return line


@triton.jit
def linear_line(
    number, before, picture, columns,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, ALIGNED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Resample a row sideways: four columns of the first channel, then of the next one.

    Returns the line, and what it is more than the line before.
    """
    line = ()
    if ASM:
        byte, row, shift, picks, weights, start = columns
        at = (row if ALIGNED else byte) + _row_start(number, picture)
        words = _load_words(at, shift, PIXELS, CHANNELS, ALIGNED)
        for channel in tl.static_range(CHANNELS):
            near = _plane(words, channel, 0, PIXELS, CHANNELS)
            far = near
            if PIXELS > 4:
                far = _plane(words, channel, 4, PIXELS, CHANNELS)
            for half in tl.static_range(2):
                pixels = pick(near, far, picks[half])
                first = dot(weights[2 * half], pixels, start, False)
                second = dot(weights[2 * half + 1], pixels, start, True)
                line = line + (  # noqa: RUF005
                    first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True),
                )  # fmt: skip
    else:
        line = _byte_line(number, picture, columns, CHANNELS)
    differences = ()
    for place in tl.static_range(4 * CHANNELS):
        differences = differences + (line[place] - before[place],)  # noqa: RUF005
    return line, differences


@triton.jit
def linear_row(
    part, line, differences, levels, out, live,
    MODE: tl.constexpr, CHANNELS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Make four columns of a row that is `part` parts after a line."""
    share_y, share, begin = levels
    y = part.to(tl.float32) * share_y
    bits = ()
    for number in tl.static_range(4 * CHANNELS):
        value = multiply_add(differences[number], y, line[number], ASM)
        bits = bits + (level(value, share, begin, MODE, ASM),)  # noqa: RUF005
    store_levels(out, bits, live, CHANNELS, ASM)


@triton.jit
def _linear_rows(
    place, line, differences, rows, levels, out, live,
    MODE: tl.constexpr, CHANNELS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Make the rows between a line and the newest one. Returns the next row's place and `out`.

    A place is how many rows are left, and how many parts after the line the row is.
    """
    step, parts, row_words = rows
    left, part = place
    while (left > 0) & (part < parts):
        linear_row(part, line, differences, levels, out, live, MODE, CHANNELS, ASM)
        out += row_words
        left -= 1
        part += step
    return (left, part), out


@triton.jit
def next_line(number, place, parts, TAPS: tl.constexpr, SKIPS: tl.constexpr):
    """Return the number of the line after line `number`, and the next row's place before it.

    A place is how many rows are left, and how many parts the row is after the first line that it
    may be made of: TAPS lines, of which the last one is the newest. Lines that no row uses are left
    out, if there are any: SKIPS. The line after them is the first one that the row is made of.
    """
    left, part = place
    lines = tl.maximum(part // parts - (TAPS - 1), 1) if SKIPS else 1
    return number + lines, (left, part - lines * parts)


@triton.jit
def find_items(first, items, quads, LANES: tl.constexpr):
    """Return the image and the first column of LANES items from `first` on, and which there are.

    An item is four columns of an image; an image has `quads`. The last item stands in for others.
    """
    item = first + tl.arange(0, LANES)
    live = item < items
    item = tl.minimum(item, items - 1)
    image = (item.to(tl.uint32) // quads.to(tl.uint32)).to(tl.int32)
    return image, 4 * (item - image * quads), live


@triton.jit
def spot(number, whole, rest, parts, begin):
    """Return the pixel before a place, from 1 on in half pixels, and the parts after it."""
    numerator = (number * (whole * parts + rest) + begin).to(tl.uint32)
    whole = numerator // parts.to(tl.uint32)
    return whole.to(tl.int32), (numerator - whole * parts.to(tl.uint32)).to(tl.int32)


@triton.jit(
    do_not_specialize=[
        "items", "quads", "source_height", "source_width", "row_units", "height",
        "whole_x", "rest_x", "parts_x", "begin_x", "whole_y", "rest_y", "parts_y", "begin_y",
        "scale", "total", "start", "tile",
    ]
)  # fmt: skip
def _resize_linear(
    images, out, items, quads, source_height, source_width, row_units, height,
    whole_x, rest_x, parts_x, begin_x, whole_y, rest_y, parts_y, begin_y, share_y,
    scale, total, start, share, begin, tile,
    CHANNELS: tl.constexpr, MODE: tl.constexpr, PIXELS: tl.constexpr, ALIGNED: tl.constexpr,
    SKIPS: tl.constexpr, LANES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Resize (n, h, w, c) to (n, height, width, c): `tile` rows of LANES `items`.

    An item is four columns of an image; an image has `quads`. See `resize_plan` for the other
    numbers. Rows of the source have `row_units` words if ALIGNED, else as many bytes.
    """
    BEHIND: tl.constexpr = 0 if MODE == "direct" else 1
    row_bytes = row_units * (4 if ALIGNED else 1)
    image, column, live = find_items(tl.program_id(0) * LANES, items, quads, LANES)

    left, part = spot(column, whole_x, rest_x, parts_x, begin_x)
    left -= BEHIND
    base = tl.minimum(clamp_to_edge(left, source_width), source_width - PIXELS)
    picks = ()
    weights = ()
    for _ in tl.static_range(2):
        numbers = base * -0x1111  # of the pixels before and after each column, in the window
        for shift in tl.static_range(0, 16, 8):
            numbers += tl.maximum(left, 0) << shift
            numbers += tl.minimum(left + 1, source_width - 1) << (shift + 4)
            # total - part * scale, and part * scale in the higher half
            weights = weights + ((total + part * scale).to(tl.uint32),)  # noqa: RUF005
            part += rest_x
            over = part >= parts_x
            left += tl.where(over, whole_x + 1, whole_x)
            part = tl.where(over, part - parts_x, part)
        picks = picks + (numbers.to(tl.uint32),)  # noqa: RUF005
    byte = images + image.to(tl.int64) * source_height * row_bytes + base * CHANNELS
    before = (base * CHANNELS) & 3
    columns = (byte, byte - before, (before * 8).to(tl.uint32), picks, weights, start.to(tl.uint32))
    picture = (source_height, row_bytes)

    row = tl.program_id(1) * tile
    end = tl.minimum(row + tile, height)
    row_words = quads * CHANNELS
    out = out.to(tl.pointer_type(tl.uint32))
    out += image.to(tl.int64) * height * row_words + row * row_words + column // 4 * CHANNELS
    top, part = spot(row, whole_y, rest_y, parts_y, begin_y)
    rows = (whole_y * parts_y + rest_y, parts_y, row_words)
    levels = (share_y, share, begin)
    none = tl.zeros((LANES,), tl.float32)
    line0 = (none,)
    for _ in tl.static_range(4 * CHANNELS - 1):
        line0 = line0 + (none,)  # noqa: RUF005
    line1 = line0
    newest = top - BEHIND - 1  # and two lines come before the first row
    place = (end - row, part + 2 * parts_y)
    while place[0] > 0:
        # Two lines each time, so that none has to move.
        newest, place = next_line(newest, place, parts_y, 2, SKIPS)
        line0, differences = linear_line(
            newest, line1, picture, columns, PIXELS, CHANNELS, ALIGNED, ASM
        )
        place, out = _linear_rows(
            place, line1, differences, rows, levels, out, live, MODE, CHANNELS, ASM
        )
        if place[0] > 0:
            newest, place = next_line(newest, place, parts_y, 2, SKIPS)
            line1, differences = linear_line(
                newest, line0, picture, columns, PIXELS, CHANNELS, ALIGNED, ASM
            )
            place, out = _linear_rows(
                place, line0, differences, rows, levels, out, live, MODE, CHANNELS, ASM
            )


def resize_linear(images: Tensor, mode: ResizeMode, out: Tensor, plan: LinearPlan) -> None:
    """Resize contiguous images as planned."""
    n, height, width, channels = out.shape
    row_bytes = images.shape[2] * channels
    aligned = images.data_ptr() % 4 == row_bytes % 4 == 0
    items = n * (width // 4)
    _resize_linear[(triton.cdiv(items, LANES), triton.cdiv(height, plan.tile))](
        images, out, items, width // 4, images.shape[1], images.shape[2],
        row_bytes // (4 if aligned else 1), height,
        *plan.columns, *plan.rows, reciprocal(plan.rows.parts)[0],
        plan.scale, plan.total, plan.start, plan.share, plan.begin, plan.tile,
        CHANNELS=channels, MODE=mode, PIXELS=plan.pixels, ALIGNED=aligned,
        SKIPS=plan.rows.whole > 1, LANES=LANES, ASM=instructions.INSTRUCTIONS,
        num_warps=1, maxnreg=128, num_stages=1,
    )  # fmt: skip
