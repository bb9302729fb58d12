"""Images -> images of another size."""

import triton
import triton.language as tl
from torch import Tensor

from ..spec import ResizeMode
from . import instructions
from .instructions import store_levels
from .pixel_formats import access_width
from .quad_lines import Reach, pixel_line, reaches, spread, window_line
from .resize_linear import find_items, next_line, resize_linear, spot
from .resize_plan import LANES, along, linear_plan, reciprocal, tile_rows
from .sampling import clamp_to_edge, cubic_weight, floor_quotient, half_pixel, to_level

TILE_ROWS = 8
TILE_BYTES = 256
TAPS: dict[str, int] = {"bicubic": 4, "bilinear": 2, "direct": 2}


@triton.jit(do_not_specialize=["source_height", "source_width", "height", "width", "row_bytes"])
def _resize(
    images, out, source_height, source_width, height, width, row_bytes,
    CHANNELS: tl.constexpr, MODE: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Resize (n, h, w, c) to (n, height, width, c): ROWS rows by BYTES bytes of an image each."""
    row_bytes = row_bytes * WIDTH
    across, down = tl.cdiv(row_bytes, BYTES), tl.cdiv(height, ROWS)
    tile = tl.program_id(0)
    image = (tile // (across * down)).to(tl.int64)
    row = (tile // across % down * ROWS + tl.arange(0, ROWS))[:, None]
    byte = (tile % across * BYTES + tl.arange(0, BYTES))[None, :]
    live = (row < height) & (byte < row_bytes)
    pixel, channel = byte // CHANNELS, byte % CHANNELS
    images += image * source_height * source_width * CHANNELS + channel

    if MODE == "direct":
        top, left = row * source_height // height, pixel * source_width // width
        down, right = row * source_height % height, pixel * source_width % width
        total = tl.zeros((ROWS, BYTES), tl.int64)
        for i in tl.static_range(2):
            line = tl.zeros((ROWS, BYTES), tl.int32)
            start = clamp_to_edge(top + i, source_height) * source_width
            for j in tl.static_range(2):
                at = start + clamp_to_edge(left + j, source_width)
                level = tl.load(images + at * CHANNELS, mask=live, other=0).to(tl.int32)
                line += level * (right if j else width - right)
            total += line.to(tl.int64) * (down if i else height - down)
        level = floor_quotient(total, height.to(tl.int64) * width)
    else:
        TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
        top, y = half_pixel(row, source_height, height)
        left, x = half_pixel(pixel, source_width, width)
        value = tl.zeros((ROWS, BYTES), tl.float32)
        for i in range(TAPS):  # not unrolled: sixteen levels at once need too many registers
            line = tl.zeros((ROWS, BYTES), tl.float32)
            start = clamp_to_edge(top + i - (TAPS // 2 - 1), source_height) * source_width
            for j in tl.static_range(TAPS):
                at = start + clamp_to_edge(left + j - (TAPS // 2 - 1), source_width)
                level = tl.load(images + at * CHANNELS, mask=live, other=0).to(tl.float32)
                line += level * (cubic_weight(x, j) if TAPS == 4 else (x if j else 1 - x))
            value += line * (cubic_weight(y, i) if TAPS == 4 else tl.where(i == 0, 1 - y, y))
        level = to_level(value)
    out += image * height * row_bytes
    tl.store(out + row.to(tl.int64) * row_bytes + byte, level.to(tl.uint8), mask=live)


@triton.jit
def _tap_weights(part, parts, MODE: tl.constexpr):
    """Return the weights of the taps around a place, for "direct" times the parts."""
    if MODE == "direct":
        return (parts - part).to(tl.float32), part.to(tl.float32)
    else:
        x = tl.div_rn(part.to(tl.float32), (part * 0 + parts).to(tl.float32))
        return _fractions(x, MODE)


@triton.jit
def _fractions(x, MODE: tl.constexpr):
    """Return the weights of two or four taps, x = src - floor(src)."""
    if MODE == "bilinear":
        return 1 - x, x
    else:
        return cubic_weight(x, 0), cubic_weight(x, 1), cubic_weight(x, 2), cubic_weight(x, 3)


@triton.jit
def _row_start(number, picture):
    """Return where a row begins, in bytes from the beginning of its image."""
    row_bytes, height, _ = picture
    return clamp_to_edge(number, height) * row_bytes


@triton.jit
def _kept(line, MODE: tl.constexpr):
    """Return a line as it is kept: of "direct" as integers, which it is, below 2**23."""
    if MODE == "direct":
        whole = ()
        for number in tl.static_range(len(line)):
            bits = (line[number] + 8388608.0).to(tl.int32, bitcast=True)
            whole = whole + (bits - 0x4B000000,)  # noqa: RUF005
        return whole
    else:
        return line


@triton.jit
def quad_line(
    number, picture, columns,
    MODE: tl.constexpr, CHANNELS: tl.constexpr, FIRST: tl.constexpr, REACH: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """Resample a row of an image sideways, four columns from one window."""
    TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
    _, _, window, byte, weights = columns
    line = window_line(
        window + _row_start(number, picture), byte, weights, CHANNELS, TAPS, FIRST, REACH, ALIGNED
    )
    return _kept(line, MODE)


@triton.jit
def last_line(
    number,
    picture,
    columns,
    MODE: tl.constexpr,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    REACH: tl.constexpr,
):
    """Resample a row of an image sideways, and read nothing after it."""
    TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
    image, base, _, _, weights = columns
    bases = (base, base, base, base)
    start = image + _row_start(number, picture)
    line = pixel_line(start, bases, picture[2] - 1, weights, CHANNELS, TAPS, FIRST, REACH, False)
    return _kept(line, MODE)


@triton.jit
def quad_row(
    part, lines, rows, out, live, MODE: tl.constexpr, CHANNELS: tl.constexpr, ASM: tl.constexpr
):  # fmt: skip
    """Make four columns of a row from the lines of its taps."""
    _, parts, share, rest_share, _, magic, shift, white = rows
    bits = ()
    if MODE == "direct":
        for number in tl.static_range(4 * CHANNELS):
            total = lines[0][number] * (parts - part) + lines[1][number] * part
            level = tl.umulhi(total.to(tl.uint32), magic.to(tl.uint32)) >> shift.to(tl.uint32)
            bits = bits + (level.to(tl.int32, bitcast=True),)  # noqa: RUF005
    else:
        y = part.to(tl.float32)  # and then the quotient, rounded as a division does
        y = tl.fma(y, share, y * rest_share) if ASM else tl.div_rn(y, parts.to(tl.float32))
        weights = _fractions(y, MODE)
        for number in tl.static_range(4 * CHANNELS):
            value = lines[0][number] * weights[0] + lines[1][number] * weights[1]
            value += lines[2][number] * weights[2]
            value += lines[3][number] * weights[3]
            # Without a fraction, the integer is in the lowest bits of the sum, see `to_level`.
            level = (value + 12582912.0).to(tl.int32, bitcast=True)
            level = tl.maximum(tl.minimum(level - 0x4B400000, white), 0)  # one instruction
            bits = bits + (level,)  # noqa: RUF005
    store_levels(out, bits, live, CHANNELS, ASM)


@triton.jit
def _quad_rows(
    place, lines, rows, out, live,
    MODE: tl.constexpr, CHANNELS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Make the rows whose last line is the newest one, see `next_line`.

    Returns the next row's place, and `out`.
    """
    step, parts, _, _, row_words, _, _, _ = rows
    left, part = place
    while (left > 0) & (part < parts):
        quad_row(part, lines, rows, out, live, MODE, CHANNELS, ASM)
        out += row_words
        left -= 1
        part += step
    return (left, part), out


@triton.jit(
    do_not_specialize=[
        "items", "quads", "source_height", "source_width", "row_units", "height",
        "whole_x", "rest_x", "parts_x", "begin_x", "whole_y", "rest_y", "parts_y", "begin_y",
        "danger", "tile", "magic", "shift", "white",
    ]
)  # fmt: skip
def _resize_quads(
    images, out, items, quads, source_height, source_width, row_units, height,
    whole_x, rest_x, parts_x, begin_x, whole_y, rest_y, parts_y, begin_y, share_y, rest_share_y,
    danger, tile, magic, shift, white,
    CHANNELS: tl.constexpr, MODE: tl.constexpr, FIRST: tl.constexpr, REACH: tl.constexpr,
    ALIGNED: tl.constexpr, SKIPS: tl.constexpr, LANES: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Resize (n, h, w, c) to (n, height, width, c): `tile` rows of LANES `items`.

    An item is four columns of an image; an image has `quads`. See `resize_plan` for the other
    numbers. Rows of the source have `row_units` words if ALIGNED, else as many bytes.
    """
    TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
    BEFORE: tl.constexpr = TAPS // 2 - 1
    BEHIND: tl.constexpr = 0 if MODE == "direct" else 1
    row_bytes = row_units * (4 if ALIGNED else 1)
    first = tl.program_id(0) * LANES
    image, column, live = find_items(first, items, quads, LANES)
    images += image.to(tl.int64) * source_height * row_bytes
    picture = (row_bytes, source_height, source_width)

    edges = (0, source_width - 1)
    left, part = spot(column, whole_x, rest_x, parts_x, begin_x)
    tap = left - BEHIND - BEFORE
    base = clamp_to_edge(tap, source_width)
    weights = ()
    for number in tl.static_range(4):
        own = spread(
            tap, _tap_weights(part, parts_x, MODE), base, edges, number, TAPS, FIRST, REACH
        )
        weights = weights + (own,)  # noqa: RUF005
        part += rest_x
        over = part >= parts_x
        tap += tl.where(over, whole_x + 1, whole_x)
        part = tl.where(over, part - parts_x, part)
    byte = (base * CHANNELS) & 3 if ALIGNED else base * 0
    columns = (images, base, images + (base * CHANNELS - byte), byte, weights)

    row = tl.program_id(1) * tile
    end = tl.minimum(row + tile, height)
    row_words = quads * CHANNELS
    out = out.to(tl.pointer_type(tl.uint32))
    out += image.to(tl.int64) * height * row_words + row * row_words + column // 4 * CHANNELS
    top, part = spot(row, whole_y, rest_y, parts_y, begin_y)
    rows = (
        whole_y * parts_y + rest_y, parts_y, share_y, rest_share_y, row_words, magic, shift, white
    )  # fmt: skip
    newest = top - BEHIND - BEFORE - 1  # and TAPS lines come before the first row
    place = (end - row, part + TAPS * parts_y)
    # Windows may reach over the end of a row, which no row follows at the end of the last image.
    # The last lane reaches furthest.
    furthest = tl.minimum(first + LANES, items) - 1 - (items - quads)
    careful = (furthest >= 0) & (4 * furthest * (whole_x * parts_x + rest_x) + begin_x >= danger)
    final = (end - 1) * (whole_y * parts_y + rest_y) + begin_y
    careful = careful & (final >= (source_height - 1 - TAPS // 2 + BEHIND) * parts_y)
    none = tl.zeros((LANES,), tl.int32 if MODE == "direct" else tl.float32)
    line0 = (none,)
    for _ in tl.static_range(4 * CHANNELS - 1):
        line0 = line0 + (none,)  # noqa: RUF005
    line1 = line0
    line2 = line0
    line3 = line0
    if careful:
        while place[0] > 0:
            newest, place = next_line(newest, place, parts_y, TAPS, SKIPS)
            if TAPS == 4:
                line0, line1, line2 = line1, line2, line3
                line3 = last_line(newest, picture, columns, MODE, CHANNELS, FIRST, REACH)
                lines = (line0, line1, line2, line3)
            else:
                line0 = line1
                line1 = last_line(newest, picture, columns, MODE, CHANNELS, FIRST, REACH)
                lines = (line0, line1)
            place, out = _quad_rows(place, lines, rows, out, live, MODE, CHANNELS, ASM)
    else:
        while place[0] > 0:
            # Two or four lines each time, so that none has to move.
            newest, place = next_line(newest, place, parts_y, TAPS, SKIPS)
            line0 = quad_line(newest, picture, columns, MODE, CHANNELS, FIRST, REACH, ALIGNED)
            lines = (line1, line2, line3, line0) if TAPS == 4 else (line1, line0)
            place, out = _quad_rows(place, lines, rows, out, live, MODE, CHANNELS, ASM)
            if place[0] > 0:
                newest, place = next_line(newest, place, parts_y, TAPS, SKIPS)
                line1 = quad_line(newest, picture, columns, MODE, CHANNELS, FIRST, REACH, ALIGNED)
                lines = (line2, line3, line0, line1) if TAPS == 4 else (line0, line1)
                place, out = _quad_rows(place, lines, rows, out, live, MODE, CHANNELS, ASM)
            if TAPS == 4:
                if place[0] > 0:
                    newest, place = next_line(newest, place, parts_y, TAPS, SKIPS)
                    line2 = quad_line(
                        newest, picture, columns, MODE, CHANNELS, FIRST, REACH, ALIGNED
                    )
                    lines = (line3, line0, line1, line2)
                    place, out = _quad_rows(place, lines, rows, out, live, MODE, CHANNELS, ASM)
                if place[0] > 0:
                    newest, place = next_line(newest, place, parts_y, TAPS, SKIPS)
                    line3 = quad_line(
                        newest, picture, columns, MODE, CHANNELS, FIRST, REACH, ALIGNED
                    )
                    lines = (line0, line1, line2, line3)
                    place, out = _quad_rows(place, lines, rows, out, live, MODE, CHANNELS, ASM)


def _fits_quads(images: Tensor, out: Tensor) -> bool:
    """Whether rows of the result are whole words, and the taps of four columns near."""
    _, _, width, channels = out.shape
    return (
        out.data_ptr() % 4 == width % 4 == 0 and channels <= 4 and images.shape[2] * channels >= 48
        and images.shape[2] <= 2 * width
    )  # fmt: skip


def quad_windows(
    source: int, target: int, mode: ResizeMode, channels: int
) -> tuple[Reach, Reach, int]:
    """Return where four columns' taps begin in a window, at least and at most, see `reaches`.

    The last number is the first place, not yet divided, whose words may reach over a row's end.
    """
    behind = 0 if mode == "direct" else 1
    before = TAPS[mode] // 2 - 1 + behind
    # The first pixel is in the image, or half a pixel before it.
    slack = before if source < target else before - behind
    first, reach = reaches(source, target, slack)
    # A window begins up to 3 bytes after its first word, and one more word is loaded.
    pixel = (source * channels - (reach[3] + TAPS[mode]) * channels - 7) // channels + 1
    return first, reach, (pixel + before) * along(source, target, mode).parts


def _resize_fours(images: Tensor, mode: ResizeMode, out: Tensor) -> bool:
    """Resize with `_resize_quads`, if numbers are small enough. Returns whether they are."""
    n, height, width, channels = out.shape
    columns, rows = along(images.shape[2], width, mode), along(images.shape[1], height, mode)
    total = columns.parts * rows.parts if mode == "direct" else 1
    if 255 * total >= 1 << 31:
        return False
    # x // total, of x below 2**31, is x * magic >> (32 + shift).
    bits = (total - 1).bit_length()
    magic, shift = (1 << (31 + bits)) // total + 1, bits - 1
    first, reach, danger = quad_windows(images.shape[2], width, mode, channels)
    row_bytes = images.shape[2] * channels
    aligned = images.data_ptr() % 4 == row_bytes % 4 == 0
    items, tile = n * (width // 4), tile_rows(n, (height, width))
    _resize_quads[(triton.cdiv(items, LANES), triton.cdiv(height, tile))](
        images, out, items, width // 4, images.shape[1], images.shape[2],
        row_bytes // (4 if aligned else 1), height, *columns, *rows, *reciprocal(rows.parts),
        danger, tile, magic - (1 << 32 if magic >= 1 << 31 else 0), max(shift, 0), 255,
        CHANNELS=channels, MODE=mode, FIRST=first, REACH=reach, ALIGNED=aligned,
        SKIPS=rows.whole >= TAPS[mode], LANES=LANES,
        ASM=instructions.INSTRUCTIONS, num_warps=1, maxnreg=208, num_stages=1,
    )  # fmt: skip
    return True


def resize(images: Tensor, mode: ResizeMode, out: Tensor) -> Tensor:
    images = images.contiguous()
    n, height, width, channels = out.shape
    fits = _fits_quads(images, out)
    if fits and mode != "bicubic":
        old = images.shape[1], images.shape[2]
        if plan := linear_plan(n, old, (height, width), mode):
            resize_linear(images, mode, out, plan)
            return out
    if fits and _resize_fours(images, mode, out):
        return out
    row_bytes = width * channels
    wide = access_width(row_bytes)
    tiles = triton.cdiv(row_bytes, TILE_BYTES) * triton.cdiv(height, TILE_ROWS)
    _resize[(n * tiles,)](
        images, out, images.shape[1], images.shape[2], height, width, row_bytes // wide,
        CHANNELS=channels, MODE=mode, WIDTH=wide, ROWS=TILE_ROWS, BYTES=TILE_BYTES,
        num_warps=8, num_stages=1,
    )  # fmt: skip
    return out
