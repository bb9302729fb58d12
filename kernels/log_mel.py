"""PCM -> mel in one launch: the DFT as matrix products on the tensor cores."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference
from .spec import HOP, MEL_BANDS, WINDOW

GROUP_BINS = 64  # bins of the DFT that one program computes: what its mel bands need, no more
GROUP_BANDS = 32
STEP = 32  # samples of a window per matrix product; 800 is 25 of them

_HOP, _WINDOW, _BANDS = tl.constexpr(HOP), tl.constexpr(WINDOW), tl.constexpr(MEL_BANDS)
_FAR = tl.constexpr(1 << 30)


class Constants(NamedTuple):
    """What the kernel multiplies with, on one device. The mel bands come in groups of neighbours.

    cosines, sines: (groups, 800, GROUP_BINS) float32, the DFT of the group's bins times the
        window. filters: (groups, GROUP_BINS, GROUP_BANDS) float32. bands: (groups, 2) int32, the
        first band of each group and the first of the next.
    """

    cosines: Tensor
    sines: Tensor
    filters: Tensor
    bands: Tensor


@lru_cache
def constants(device: torch.device) -> Constants:
    """Made once per device. A mel filter sees 3 to 30 of the 401 bins: so does its group."""
    hann, filters = reference.mel_constants(torch.device("cpu"))
    seen = [band.nonzero().flatten().tolist() for band in filters.T]
    groups, first = [], 0
    for band in range(1, MEL_BANDS + 1):
        full = band == MEL_BANDS or seen[band][-1] - seen[first][0] >= GROUP_BINS
        if full or band - first == GROUP_BANDS:
            groups.append((first, band))
            first = band

    cosines = torch.zeros(len(groups), WINDOW, GROUP_BINS, dtype=torch.float64)
    sines = torch.zeros_like(cosines)
    weights = torch.zeros(len(groups), GROUP_BINS, GROUP_BANDS, dtype=torch.float64)
    sample = torch.arange(WINDOW)
    for group, (low, high) in enumerate(groups):
        bins = torch.arange(seen[low][0], seen[high - 1][-1] + 1)
        # the product of integers first: a large argument would cost the sine its accuracy
        angle = 2 * torch.pi * (sample[:, None] * bins % WINDOW).double() / WINDOW
        cosines[group, :, : len(bins)] = hann[:, None] * angle.cos()
        sines[group, :, : len(bins)] = hann[:, None] * angle.sin()
        weights[group, : len(bins), : high - low] = filters[bins, low:high]
    bands = torch.tensor(groups, dtype=torch.int32)
    return Constants(
        *(part.float().to(device) for part in (cosines, sines, weights)), bands.to(device)
    )


@triton.jit
def _sample(speech, at, first, last, SCALE: tl.constexpr):
    inside = (at >= first) & (at < last)
    return tl.load(speech + at, mask=inside, other=0).to(tl.float32) * SCALE


@triton.jit(do_not_specialize=["stride", "samples", "rows", "blocks", "groups"])
def _log_mel(
    pcm, stride, lengths, samples, cosines, sines, filters, bands, groups, out, rows, blocks,
    SCALE: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, BINS: tl.constexpr, BANDS: tl.constexpr,
):  # fmt: skip
    """Some rows of one speech's mel, of one group of bands.

    y[n] = x[n] - 0.97 x[n-1];  X[k] = sum of hann[n] y[200 t - 400 + n] exp(-2 pi i k n / 800);
    m = filters |X|;  8 (20 log10(max(1e-5, m)) - 20 + 100) / 100 - 4, clipped to -4 .. 4.
    """
    program = tl.program_id(0)
    # neighbours work on the same bands: they share their part of the DFT in the cache
    row = (program % blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    group = program // blocks % groups
    speech = (program // blocks // groups).to(tl.int64)
    length = samples.to(tl.int64)
    if lengths is not None:
        length = tl.minimum(length, tl.load(lengths + speech))

    # Samples are counted from the first one that the block sees, so that 32 bits are enough.
    origin = (program % blocks).to(tl.int64) * ROWS * _HOP - _WINDOW // 2
    first = tl.maximum(-origin, -1).to(tl.int32)  # -1: what the first one's pre-emphasis sees
    last = tl.minimum(tl.maximum(length - origin, 0), _FAR).to(tl.int32)
    pcm += speech * stride + origin
    window = tl.arange(0, ROWS)[:, None] * _HOP
    step, bin = tl.arange(0, STEP), tl.arange(0, BINS)[None, :]
    cosines += group * _WINDOW * BINS
    sines += group * _WINDOW * BINS

    real = tl.zeros((ROWS, BINS), tl.float32)
    imaginary = tl.zeros((ROWS, BINS), tl.float32)
    poison = tl.zeros((ROWS,), tl.float32)
    for start in range(0, _WINDOW, STEP):
        at = window + (start + step)[None, :]
        x = _sample(pcm, at, first, last, SCALE)
        y = x - 0.97 * _sample(pcm, at - 1, first, last, SCALE)
        # the zeros behind the speech come after the pre-emphasis: they stay zeros
        y = tl.where(at < last, y, 0.0)
        poison += tl.sum(y * 0.0, axis=1)  # NaN from what is not finite
        y = tl.where(tl.abs(y) < float("inf"), y, 0.0)
        table = (start + step)[:, None] * BINS + bin
        # Products of their own, added in float32: the tensor cores' own sums lose more.
        real += tl.dot(y, tl.load(cosines + table), input_precision="tf32x3")
        imaginary += tl.dot(y, tl.load(sines + table), input_precision="tf32x3")

    # infinite where samples are beyond 1e17, and infinity times a weight of zero would be NaN
    magnitude = tl.minimum(tl.sqrt(real * real + imaginary * imaginary), 1e30)
    band = tl.arange(0, BANDS)[None, :]
    weight = tl.load(filters + group * BINS * BANDS + tl.arange(0, BINS)[:, None] * BANDS + band)
    mel = tl.dot(magnitude, weight, input_precision="tf32x3")
    # 8 (20 log10 m + 80) / 100 - 4 = 1.6 log10 2 log2 m + 2.4
    value = 0.4816479930623699 * tl.log2(tl.maximum(mel, 1e-5)) + 2.4
    value = tl.minimum(tl.maximum(value, -4.0), 4.0) + poison[:, None]
    value = tl.where((row < 1 + length // _HOP)[:, None], value, -4.0)

    low = tl.load(bands + 2 * group)
    live = (low + band < tl.load(bands + 2 * group + 1)) & (row < rows)[:, None]
    out += speech * rows * _BANDS
    tl.store(out + row[:, None] * _BANDS + low + band, value, mask=live)


def block_rows(rows: int) -> int:
    """Rows of a program, of `rows` in all: few while there is little to do, so that it spreads
    over the GPU; many read the tables less often. 64 would be too many for the registers."""
    return 16 if rows <= 512 else 32


def log_mel(pcm: Tensor, lengths: Tensor | None, out: Tensor) -> Tensor:
    if pcm.stride(1) != 1:
        pcm = pcm.contiguous()
    speeches, rows = out.shape[:2]
    table = constants(pcm.device)
    groups = len(table.bands)
    block = block_rows(speeches * rows)
    blocks = triton.cdiv(rows, block)
    _log_mel[(speeches * groups * blocks,)](
        pcm, pcm.stride(0), lengths, pcm.shape[1],
        *table, groups, out, rows, blocks,
        SCALE=1 / 32768 if pcm.dtype == torch.int16 else 1.0,
        ROWS=block, STEP=STEP, BINS=GROUP_BINS, BANDS=GROUP_BANDS,
        num_warps=4 if block == 16 else 8, num_stages=2,
    )  # fmt: skip
    return out
