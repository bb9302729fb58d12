"""log_mel and the windows: Triton against the reference, and against librosa."""

import pytest
import torch

import kernels
from kernels import reference
from tests.tolerances import F32, TOLERANCES, assert_close

RATE = 16000
TO_REFERENCE = TOLERANCES["log_mel", F32, "reference"]
TO_ITSELF = TOLERANCES["log_mel", F32, "itself"]


def expected(pcm: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    pcm = pcm.cpu()
    out = torch.empty(len(pcm), kernels.mel_rows(pcm.shape[1]), 80)
    return reference.log_mel(pcm, lengths if lengths is None else lengths.cpu(), out)


def check(pcm: torch.Tensor, poisoned, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """Compare with the reference: one speech (S,), or a batch (B, S), into a poisoned output."""
    out = poisoned(*pcm.shape[:-1], kernels.mel_rows(pcm.shape[-1]), 80)
    assert kernels.log_mel(pcm, lengths, out=out) is out
    want = expected(pcm if pcm.dim() == 2 else pcm[None], lengths).view(out.shape)
    assert_close(out, want, TO_REFERENCE)
    return out


def test_speech_against_librosa(device, speech):
    pytest.importorskip("librosa")
    from benchmarks import frame_loop

    pcm = speech[RATE : 2 * RATE]
    mel = kernels.log_mel(pcm.to(device)).cpu()
    want = torch.from_numpy(frame_loop.log_mel(pcm.numpy())).float()
    assert_close(mel, want, TOLERANCES["log_mel", F32, "librosa"])
    assert mel.min() < -3 and mel.max() > 1


# One sample; less than a hop, exactly one, one more; the shortest speech; around a block of 16 rows.
@pytest.mark.parametrize("samples", [1, 199, 200, 201, 3000, 3199, 3200])
def test_lengths(device, speech, poisoned, samples):
    check(speech[9000 : 9000 + samples].to(device), poisoned)


# The block sizes that a launch may choose.
@pytest.mark.parametrize("block", [16, 32])
def test_blocks(device, speech, poisoned, monkeypatch, block):
    from kernels.fused import log_mel

    monkeypatch.setattr(log_mel, "block_rows", lambda rows: block)
    check(speech[: 200 * block + 77].to(device), poisoned)


def test_a_batch_of_lengths(device, speech, poisoned):
    lengths = torch.tensor([3100, 1, 2321, 3099], device=device)
    pcm = torch.stack([speech[start : start + 3100] for start in (0, 9000, 30000, 50000)])
    pcm = pcm.to(device)
    out = check(pcm, poisoned, lengths)
    assert (out[1, 1:] == -4).all()
    for speech, length, mel in zip(pcm, lengths.tolist(), out, strict=True):
        rows = kernels.mel_rows(length)
        assert_close(kernels.log_mel(speech[:length]), mel[:rows], TO_ITSELF)


def test_samples_beyond_a_length_are_ignored(device, speech):
    pcm = speech[:3000].to(device).repeat(2, 1)
    pcm[1, 2000:] = float("nan")
    mel = kernels.log_mel(pcm, torch.tensor([2000, 2000], device=device))
    assert torch.equal(mel[0], mel[1]) and mel.isfinite().all()


def test_int16(device, speech, poisoned):
    integers = (speech[20000:23000] * 32767).short().to(device)
    mel = check(integers, poisoned)
    assert_close(mel, kernels.log_mel(integers.float() / 32768), TO_ITSELF)


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_unaligned_and_strided(device, speech, poisoned, shift):
    pcm = speech[20000 - shift : 23000].to(device)[shift:]
    mel = kernels.log_mel(pcm, out=poisoned(16, 80, shift=shift))
    strided = torch.stack([pcm, -pcm], dim=1)[:, 0]
    assert torch.equal(mel, kernels.log_mel(pcm.clone()))
    assert torch.equal(mel, kernels.log_mel(strided))


def test_silence(device, poisoned):
    for pcm in (torch.zeros(3100), torch.full((3100,), -0.0), torch.zeros(3100).short()):
        assert (check(pcm.to(device), poisoned) == -4).all()


@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e3, 1e10])
def test_loudness(device, poisoned, scale):
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    check((noise * scale).to(device), poisoned)


