"""Mel -> mel windows, features -> feature windows: rows copied into the networks' inputs."""

import struct

import triton
import triton.language as tl
from torch import Tensor

from ..spec import FEATURE_DIM, FEATURES_PER_FRAME, MEL_BANDS, MEL_RATE, MEL_WINDOW_ROWS

_MEL_RATE, _MEL_BANDS = tl.constexpr(MEL_RATE), tl.constexpr(MEL_BANDS)
_MEL_WINDOW_ROWS, _FEATURE_DIM = tl.constexpr(MEL_WINDOW_ROWS), tl.constexpr(FEATURE_DIM)
_FEATURES_PER_FRAME = tl.constexpr(FEATURES_PER_FRAME)


@triton.jit
def _copy_feature_window(lines, live, out):
    """Copy the 16 features at `lines`, (16, 1) pointers, or zeros where not `live`."""
    feature = tl.arange(0, _FEATURE_DIM)[None, :]
    tile = tl.load(lines + feature, mask=live, other=0)
    at = tl.arange(0, _FEATURES_PER_FRAME)[:, None] * _FEATURE_DIM + feature
    tl.store(out + at, tile)


@triton.jit(do_not_specialize=["rows", "fps_bits", "start", "dropped"])
def _mel_windows(mel, stride, rows, fps_bits, start, dropped, out, BANDS: tl.constexpr):
    """Copy window f: mel[first : first + 16] transposed, first = min(int(80 f / fps), T - 16), of
    a mel without its first `dropped` rows; `rows` are there."""
    window = tl.program_id(0).to(tl.int64)
    # A Python float is float64, but a kernel's float arguments are float32: pass the bits instead.
    fps = fps_bits.to(tl.float64, bitcast=True)
    first = ((start + window).to(tl.float64) * _MEL_RATE / fps).to(tl.int64)
    first = tl.minimum(first - dropped, rows - _MEL_WINDOW_ROWS)
    row = tl.arange(0, _MEL_WINDOW_ROWS)[:, None]
    band = tl.arange(0, BANDS)[None, :]
    live = band < _MEL_BANDS
    tile = tl.load(mel + (first + row) * stride + band, mask=live)
    out += window * _MEL_BANDS * _MEL_WINDOW_ROWS
    tl.store(out + band * _MEL_WINDOW_ROWS + row, tile, mask=live)


def mel_windows(mel: Tensor, fps: float, start: int, dropped: int, out: Tensor) -> Tensor:
    if mel.stride(1) != 1:
        mel = mel.contiguous()
    (bits,) = struct.unpack("<q", struct.pack("<d", fps))
    _mel_windows[(out.shape[0],)](
        mel, mel.stride(0), mel.shape[0], bits, start, dropped, out,
        BANDS=triton.next_power_of_2(MEL_BANDS), num_warps=2,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["start", "count"])
def _feature_windows(features, stride, count, start, out):
    """Copy rows i - 8 .. i + 7 of E[0], E[0], E[1], ..., E[M-1], E[M-1], with zeros outside."""
    window = tl.program_id(0).to(tl.int64)
    row = start + window - _FEATURES_PER_FRAME // 2 + tl.arange(0, _FEATURES_PER_FRAME)[:, None]
    source_row = tl.minimum(tl.maximum(row - 1, 0), count - 1)
    live = (row >= 0) & (row < count + 2)
    out += window * _FEATURES_PER_FRAME * _FEATURE_DIM
    _copy_feature_window(features + source_row * stride, live, out)


def feature_windows(features: Tensor, start: int, out: Tensor) -> Tensor:
    if features.stride(1) != 1:
        features = features.contiguous()
    _feature_windows[(out.shape[0],)](
        features, features.stride(0), features.shape[0], start, out, num_warps=8
    )
    return out


@triton.jit(do_not_specialize=["ring"], do_not_specialize_on_alignment=["frames", "sources"])
def _ring_feature_windows(features, stream_stride, stride, ring, frames, sources, out):
    """Copy rows i - 8 .. i + 7 of E[0], E[0], E[1], ..., with E[f] at f mod R and zeros before."""
    window = tl.program_id(0).to(tl.int64)
    frame, source = tl.load(frames + window), tl.load(sources + window)
    begin = frame - (_FEATURES_PER_FRAME // 2 + 1)  # the first feature, if it is not negative
    after = tl.minimum(begin, 0) + tl.arange(0, _FEATURES_PER_FRAME)[:, None]
    row = tl.maximum(begin, 0) % ring + tl.maximum(after, 0)
    row = tl.where(row < ring, row, row - ring)  # R >= 16, so it wraps once at most
    out += window * _FEATURES_PER_FRAME * _FEATURE_DIM
    _copy_feature_window(features + source * stream_stride + row * stride, after >= -1, out)


def ring_feature_windows(features: Tensor, frames: Tensor, sources: Tensor, out: Tensor) -> Tensor:
    if features.stride(2) != 1:
        features = features.contiguous()
    _ring_feature_windows[(out.shape[0],)](
        features, features.stride(0), features.stride(1), features.shape[1],
        frames.contiguous(), sources.contiguous(), out, num_warps=8,
    )  # fmt: skip
    return out
