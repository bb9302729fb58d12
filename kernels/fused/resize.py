"""Images -> images of another size."""

import triton
import triton.language as tl
from torch import Tensor

from ..spec import ResizeMode
from .pixel_formats import access_width
from .quad_lines import four, pixel_line, spread, window_line
from .resize_linear import resize_linear
from .resize_plan import linear_plan
from .sampling import clamp_to_edge, cubic_weight, floor_quotient, half_pixel, to_level

TILE_ROWS = 8
TILE_BYTES = 256
LANES = 32  # of four columns each, which one program of `_resize_quads` makes
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
def _place(number, source, target, MODE: tl.constexpr):
    """Locate target rows or columns in the source: floor(src), and src - floor(src).

    The second is a numerator (int32); its denominator is target, or 2 target in half pixels.
    """
    if MODE == "direct":
        whole = number * source // target
        return whole, number * source - whole * target
    else:
        numerator = (2 * number + 1) * source + target
        whole = numerator // (2 * target)
        return whole - 1, numerator - whole * (2 * target)


@triton.jit
def _next_place(place, step):
    """Return the place of the next row; `step` is how far it is, whole and part, and what is 1."""
    whole, rest, one = step
    part = place[1] + rest
    over = part >= one
    return place[0] + tl.where(over, whole + 1, whole), tl.where(over, part - one, part)


@triton.jit
def _tap_weights(part, target, MODE: tl.constexpr):
    """Return the weights of the taps around a place, for "direct" times the target's size."""
    if MODE == "direct":
        return (target - part).to(tl.float32), part.to(tl.float32)
    else:
        x = tl.div_rn(part.to(tl.float32), (part * 0 + 2 * target).to(tl.float32))
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
    image, row_bytes, height, _ = picture
    return image + clamp_to_edge(number, height).to(tl.int64) * row_bytes


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
    MODE: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Resample a row of an image sideways, four columns from one window."""
    TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
    SLACK: tl.constexpr = 1 if MODE == "bicubic" and STEP else 0
    base, weights = columns
    line = window_line(
        _row_start(number, picture), base, weights, CHANNELS, TAPS, STEP, SLACK, ALIGNED
    )
    return _kept(line, MODE)


@triton.jit
def last_line(
    number, picture, columns, MODE: tl.constexpr, CHANNELS: tl.constexpr, STEP: tl.constexpr
):
    """Resample a row of an image sideways, and read nothing after it."""
    TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
    SLACK: tl.constexpr = 1 if MODE == "bicubic" and STEP else 0
    base, weights = columns
    bases = (base, base, base, base)
    start = _row_start(number, picture)
    last = picture[3] - 1
    line = pixel_line(start, bases, last, weights, CHANNELS, TAPS, STEP, SLACK, False)
    return _kept(line, MODE)


@triton.jit
def quad_row(
    row, part, lines, shape, out, live, MODE: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """Make four columns of a row from the lines of its taps."""
    height, width, share, white, magic, shift = shape
    bits = ()
    if MODE == "direct":
        for number in tl.static_range(4 * CHANNELS):
            total = lines[0][number] * (height - part) + lines[1][number] * part
            level = tl.umulhi(total.to(tl.uint32), magic.to(tl.uint32)) >> shift.to(tl.uint32)
            bits = bits + (level.to(tl.uint8),)  # noqa: RUF005
    else:
        # A quotient without a division: the correction rounds it as one does.
        numerator, denominator = part.to(tl.float32), (2 * height).to(tl.float32)
        y = numerator * share
        y += (numerator - y * denominator) * share
        weights = _fractions(y, MODE)
        for number in tl.static_range(4 * CHANNELS):
            value = lines[0][number] * weights[0] + lines[1][number] * weights[1]
            if MODE == "bicubic":
                value += lines[2][number] * weights[2]
                value += lines[3][number] * weights[3]
            # Without a fraction, the integer is in the lowest bits of the sum, see `to_level`.
            level = (value + 12582912.0).to(tl.int32, bitcast=True)
            if MODE == "bicubic":  # two taps of weights from 0 to 1 stay in the range
                level = tl.maximum(tl.minimum(level - 0x4B400000, white), 0)
            bits = bits + (level.to(tl.uint8),)  # noqa: RUF005
    out += row * (width * CHANNELS)
    for word in tl.static_range(CHANNELS):
        joined = four(
            bits[(4 * word) % CHANNELS * 4 + (4 * word) // CHANNELS],
            bits[(4 * word + 1) % CHANNELS * 4 + (4 * word + 1) // CHANNELS],
            bits[(4 * word + 2) % CHANNELS * 4 + (4 * word + 2) // CHANNELS],
            bits[(4 * word + 3) % CHANNELS * 4 + (4 * word + 3) // CHANNELS],
        )
        tl.store(out + 4 * word, joined, mask=live)


@triton.jit
def _quad_rows(
    row, end, place, step, newest, lines, shape, out, live,
    MODE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Make the rows whose last line is the newest one, if any. Returns the next row, its place."""
    AFTER: tl.constexpr = 2 if MODE == "bicubic" else 1
    while (row < end) & (place[0] + AFTER <= newest):
        quad_row(row, place[1], lines, shape, out, live, MODE, CHANNELS)
        row += 1
        place = _next_place(place, step)
    return row, place