@pytest.mark.parametrize("noise", [1e-4, 1e-3])
def test_beside_a_loud_tone(device, noise):
    """The float32 rounding noise of the tone appears in quiet bands."""
    time = torch.arange(3000) / RATE
    pcm = 0.9 * torch.sin(2 * torch.pi * 1000 * time)
    pcm += noise * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    mel = kernels.log_mel(pcm.to(device)).cpu()
    loud = TOLERANCES["log_mel", F32, "reference, beside a loud tone"]
    assert_close(mel, expected(pcm[None])[0], loud)


def test_samples_of_1e20_are_loud(device):
    pcm = 1e20 * torch.randn(3000, generator=torch.Generator().manual_seed(0))
    mel = kernels.log_mel(pcm.to(device)).cpu()
    assert torch.equal(mel, expected(pcm[None])[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_sample_spoils_only_the_rows_that_cover_it(device, value):
    pcm = torch.rand(6000, generator=torch.Generator().manual_seed(0)) - 0.5
    clean = kernels.log_mel(pcm.to(device)).cpu()
    pcm[3200] = value  # affects windows over sample 3200, and 3201 through the pre-emphasis
    mel = kernels.log_mel(pcm.to(device)).cpu()
    rows = torch.arange(31) * kernels.HOP_LENGTH
    covers = (rows - 400 <= 3201) & (rows + 400 > 3200)
    assert torch.equal(mel.isnan().all(dim=1), covers)
    assert torch.equal(mel[~covers], clean[~covers])


def mel_of(rows: int, device: torch.device) -> torch.Tensor:
    return torch.arange(rows * 80, dtype=torch.float32, device=device).view(rows, 80)


@pytest.mark.parametrize("fps", [25, 24, 30, 29.97, 12.5, 60])
@pytest.mark.parametrize("rows", [16, 17, 100])
def test_mel_windows(device, poisoned, rows, fps):
    mel = mel_of(rows, device)
    count = kernels.mel_window_count(rows, fps)
    for start in {0, 1, count - 1}:
        out = poisoned(count - start, 1, 80, 16)
        assert kernels.mel_windows(mel, fps=fps, start=start, out=out) is out
        want = reference.mel_windows(mel.cpu(), float(fps), start, 0, torch.empty(out.shape))
        assert torch.equal(out.cpu(), want)
        dropped = min(int(80 * start / fps), rows - 16)
        out = poisoned(count - start, 1, 80, 16)
        kernels.mel_windows(mel[dropped:], fps=fps, start=start, dropped=dropped, out=out)
        assert torch.equal(out.cpu(), want)


def test_mel_windows_strided_and_transposed(device, poisoned):
    mel = mel_of(60, device)
    wide = torch.cat([mel, -mel], dim=1)[:, :80]  # rows with a gap between them
    transposed = mel.t().contiguous().t()
    want = kernels.mel_windows(mel, out=poisoned(15, 1, 80, 16, shift=1))
    assert torch.equal(kernels.mel_windows(wide), want)
    assert torch.equal(kernels.mel_windows(transposed), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 8, 25])
def test_feature_windows(device, poisoned, count, dtype):
    features = torch.randn(count, 512, generator=torch.Generator().manual_seed(count))
    features = features.to(device, dtype)
    for start in {0, 1, count + 1}:
        out = poisoned(count + 2 - start, 32, 16, 16, dtype=dtype)
        assert kernels.feature_windows(features, start=start, out=out) is out
        want = reference.feature_windows(features.cpu(), start, torch.empty(out.shape, dtype=dtype))
        assert torch.equal(out.cpu(), want)


def test_feature_windows_strided_and_transposed(device, poisoned):
    features = torch.randn(9, 512, device=device)
    wide = torch.cat([features, features + 1], dim=1)[:, :512]
    transposed = features.t().contiguous().t()
    want = kernels.feature_windows(features, out=poisoned(11, 32, 16, 16, shift=3))
    assert torch.equal(kernels.feature_windows(wide), want)
    assert torch.equal(kernels.feature_windows(transposed), want)


def test_features_beyond_the_window_are_not_read(device):
    features = torch.randn(40, 512, device=device)
    want = kernels.feature_windows(features, start=8, count=8).clone()
    features[8 + 8 + 6 :] = float("nan")
    assert torch.equal(kernels.feature_windows(features, start=8, count=8), want)


def test_extreme_features_pass_through(device):
    features = torch.full((3, 512), 1e10, device=device)
    features[0, ::2], features[1, ::2], features[2, ::2] = float("inf"), -0.0, float("nan")
    want = reference.feature_windows(features.cpu(), 0, torch.empty(5, 32, 16, 16))
    got = kernels.feature_windows(features).cpu()
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))


