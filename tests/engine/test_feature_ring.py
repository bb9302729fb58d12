"""Windows that are gathered from the ring of a speech are those of all its features."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from engine.device.buffers import speech_shapes
from engine.feature_ring import FeatureRing

WINDOWS = kernels.ring_feature_windows


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 90),
    calls=st.lists(st.integers(1, 32), min_size=1, max_size=12),
    batch=st.integers(1, 9),
    skip=st.integers(0, 40),
)
def test_windows_equal_those_of_all_features(count, calls, batch, skip):
    """In a ring that is hardly larger than what a batch reads and a call adds."""
    features = torch.rand(count, kernels.FEATURE_DIM) + 1
    first = min(skip, count + 1)
    start = max(first - 9, 0)
    start = min(start, count - 1)
    data = torch.full((1, batch + 54, kernels.FEATURE_DIM), torch.nan)
    ring = FeatureRing(data[0], first=start, count=count)
    sizes = iter(calls * count)
    for begin in range(first, count + 2, batch):
        n = min(batch, count + 2 - begin)
        while ring.stop < min(begin + n + 6, count):
            ring.append(features[ring.stop : ring.stop + next(sizes)])
        numbers = torch.arange(begin, begin + n)
        found = WINDOWS(data, numbers, torch.zeros_like(numbers))
        assert torch.equal(found, kernels.feature_windows(features, start=begin, count=n))


def test_room_of_the_ring():
    """What a batch reads, and what a call adds to it: 15 and 31 features; and 8 at the end."""
    for batch, rows in ((1, 1024), (960, 1024), (961, 1025)):
        (((_, found, _), dtype),) = speech_shapes(batch, torch.float16).values()
        assert found == rows >= batch + 15 + 31 + 8 and dtype == torch.float16
