"""Windows against slices taken one by one in NumPy, and against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from benchmarks import frame_loop


def mel_of(rows: int) -> torch.Tensor:
    return torch.arange(rows * 80, dtype=torch.float32).view(rows, 80)


def sliced(mel: torch.Tensor, fps: float = 25) -> np.ndarray:
    rows = mel.numpy()
    count = int((len(rows) - 16) / 80 * fps) + 2
    starts = [min(int(80 * f / fps), len(rows) - 16) for f in range(count)]
    return np.stack([rows[s : s + 16].T for s in starts])[:, None]


@pytest.mark.parametrize("rows", [16, 17, 18, 19, 20, 64, 79, 80, 81, 481, 4801])
def test_mel_windows(rows):
    mel = mel_of(rows)
    np.testing.assert_array_equal(kernels.mel_windows(mel).numpy(), sliced(mel))


@given(rows=st.integers(16, 700), fps=st.sampled_from([12.5, 24, 25, 30000 / 1001, 30, 50, 60]))
@settings(max_examples=60, deadline=None)
def test_mel_windows_at_any_rate(rows, fps):
    mel = mel_of(rows)
    np.testing.assert_array_equal(kernels.mel_windows(mel, fps=fps).numpy(), sliced(mel, fps))


# The first mel row of frame f's window: 80 / 25 = 3.2 rows per frame, truncated.
STARTS = [0, 3, 6, 9, 12, 16, 19, 22, 25, 28, 32]


@pytest.mark.parametrize("frames", [8, 25, 40])
def test_index_arithmetic(frames):
    rows = 16 + int(np.ceil((frames - 2) * 3.2))  # the shortest mel with that many windows
    assert kernels.mel_window_count(rows) == frames
    assert kernels.mel_window_count(rows - 1) == frames - 1
    windows = kernels.mel_windows(mel_of(rows))
    first_row = windows[:, 0, 0, 0] / 80
    wanted = [min(start, rows - 16) for start in STARTS]
    assert first_row[: len(STARTS)].tolist() == wanted[:frames]
    assert first_row[-1] == rows - 16  # the last window ends with the mel
    assert (windows[:, 0, 0, -1] / 80 - first_row == 15).all()


def test_counts_of_known_lengths():
    # samples, mel rows, windows, video frames
    for samples, rows, windows, frames in [
        (3000, 16, 2, 4),
        (16000, 81, 22, 24),
        (96000, 481, 147, 149),
        (160000, 801, 247, 249),
    ]:
        assert kernels.mel_rows(samples) == rows
        assert kernels.mel_window_count(rows) == windows
        assert kernels.frame_count(windows) == frames


def test_counts_keep_the_rounding_of_the_formula():
    # For some lengths the floating-point formula, which trained avatars were cut with, gives one
    # window less than exact arithmetic.
    exact = [(rows - 16) * 25 // 80 + 2 for rows in range(16, 5000)]
    given = [kernels.mel_window_count(rows) for rows in range(16, 5000)]
    assert given == [int((rows - 16) / 80 * 25) + 2 for rows in range(16, 5000)]
    assert given != exact


@pytest.mark.parametrize("rows", [1, 8, 15])
def test_too_short(rows):
    with pytest.raises(
        ValueError, match=rf"too short: {rows} mel rows; expected at least 16.*3000 samples"
    ):
        kernels.mel_windows(mel_of(rows))


def features_of(count: int) -> torch.Tensor:
    return torch.arange(1, count * 512 + 1, dtype=torch.float32).view(count, 512)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 25, 40])
def test_feature_windows(count):
    features = features_of(count).numpy()
    padded = np.concatenate([features[:1], features, features[-1:]])
    expected = np.stack([frame_loop.feature_window(padded, i) for i in range(count + 2)])
    actual = kernels.feature_windows(torch.from_numpy(features)).numpy()
    np.testing.assert_array_equal(actual, expected)


def test_feature_window_by_hand():
    windows = kernels.feature_windows(features_of(30)).view(32, 16, 512)
    first = (windows[:, :, 0] - 1) / 512  # the feature of each row; -1/512 for zeros
    assert first[0].tolist() == [-1 / 512] * 8 + [0, 0, 1, 2, 3, 4, 5, 6]
    assert first[10].tolist() == list(range(1, 17))
    assert first[31].tolist() == [*range(22, 30), 29] + [-1 / 512] * 7


@given(count=st.integers(1, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_equals_that_part_of_the_whole(count, data):
    features = features_of(count)
    start = data.draw(st.integers(0, count + 2))
    part = data.draw(st.integers(0, count + 2 - start))
    whole = kernels.feature_windows(features)
    some = kernels.feature_windows(features, start=start, count=part)
    assert torch.equal(some, whole[start : start + part])

    mel = mel_of(16 + 3 * count)
    whole = kernels.mel_windows(mel)
    start = min(start, len(whole))
    part = min(part, len(whole) - start)
    assert torch.equal(kernels.mel_windows(mel, start=start, count=part), whole[start:][:part])
    dropped = data.draw(st.integers(0, min(int(3.2 * start), len(mel) - 16)))
    found = kernels.mel_windows(mel[dropped:], start=start, count=part, dropped=dropped)
    assert torch.equal(found, whole[start:][:part])


def test_features_beyond_the_window_are_not_read():
    features = features_of(40)
    expected = kernels.feature_windows(features, start=8, count=8)
    features[8 + 8 + 6 :] = float("nan")
    assert torch.equal(kernels.feature_windows(features, start=8, count=8), expected)


def rings_of(streams: list[torch.Tensor], ring: int) -> torch.Tensor:
    """Write streams into rings row by row, as sessions do: (B, R, ...), NaN where nothing is."""
    made = torch.full((len(streams), ring, streams[0].shape[1]), float("nan"))
    for rows, stream in zip(made, streams, strict=True):
        for number, row in enumerate(stream):
            rows[number % ring] = row
    return made


def streams_of(make, data: st.DataObject, least: int) -> tuple[list[torch.Tensor], int]:
    """Draw the lengths of 1 to 4 streams, and the rows of their rings."""
    ring = data.draw(st.integers(16, 50))
    lengths = data.draw(st.lists(st.integers(least, 6 * ring), min_size=1, max_size=4))
    return [make(length) + 10_000_000 * number for number, length in enumerate(lengths)], ring


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_feature_windows_of_rings(data):
    streams, ring = streams_of(features_of, data, 7)
    features = rings_of(streams, ring)
    sources = data.draw(st.lists(st.integers(0, len(streams) - 1), max_size=6))
    frames = []
    for length in (len(streams[source]) for source in sources):
        # Frame i needs E[i - 9] to E[i + 6].
        oldest = 0 if length <= ring else length - ring + 9
        frames.append(data.draw(st.integers(oldest, length - 7)))
    windows = kernels.ring_feature_windows(
        features, torch.tensor(frames).long(), torch.tensor(sources).long()
    )
    assert windows.shape == (len(frames), 32, 16, 16)
    for window, frame, source in zip(windows, frames, sources, strict=True):
        expected = kernels.feature_windows(streams[source], start=frame, count=1)
        assert torch.equal(window[None], expected)
        padded = np.concatenate([streams[source][:1].numpy(), streams[source].numpy()])
        np.testing.assert_array_equal(window, frame_loop.feature_window(padded, frame))


def test_feature_window_of_a_ring_by_hand():
    features = rings_of([features_of(100), features_of(20)], 20)
    frames, sources = torch.tensor([0, 8, 9, 93]), torch.tensor([1, 1, 1, 0])
    windows = kernels.ring_feature_windows(features, frames, sources).view(4, 16, 512)
    numbers = (windows[:, :, 0] - 1) / 512  # the feature of each row; -1/512 for zeros
    assert numbers[0].tolist() == [-1 / 512] * 8 + [0, 0, 1, 2, 3, 4, 5, 6]
    assert numbers[1].tolist() == [0, 0, *range(1, 15)]
    assert numbers[2].tolist() == list(range(16))
    assert numbers[3].tolist() == list(range(84, 100))


def test_rings_of_other_dtypes_and_out():
    frames, sources = torch.tensor([5, 90, 40]), torch.tensor([1, 0, 1])
    features = torch.randn(2, 32, 512)
    for dtype in (torch.float16, torch.bfloat16):
        out = torch.full((3, 32, 16, 16), float("nan"), dtype=dtype)
        rings = features.to(dtype)
        assert kernels.ring_feature_windows(rings, frames, sources, out=out) is out
        whole = kernels.ring_feature_windows(rings.float(), frames, sources)
        assert torch.equal(out.float(), whole)


def test_half_precision_and_out():
    features = features_of(9).half()
    out = torch.full((11, 32, 16, 16), float("nan"), dtype=torch.float16)
    assert kernels.feature_windows(features, out=out) is out
    assert torch.equal(out.float(), kernels.feature_windows(features.float()))
    mel = mel_of(100)
    out = torch.full((28, 1, 80, 16), float("nan"))
    assert kernels.mel_windows(mel, out=out) is out
    assert torch.equal(out, kernels.mel_windows(mel))


RINGS = torch.zeros(2, 16, 512)
NUMBERS, SOURCES = torch.zeros(3).long(), torch.zeros(3).long()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernels.mel_windows(torch.zeros(100, 79)), r"\(100, 79\).*\(T, 80\)"),
        (
            lambda: kernels.mel_windows(torch.zeros(100, 80), fps=0),
            "fps is 0; expected a number above 0",
        ),
        (lambda: kernels.mel_windows(torch.zeros(100, 80), fps=float("nan")), "fps is nan"),
        (
            lambda: kernels.mel_windows(torch.zeros(16, 80), start=1, count=2),
            "mel windows 1 to 3 were requested; expected a range in 0 to 2",
        ),
        (lambda: kernels.mel_windows(torch.zeros(50, 80), dropped=-1), "dropped is -1"),
        (
            lambda: kernels.mel_windows(torch.zeros(50, 80), start=10, dropped=33),
            "dropped is 33; window 10 begins at mel row 32",
        ),
        (lambda: kernels.feature_windows(torch.zeros(0, 512)), "0 rows"),
        (lambda: kernels.feature_windows(torch.zeros(5, 512), start=-1), "-1"),
        (
            lambda: kernels.feature_windows(torch.zeros(5, 512), count=8),
            "0 to 8 were requested; expected a range in 0 to 7",
        ),
        (lambda: kernels.feature_windows(torch.zeros(5, 512).double()), "float64"),
        (
            lambda: kernels.ring_feature_windows(RINGS[0], NUMBERS, SOURCES),
            r"features has shape \(16, 512\); expected \(B, R, 512\)",
        ),
        (
            lambda: kernels.ring_feature_windows(RINGS, NUMBERS.int(), SOURCES),
            "frames has dtype torch.int32; expected torch.int64",
        ),
        (
            lambda: kernels.ring_feature_windows(RINGS, NUMBERS, SOURCES[:2]),
            r"sources has shape \(2,\); expected \(3,\)",
        ),
        (
            lambda: kernels.ring_feature_windows(RINGS[:0], NUMBERS, SOURCES),
            "features has 0 streams; sources selects 3",
        ),
        (
            lambda: kernels.ring_feature_windows(RINGS, NUMBERS, SOURCES.to("meta")),
            "sources is on meta; expected cpu",
        ),
        (
            lambda: kernels.ring_feature_windows(RINGS[:, :15], NUMBERS, SOURCES),
            "features has rings of 15 rows; expected at least 16",
        ),
        (
            lambda: kernels.ring_feature_windows(RINGS.double(), NUMBERS, SOURCES),
            "features has dtype torch.float64; expected torch.float32 or torch.float16 or",
        ),
        (
            lambda: kernels.ring_feature_windows(RINGS, 5, SOURCES),
            "frames is a int; expected a torch.Tensor",
        ),
        (
            lambda: kernels.ring_feature_windows(
                RINGS, NUMBERS[:1], SOURCES[:1], out=RINGS[:1].view(1, 32, 16, 16)
            ),
            "out overlaps features in memory",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