# Many streams, and one; R of 16, and others that 16 does not divide. The first frames, frames
# around a wrap, and one that is hours away; repeats.
RINGS = [(1, 16), (3, 37), (5, 64)]
NUMBERS = [0, 1, 7, 8, 9, 10, 15, 16, 17, 30, 37, 63, 64, 100, 100, 2**33 + 5]


def picks(streams: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the number and the stream of each window."""
    sources = torch.arange(len(NUMBERS)) * 7 % streams
    return torch.tensor(NUMBERS, device=device), sources.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("streams", "ring"), RINGS)
def test_ring_feature_windows(device, poisoned, streams, ring, dtype):
    features = torch.randn(streams, ring, 512, generator=torch.Generator().manual_seed(ring))
    features = features.to(device, dtype)
    frames, sources = picks(streams, device)
    out = poisoned(len(frames), 32, 16, 16, dtype=dtype)
    assert kernels.ring_feature_windows(features, frames, sources, out=out) is out
    want = torch.empty(out.shape, dtype=dtype)
    reference.ring_feature_windows(features.cpu(), frames.cpu(), sources.cpu(), want)
    assert torch.equal(out.cpu(), want)


def test_ring_windows_strided_and_transposed(device, poisoned):
    rings = torch.randn(3, 20, 512, device=device)
    numbers, sources = picks(3, device)
    out = poisoned(len(numbers), 32, 16, 16, shift=3)
    want = kernels.ring_feature_windows(rings, numbers, sources, out=out)
    wide = torch.cat([rings, -rings], dim=2)[..., : rings.shape[2]]  # gaps between the rows
    long = torch.cat([rings, -rings], dim=1)[:, : rings.shape[1]]  # and between the rings
    by_row = rings.transpose(0, 1).contiguous().transpose(0, 1)
    by_column = rings.transpose(1, 2).contiguous().transpose(1, 2)
    for strided in (wide, long, by_row, by_column):
        assert torch.equal(kernels.ring_feature_windows(strided, numbers, sources), want)
    numbers_of_two = torch.stack([numbers, sources], dim=1)
    assert torch.equal(kernels.ring_feature_windows(rings, *numbers_of_two.unbind(1)), want)


def test_other_rows_of_a_ring_are_not_read(device):
    """The rows that a stream is about to overwrite may hold anything."""
    features = torch.full((2, 40, 512), float("nan"), device=device)
    numbers = torch.tensor([75, 3], device=device)
    features[0, 75 - 9 - 40 :], features[0, : 75 + 7 - 80], features[1, : 3 + 7] = 1, 1, 1
    sources = torch.arange(2, device=device)
    windows = kernels.ring_feature_windows(features, numbers, sources).view(2, 16, 512)
    assert (windows[0] == 1).all() and (windows[1, 5:] == 1).all() and (windows[1, :5] == 0).all()


def test_extreme_features_of_a_ring_pass_through(device):
    features = torch.full((1, 16, 512), 1e10, device=device)
    features[0, 0, ::2], features[0, 1, ::2], features[0, 2, ::2] = float("inf"), -0.0, float("nan")
    frames, sources = torch.tensor([0, 5, 12]), torch.zeros(3).long()
    want = torch.empty(3, 32, 16, 16)
    reference.ring_feature_windows(features.cpu(), frames, sources, want)
    got = kernels.ring_feature_windows(features, frames.to(device), sources.to(device)).cpu()
    assert torch.equal(got.view(torch.int32), want.view(torch.int32))
