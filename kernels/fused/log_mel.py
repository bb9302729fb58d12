"""PCM -> mel in one launch: the DFT as matrix products on the tensor cores."""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..mel_filters import window_and_filters
from ..spec import HOP_LENGTH, MEL_BANDS, WIN_LENGTH

GROUP_BINS = 64  # DFT bins that one program computes: no more than its group of mel bands needs
GROUP_BANDS = 32
STEP = 32  # samples of a window per matrix product; a window is 25 of them

_HOP_LENGTH, _WIN_LENGTH = tl.constexpr(HOP_LENGTH), tl.constexpr(WIN_LENGTH)
_BANDS = tl.constexpr(MEL_BANDS)
_FAR = tl.constexpr(1 << 30)  # beyond the samples of any block


class Tables(NamedTuple):
    """The matrices that the kernel multiplies with, for groups of neighbouring mel bands."""

    cosines: Tensor  # (groups, 800, GROUP_BINS) float32, the DFT of the group's bins, windowed
    sines: Tensor  # (groups, 800, GROUP_BINS) float32
    filters: Tensor  # (groups, GROUP_BINS, GROUP_BANDS) float32
    bands: Tensor  # (groups, 2) int32, the first band of each group and of the next one


@lru_cache
def tables(device: torch.device) -> Tables:
    """Make the tables, once per device.

    A mel filter covers 3 to 30 of the 401 bins, so a group of neighbouring bands needs few.
    """
    hann, filters = window_and_filters(torch.device("cpu"))
    covered = [band.nonzero().flatten().tolist() for band in filters.T]  # bins of each band
    groups, first = [], 0
    for band in range(1, MEL_BANDS + 1):
        full = band == MEL_BANDS or covered[band][-1] - covered[first][0] >= GROUP_BINS
        if full or band - first == GROUP_BANDS:
            groups.append((first, band))
            first = band

    cosines = torch.zeros(len(groups), WIN_LENGTH, GROUP_BINS, dtype=torch.float64)
    sines = torch.zeros_like(cosines)
    weights = torch.zeros(len(groups), GROUP_BINS, GROUP_BANDS, dtype=torch.float64)
    sample = torch.arange(WIN_LENGTH)
    for group, (low, high) in enumerate(groups):
        bins = torch.arange(covered[low][0], covered[high - 1][-1] + 1)
        # The remainder is taken in integers: a large argument would cost the sine accuracy.
        angle = 2 * torch.pi * (sample[:, None] * bins % WIN_LENGTH).double() / WIN_LENGTH
        cosines[group, :, : len(bins)] = hann[:, None] * angle.cos()
        sines[group, :, : len(bins)] = hann[:, None] * angle.sin()
        weights[group, : len(bins), : high - low] = filters[bins, low:high]
    return Tables(
        cosines=cosines.float().to(device),
        sines=sines.float().to(device),
        filters=weights.float().to(device),
        bands=torch.tensor(groups, dtype=torch.int32).to(device),
    )


@triton.jit
def _sample(speech, at, first, last, SCALE: tl.constexpr):
    """Load samples in [first, last) as float32; 0 outside."""
    inside = (at >= first) & (at < last)
    return tl.load(speech + at, mask=inside, other=0).to(tl.float32) * SCALE


