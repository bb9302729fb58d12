"""The stages of sound: PCM -> mel -> mel windows, features -> feature windows."""

import torch
from torch import Tensor

from .checks import check_no_overlap, check_tensor, item_count, make_output
from .dispatch import implementation
from .spec import (
    FEATURE_DIM,
    FEATURES_PER_FRAME,
    FPS,
    MEL_BANDS,
    MEL_RATE,
    MEL_WINDOW_ROWS,
    frame_count,
    mel_rows,
    mel_window_count,
)


def log_mel(pcm: Tensor, lengths: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """Compute the normalised log-mel spectrogram of speech.

    Pre-emphasis 0.97, STFT (800 samples every 200, periodic Hann, 400 zeros on both sides),
    magnitude, 80 Slaney mel filters from 55 to 7600 Hz, 20 log10(max(1e-5, m)) - 20, then
    clip(8 (d + 100) / 100 - 4, -4, 4): the features that Wav2Lip introduced, which are
    `librosa.stft` and `librosa.filters.mel` with those arguments.

    A CPU computes in float64. A GPU computes in float32: within 1e-4 of that on speech and noise;
    in bands 60 dB and more below a loud pure tone, rounding noise can reach 1e-3.

    Args:
        pcm: (S,) float32 in [-1, 1] or int16, at 16 kHz; or (B, S), a batch of speeches.
        lengths: (B,) int64, the number of samples of each speech of a batch, 1 to S; S for all if
            None. The values may be on the device and are not checked.
        out: tensor to write the result into.

    Returns:
        (T, 80) float32 in [-4, 4], T = 1 + S // 200, or (B, T, 80). Rows after a speech's own
        1 + length // 200 are -4. Rows whose window or pre-emphasis covers a sample that is not
        finite are NaN.
    """
    batch = isinstance(pcm, Tensor) and pcm.dim() == 2
    check_tensor("pcm", pcm, ("B", "S") if batch else ("S",), (torch.float32, torch.int16))
    if pcm.shape[-1] == 0:
        raise ValueError("pcm has 0 samples; expected at least 1")
    if lengths is not None:
        if not batch:
            raise ValueError(f"lengths is given for pcm of shape {(*pcm.shape,)}; expected (B, S)")
        check_tensor("lengths", lengths, (pcm.shape[0],), (torch.int64,), pcm.device)
    rows = mel_rows(pcm.shape[-1])
    out = make_output(out, (*pcm.shape[:-1], rows, MEL_BANDS), torch.float32, pcm.device)
    if out.numel():
        speeches, mels = (pcm, out) if batch else (pcm[None], out[None])
        with implementation(pcm) as stages:
            stages.log_mel(speeches, lengths, mels)
    return out


def mel_windows(
    mel: Tensor,
    *,
    fps: float = FPS,
    start: int = 0,
    count: int | None = None,
    dropped: int = 0,
    out: Tensor | None = None,
) -> Tensor:
    """Cut mel windows `start` to `start + count` (exclusive), the audio encoder's inputs.

    Window f begins at mel row int(80 f / fps), or at T - 16 if it would run past the end.

    Args:
        mel: (T, 80) float32, T >= 16; or only the last ones of these rows.
        fps: video frames per second.
        start: first window.
        count: number of windows, all from `start` on if None. A mel has
            `mel_window_count(T, fps)`.
        dropped: how many of the T rows are not in `mel`, from the first one on. No window reads
            them.
        out: (count, 1, 80, 16) float32 to write into.

    Returns:
        (count, 1, 80, 16) float32.
    """
    check_tensor("mel", mel, ("T", MEL_BANDS), (torch.float32,))
    if not fps > 0:
        raise ValueError(f"fps is {fps}; expected a number above 0")
    if dropped < 0:
        raise ValueError(f"dropped is {dropped}; expected at least 0")
    rows = dropped + mel.shape[0]
    count = item_count("mel windows", start, count, mel_window_count(rows, fps))
    first = min(int(MEL_RATE * start / fps), rows - MEL_WINDOW_ROWS)
    if count and first < dropped:
        raise ValueError(f"dropped is {dropped}; window {start} begins at mel row {first}")
    shape = (count, 1, MEL_BANDS, MEL_WINDOW_ROWS)
    out = make_output(out, shape, torch.float32, mel.device)
    if count:
        with implementation(mel) as stages:
            stages.mel_windows(mel, float(fps), start, dropped, out)
    return out


def feature_windows(
    features: Tensor, *, start: int = 0, count: int | None = None, out: Tensor | None = None
) -> Tensor:
    """Gather the generator's audio inputs for video frames `start` to `start + count` (exclusive).

    With P = E[0], E[0], E[1], ..., E[M-1], E[M-1], frame i gets rows i - 8 to i + 7 of P, where
    rows outside P are zeros: 16 x 512 numbers, row by row, viewed as (32, 16, 16).

    Args:
        features: (M, 512) float32 or float16, M >= 1: E above. Rows from
            `start + count + 6` on are not read.
        start: first video frame.
        count: number of frames, all from `start` on if None. M features make M + 2.
        out: (count, 32, 16, 16) to write into, of the features' dtype.

    Returns:
        (count, 32, 16, 16) of the features' dtype.
    """
    check_tensor("features", features, ("M", FEATURE_DIM), (torch.float32, torch.float16))
    if features.shape[0] == 0:
        raise ValueError("features has 0 rows; expected at least 1")
    count = item_count("video frames", start, count, frame_count(features.shape[0]))
    shape = (count, FEATURE_DIM * FEATURES_PER_FRAME // 256, 16, 16)
    out = make_output(out, shape, features.dtype, features.device)
    if count:
        with implementation(features) as stages:
            stages.feature_windows(features, start, out)
    return out


def ring_feature_windows(
    features: Tensor, frames: Tensor, sources: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """Gather the generator's audio inputs for frames of many endless streams.

    A ring holds the newest R features of a stream: feature f is at f mod R. As in
    `feature_windows`, but without an end: with P = E[0], E[0], E[1], E[2], ..., frame i gets rows
    i - 8 to i + 7 of P, so E[i - 9] to E[i + 6], where rows before P[0] are zeros.

    The values of `frames` and `sources` are not checked, because they may be on the device; one
    that is out of range reads memory that is not the ring's. An entry that only fills up a batch
    needs a valid stream too.

    Args:
        features: (B, R, 512) float32, float16 or bfloat16, R >= 16: the rings of B streams.
        frames: (n,) int64, at least 0: video frame of each window, counted from the beginning of
            its stream.
        sources: (n,) int64, 0 to B - 1: stream of each window.
        out: (n, 32, 16, 16) to write into, of the features' dtype.

    Returns:
        (n, 32, 16, 16) of the features' dtype.
    """
    floats = (torch.float32, torch.float16, torch.bfloat16)
    check_tensor("features", features, ("B", "R", FEATURE_DIM), floats)
    _check_rings("features", features, FEATURES_PER_FRAME, "frames", frames, sources)
    shape = (frames.shape[0], FEATURE_DIM * FEATURES_PER_FRAME // 256, 16, 16)
    out = make_output(out, shape, features.dtype, features.device)
    check_no_overlap(out, "features", features)
    if out.numel():
        with implementation(features) as stages:
            stages.ring_feature_windows(features, frames, sources, out)
    return out


def _check_rings(
    what: str, rings: Tensor, window: int, name: str, numbers: Tensor, sources: Tensor
) -> None:
    """Check (B, R, ...) rings, and the numbers and streams of the windows wanted of them."""
    if rings.shape[1] < window:
        raise ValueError(f"{what} has rings of {rings.shape[1]} rows; expected at least {window}")
    check_tensor(name, numbers, ("n",), (torch.int64,), rings.device)
    check_tensor("sources", sources, (numbers.shape[0],), (torch.int64,), rings.device)
    if rings.shape[0] == 0 and numbers.numel():
        raise ValueError(f"{what} has 0 streams; sources selects {numbers.numel()}")