@triton.jit(
    do_not_specialize=[
        "n", "source_height", "row_units", "height", "quads", "white", "magic", "shift",
    ]
)  # fmt: skip
def _resize_quads(
    images, out, n, source_height, source_width, row_units, height, quads,
    white, magic, shift,
    CHANNELS: tl.constexpr, MODE: tl.constexpr, STEP: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Resize (n, h, w, c) to (n, height, width, c): ROWS rows of 4 LANES columns of an image each.

    Rows have `quads` times four pixels, and those of the source `row_units` words if ALIGNED, else
    as many bytes.
    """
    SIZE: tl.constexpr = 4 if ALIGNED else 1
    TAPS: tl.constexpr = 4 if MODE == "bicubic" else 2
    SLACK: tl.constexpr = 1 if MODE == "bicubic" and STEP else 0
    BEFORE: tl.constexpr = TAPS // 2 - 1
    across, down = tl.cdiv(quads, LANES), tl.cdiv(height, ROWS)
    tile = tl.program_id(0)
    number = tile // (across * down)
    width = quads * 4
    picture = (
        images + number.to(tl.int64) * source_height * (row_units * SIZE), row_units * SIZE,
        source_height, source_width,
    )  # fmt: skip
    quad = tile % across * LANES + tl.arange(0, LANES)
    edges = (0, source_width - 1)
    base = tl.zeros((LANES,), tl.int32)
    weights = ()
    for column in tl.static_range(4):
        pixel = tl.minimum(4 * quad + column, width - 1)
        left, part = _place(pixel, source_width, width, MODE)
        tap = left - BEFORE
        if column == 0:
            base = clamp_to_edge(tap, source_width)
        own = spread(tap, _tap_weights(part, width, MODE), base, edges, column, TAPS, STEP, SLACK)
        weights = weights + (own,)  # noqa: RUF005
    columns = (base, weights)
    one = tl.arange(0, 4)[None, :]
    out += number.to(tl.int64) * height * (width * CHANNELS)
    out += (quad * (4 * CHANNELS))[:, None] + one
    live = (quad < quads)[:, None] & (one >= 0)
    share = tl.div_rn(1.0, (2 * height).to(tl.float32))
    shape = (height, width, share, white, magic, shift)

    row = tile // across % down * ROWS
    end = tl.minimum(row + ROWS, height)
    place = _place(row, source_height, height, MODE)
    whole = source_height // height
    rest = source_height - whole * height
    step = (whole, rest, height) if MODE == "direct" else (whole, 2 * rest, 2 * height)
    newest = place[0] - BEFORE - 1
    # Windows may reach over the end of a row, which no row follows at the end of the last image.
    final, _ = _place(end - 1, source_height, height, MODE)
    careful = (number == n - 1) & (final + TAPS // 2 >= source_height - 1)
    careful = careful & (tile % across == across - 1)
    none = tl.zeros((LANES,), tl.int32 if MODE == "direct" else tl.float32)
    line0 = (none,)
    for _ in tl.static_range(4 * CHANNELS - 1):
        line0 = line0 + (none,)  # noqa: RUF005
    line1 = line0
    line2 = line0
    line3 = line0
    if careful:
        while row < end:
            # An image made smaller has rows that no row uses.
            newest = tl.maximum(newest, place[0] - BEFORE - 1) + 1
            if TAPS == 4:
                line0, line1, line2 = line1, line2, line3
                line3 = last_line(newest, picture, columns, MODE, CHANNELS, STEP)
                lines = (line0, line1, line2, line3)
            else:
                line0 = line1
                line1 = last_line(newest, picture, columns, MODE, CHANNELS, STEP)
                lines = (line0, line1)
            row, place = _quad_rows(
                row, end, place, step, newest, lines, shape, out, live, MODE, CHANNELS
            )
    else:
        while row < end:
            # Two or four lines each time, so that none has to move.
            newest = tl.maximum(newest, place[0] - BEFORE - 1) + 1
            line0 = quad_line(newest, picture, columns, MODE, CHANNELS, STEP, ALIGNED)
            lines = (line1, line2, line3, line0) if TAPS == 4 else (line1, line0)
            row, place = _quad_rows(
                row, end, place, step, newest, lines, shape, out, live, MODE, CHANNELS
            )
            if row < end:
                newest = tl.maximum(newest, place[0] - BEFORE - 1) + 1
                line1 = quad_line(newest, picture, columns, MODE, CHANNELS, STEP, ALIGNED)
                lines = (line2, line3, line0, line1) if TAPS == 4 else (line0, line1)
                row, place = _quad_rows(
                    row, end, place, step, newest, lines, shape, out, live, MODE, CHANNELS
                )
            if TAPS == 4:
                if row < end:
                    newest = tl.maximum(newest, place[0] - BEFORE - 1) + 1
                    line2 = quad_line(newest, picture, columns, MODE, CHANNELS, STEP, ALIGNED)
                    lines = (line3, line0, line1, line2)
                    row, place = _quad_rows(
                        row, end, place, step, newest, lines, shape, out, live, MODE,
                        CHANNELS,
                    )  # fmt: skip
                if row < end:
                    newest = tl.maximum(newest, place[0] - BEFORE - 1) + 1
                    line3 = quad_line(newest, picture, columns, MODE, CHANNELS, STEP, ALIGNED)
                    lines = (line0, line1, line2, line3)
                    row, place = _quad_rows(
                        row, end, place, step, newest, lines, shape, out, live, MODE,
                        CHANNELS,
                    )  # fmt: skip


def quad_tile(n: int, height: int, width: int) -> int:
    """Return the rows of a tile of `_resize_quads`: fewer where there is little to do."""
    rows = 64
    while rows > 8 and n * triton.cdiv(width, 4 * LANES) * triton.cdiv(height, rows) < 2048:
        rows //= 2
    return rows


def _fits_quads(images: Tensor, out: Tensor) -> bool:
    """Whether rows of the result are whole words, and the taps of four columns near."""
    _, _, width, channels = out.shape
    return (
        out.data_ptr() % 4 == width % 4 == 0 and channels <= 4 and images.shape[2] * channels >= 48
        and images.shape[2] <= 2 * width
    )  # fmt: skip


def resize(images: Tensor, mode: ResizeMode, out: Tensor) -> Tensor:
    images = images.contiguous()
    n, height, width, channels = out.shape
    fits = _fits_quads(images, out)
    if fits and mode != "bicubic":
        old = images.shape[1], images.shape[2]
        if plan := linear_plan(n, old, (height, width), mode):
            resize_linear(images, mode, out, plan)
            return out
    if fits and (mode != "direct" or 255 * height * width < 1 << 31):
        rows = quad_tile(n, height, width)
        tiles = triton.cdiv(width, 4 * LANES) * triton.cdiv(height, rows)
        # x // (height * width), of x below 2**31, is x * magic >> (32 + shift).
        bits = (height * width - 1).bit_length()
        magic, shift = (1 << (31 + bits)) // (height * width) + 1, bits - 1
        if magic >= 1 << 31:
            magic -= 1 << 32
        row_bytes = images.shape[2] * channels
        aligned = images.data_ptr() % 4 == row_bytes % 4 == 0
        _resize_quads[(n * tiles,)](
            images, out, n, images.shape[1], images.shape[2], row_bytes // (4 if aligned else 1),
            height, width // 4, 255, magic, shift,
            CHANNELS=channels, MODE=mode, STEP=int(images.shape[2] > width), ALIGNED=aligned,
            ROWS=rows, LANES=LANES, num_warps=1, maxnreg=168, num_stages=1,
        )  # fmt: skip
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