@triton.jit(do_not_specialize=["stride", "samples", "rows", "blocks", "groups"])
def _log_mel(
    pcm, stride, lengths, samples, cosines, sines, filters, bands, groups, out, rows, blocks,
    SCALE: tl.constexpr, ROWS: tl.constexpr,
    STEP: tl.constexpr, BINS: tl.constexpr, BANDS: tl.constexpr,
):  # fmt: skip
    """Compute ROWS rows of one speech's mel, for one group of bands.

    y[n] = x[n] - 0.97 x[n-1];  X[k] = sum of hann[n] y[200 t - 400 + n] exp(-2 pi i k n / 800);
    m = filters |X|;  8 (20 log10(max(1e-5, m)) - 20 + 100) / 100 - 4, clipped to -4 .. 4.
    """
    program = tl.program_id(0)
    # Neighbouring programs work on the same bands and share the group's tables in the cache.
    row = (program % blocks * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    group = program // blocks % groups
    speech = (program // blocks // groups).to(tl.int64)
    length = samples.to(tl.int64)
    if lengths is not None:
        length = tl.minimum(length, tl.load(lengths + speech))

    # Samples are counted from the first one of the block, so that 32 bits are enough.
    origin = (program % blocks).to(tl.int64) * ROWS * _HOP_LENGTH - _WIN_LENGTH // 2
    first = tl.maximum(-origin, -1).to(tl.int32)  # -1: the pre-emphasis of the first sample
    last = tl.minimum(tl.maximum(length - origin, 0), _FAR).to(tl.int32)
    pcm += speech * stride + origin
    window = tl.arange(0, ROWS)[:, None] * _HOP_LENGTH
    step, bin = tl.arange(0, STEP), tl.arange(0, BINS)[None, :]
    cosines += group * _WIN_LENGTH * BINS
    sines += group * _WIN_LENGTH * BINS

    real = tl.zeros((ROWS, BINS), tl.float32)
    imaginary = tl.zeros((ROWS, BINS), tl.float32)
    nan = tl.zeros((ROWS,), tl.float32)  # NaN in rows with samples that are not finite, 0 in others
    for start in range(0, _WIN_LENGTH, STEP):
        at = window + (start + step)[None, :]
        x = _sample(pcm, at, first, last, SCALE)
        y = x - 0.97 * _sample(pcm, at - 1, first, last, SCALE)
        y = tl.where(at < last, y, 0.0)  # the zero padding is not pre-emphasised
        nan += tl.sum(y * 0.0, axis=1)
        y = tl.where(tl.abs(y) < float("inf"), y, 0.0)
        table = (start + step)[:, None] * BINS + bin
        # Each product is added in float32: accumulating in the tensor cores loses more precision.
        real += tl.dot(y, tl.load(cosines + table), input_precision="tf32x3")
        imaginary += tl.dot(y, tl.load(sines + table), input_precision="tf32x3")

    # Samples beyond 1e17 make it infinite, and infinity times a weight of zero would be NaN.
    magnitude = tl.minimum(tl.sqrt(real * real + imaginary * imaginary), 1e30)
    band = tl.arange(0, BANDS)[None, :]
    weight = tl.load(filters + group * BINS * BANDS + tl.arange(0, BINS)[:, None] * BANDS + band)
    mel = tl.dot(magnitude, weight, input_precision="tf32x3")
    # 8 (20 log10 m + 80) / 100 - 4 = 1.6 log10 2 log2 m + 2.4
    value = 0.4816479930623699 * tl.log2(tl.maximum(mel, 1e-5)) + 2.4
    value = tl.minimum(tl.maximum(value, -4.0), 4.0) + nan[:, None]
    value = tl.where((row < 1 + length // _HOP_LENGTH)[:, None], value, -4.0)

    low = tl.load(bands + 2 * group)
    live = (low + band < tl.load(bands + 2 * group + 1)) & (row < rows)[:, None]
    out += speech * rows * _BANDS
    tl.store(out + row[:, None] * _BANDS + low + band, value, mask=live)


def block_rows(rows: int) -> int:
    """Return the rows that one program computes, of `rows` in all.

    Small blocks spread little work over the GPU; large ones read the tables less often. 64 rows
    would need too many registers.
    """
    return 16 if rows <= 512 else 32


def log_mel(pcm: Tensor, lengths: Tensor | None, out: Tensor) -> Tensor:
    if pcm.stride(1) != 1:
        pcm = pcm.contiguous()
    speeches, rows = out.shape[:2]
    matrices = tables(pcm.device)
    groups = len(matrices.bands)
    block = block_rows(speeches * rows)
    blocks = triton.cdiv(rows, block)
    _log_mel[(speeches * groups * blocks,)](
        pcm, pcm.stride(0), lengths, pcm.shape[1],
        *matrices, groups, out, rows, blocks,
        SCALE=1 / 32768 if pcm.dtype == torch.int16 else 1.0,
        ROWS=block, STEP=STEP, BINS=GROUP_BINS, BANDS=GROUP_BANDS,
        num_warps=4 if block == 16 else 8, num_stages=2,
    )  # fmt: skip
    return out
