"""log_mel against librosa in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from benchmarks import frame_loop
from kernels import reference
from tests.tolerances import F32, TOLERANCES, assert_close

RATE = 16000


def against_librosa(pcm: torch.Tensor) -> torch.Tensor:
    mel = kernels.log_mel(pcm)
    expected = frame_loop.log_mel(pcm.numpy())
    assert mel.dtype == torch.float32
    assert_close(mel, expected, TOLERANCES["log_mel", F32, "librosa"])
    return mel


def test_speech(speech):
    mel = against_librosa(speech)
    # Speech covers most of the range, so the comparison means something.
    assert mel.min() == -4 and mel.max() > 1


def seconds(length: float) -> np.ndarray:
    return np.arange(int(length * RATE)) / RATE


SIGNALS = {
    "sweep": lambda: 0.8 * np.sin(2 * np.pi * 30 * 263 ** (seconds(3) / 3) * 3 / np.log(263)),
    "full-scale tone": lambda: np.sin(2 * np.pi * 440 * seconds(1)),
    "chord": lambda: sum(0.2 * np.sin(2 * np.pi * f * seconds(2)) for f in (261.6, 329.6, 392.0)),
    "square": lambda: np.sign(np.sin(2 * np.pi * 200 * seconds(1))),
    "noise": lambda: np.random.default_rng(0).standard_normal(RATE) * 0.1,
    "quiet noise": lambda: np.random.default_rng(0).standard_normal(RATE) * 1e-5,
    "clicks": lambda: (np.arange(RATE) % 1777 == 0).astype(float),
    "constant": lambda: np.full(RATE, 0.5),
    "over range": lambda: 1e3 * np.random.default_rng(0).standard_normal(RATE),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_signals(name):
    against_librosa(torch.from_numpy(SIGNALS[name]().astype(np.float32)))


def test_silence_is_exactly_the_minimum():
    assert (kernels.log_mel(torch.zeros(20000)) == -4).all()


# Around the shortest speech, around whole rows, and around the blocks of the reference.
BLOCK = reference.MEL_BLOCK * kernels.HOP_LENGTH
LENGTHS = [3000, 3001, 3199, 3200, 3201, 7999, BLOCK - 401, BLOCK - 1, BLOCK, BLOCK + 1]


@pytest.mark.parametrize("length", LENGTHS)
def test_lengths(speech, length):
    against_librosa(speech.repeat(1 + length // len(speech))[:length])


def test_ten_minutes(speech):
    against_librosa(speech.repeat(1 + 600 * RATE // len(speech))[: 600 * RATE])


@given(length=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-6, 1))
@settings(max_examples=40, deadline=None)
def test_any_length_and_loudness(length, seed, scale):
    noise = np.random.default_rng(seed).uniform(-scale, scale, length)
    against_librosa(torch.from_numpy(noise.astype(np.float32)))


def test_int16_is_over_32768(speech):
    integers = (speech * 32767).short()
    assert torch.equal(kernels.log_mel(integers), kernels.log_mel(integers.float() / 32768))


def test_a_bad_sample_spoils_only_the_rows_that_cover_it():
    pcm = torch.rand(16000) - 0.5
    clean = kernels.log_mel(pcm)
    pcm[8000] = float("nan")  # affects windows over sample 8000, and 8001 through the pre-emphasis
    spoilt = kernels.log_mel(pcm).isnan().any(dim=1)
    rows = torch.arange(81) * kernels.HOP_LENGTH
    covers = (rows - 400 <= 8001) & (rows + 400 > 8000)
    # The first sample of a window has weight 0, but 0 times NaN is NaN.
    assert torch.equal(spoilt, covers)
    assert torch.equal(kernels.log_mel(pcm)[~spoilt], clean[~spoilt])


def test_strided_samples_and_out(speech):
    stereo = torch.stack([speech, -speech], dim=1)
    out = torch.full((kernels.mel_rows(len(speech)), 80), float("nan"))
    returned = kernels.log_mel(stereo[:, 0], out=out)
    assert returned is out
    assert torch.equal(out, kernels.log_mel(speech))


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (torch.zeros(0), "0 samples"),
        (torch.zeros(2, 3, 100), r"shape \(2, 3, 100\).*\(S,\)"),
        (torch.zeros(100, dtype=torch.float64), "torch.float64.*torch.float32 or torch.int16"),
        (np.zeros(100, np.float32), "ndarray"),
    ],
)
def test_bad_input(pcm, message):
    with pytest.raises(ValueError, match=message):
        kernels.log_mel(pcm)


def test_a_batch_equals_its_speeches_one_by_one(speech):
    pcm, lengths = speech[:40000].view(4, 10000), torch.tensor([10000, 1, 7777, 5200])
    mel = kernels.log_mel(pcm, lengths)
    assert mel.shape == (4, 51, 80)
    for one, length, rows in zip(pcm, lengths.tolist(), mel, strict=True):
        alone = kernels.log_mel(one[:length])
        assert torch.equal(rows[: len(alone)], alone) and (rows[len(alone) :] == -4).all()
    assert torch.equal(kernels.log_mel(pcm)[2], kernels.log_mel(pcm[2]))


@pytest.mark.parametrize(
    ("pcm", "lengths", "message"),
    [
        (
            torch.zeros(100),
            torch.tensor([9]),
            r"lengths is given for pcm of shape \(100,\); expected \(B, S\)",
        ),
        (torch.zeros(2, 100), torch.tensor([9]), r"lengths has shape \(1,\); expected \(2,\)"),
        (torch.zeros(2, 100), torch.tensor([9, 9]).int(), "lengths has dtype torch.int32"),
    ],
)
def test_bad_lengths(pcm, lengths, message):
    with pytest.raises(ValueError, match=message):
        kernels.log_mel(pcm, lengths)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(80, 80), r"shape \(80, 80\); expected \(81, 80\)"),
        (torch.zeros(81, 80, dtype=torch.float16), "torch.float16"),
        (torch.zeros(80, 81).t(), "expected a contiguous tensor"),
    ],
)
def test_bad_out(out, message):
    with pytest.raises(ValueError, match=message):
        kernels.log_mel(torch.zeros(16000), out=out)
