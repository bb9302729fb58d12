"""The analysis window and the mel filters of `log_mel`."""

from functools import lru_cache

import torch
from torch import Tensor

from .spec import MEL_BANDS, SAMPLE_RATE, WIN_LENGTH


@lru_cache
def window_and_filters(device: torch.device) -> tuple[Tensor, Tensor]:
    """Make the periodic Hann window and the Slaney mel filters, once per device.

    Returns:
        ((800,) window, (401, 80) filters), both float64.
    """
    from torchaudio.functional import melscale_fbanks

    filters = melscale_fbanks(
        n_freqs=WIN_LENGTH // 2 + 1,
        f_min=55.0,
        f_max=7600.0,
        n_mels=MEL_BANDS,
        sample_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    hann = torch.hann_window(WIN_LENGTH, periodic=True, dtype=torch.float64)
    return hann.to(device), filters.double().to(device)
