"""How often the parts of `composite` run, and what it must move: for `kernels.model`."""

from collections import Counter

import triton

from ..spec import CROP_SIZE, MARGIN, ROI_SIZE, YUV_FORMATS, ByteFormat, CompositeMode
from ..work import Work
from . import composite
from .pixel_formats import access_width


def composite_work(
    n: int, height: int, width: int, box: tuple[int, int, int, int], mode: CompositeMode,
    format: ByteFormat, element: int, masked: bool = False,
) -> Work:  # fmt: skip
    """Return the work of n aligned frames with a face in this box, which they show entirely.

    `element` is the size of the generated values in bytes. Masks have bits, and keep no pixel.
    """
    yuv, pair = format in YUV_FORMATS, 2 if format in YUV_FORMATS else 1
    unit, wide = ("bytes", access_width(width * 3)) if format == "rgb" else ("quads", 4)
    _, _, parts, copiers = composite.copies(height, width, format, unit, wide)
    x0, y0, x1, y1 = box
    grain = wide if unit == "bytes" else 12  # bytes of RGB
    begin, end = x0 * 3 // grain * grain // 3, (-(x1 * 3 // -grain) * grain + 2) // 3
    top, pairs = y0 // pair, triton.cdiv(y1, pair) - y0 // pair
    down = triton.cdiv(pairs, composite.GROUPS * (composite.ROWS // pair))
    per_group = triton.cdiv(pairs, composite.GROUPS * down) * pair
    taps, source = (4, CROP_SIZE) if mode == "crop" else (2, ROI_SIZE)

    def inner(first: int, last: int, size: int) -> bool:
        """Whether all pixels of the crop that rows (or columns) of the box need are generated."""
        safe = triton.cdiv((2 * MARGIN + 3) * size, 2 * CROP_SIZE)
        unsafe = ((2 * (MARGIN + ROI_SIZE) - 3) * size - CROP_SIZE) // (2 * CROP_SIZE)
        return first >= safe and last < unsafe

    lines: Counter[str] = Counter()
    tiles = [(y, x) for y in range(down) for x in range(begin, end, composite.COLUMNS)]
    for y, x in tiles:
        left, right = (min(max(at - x0, 0), x1 - x0 - 1) for at in (x, x + composite.COLUMNS - 1))
        sides = inner(left, right, x1 - x0)
        for row in range(per_group):
            upper = (top - y0 // pair) * pair + y * composite.GROUPS * per_group
            lower = min(upper + composite.GROUPS * per_group, pairs * pair) - per_group
            step = row // pair * pair
            whole = sides and inner(upper + step, lower + step + pair - 1, y1 - y0)
            part = "direct_line" if mode == "direct" else "inner_line" if whole else "edge_line"
            lines[part] += taps if row == 0 else min(triton.cdiv(source, y1 - y0), taps)
    made = height * width * (1.5 if yuv else 4 if format == "rgba" else 3)
    face = (x1 - x0) * (y1 - y0)
    margin = 3 * (CROP_SIZE**2 - ROI_SIZE**2) if mode == "crop" else 0
    read = 3 * (height * width - face) + 3 * ROI_SIZE**2 * element + margin
    read += (y1 - y0) * (x1 // 8 - x0 // 8 + 1) * masked
    runs = {
        "_composite": composite.PASTERS + copiers, "copy_units": copiers * parts,
        "paste_tile": len(tiles), "paste_row": len(tiles) * per_group,
        "next_line": sum(lines.values()), **lines,
    }  # fmt: skip
    return Work(
        runs={part: n * count for part, count in runs.items()},
        moved=n * int(made + read), made=n * int(made), items=n,
        # Of a warp: 32 pixels of one plane, 1.8 columns of the source apart; of quads, 12 bytes.
        lines={"inner_line": 1.5, "edge_line": 1.5, "copy_units": 3.0},
    )  # fmt: skip
