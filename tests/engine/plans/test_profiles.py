"""The profiles of a plan."""

import pytest

from engine.build import BATCH
from engine.device.batch_sizes import BATCH_SIZES, ENCODER_BATCH_SIZES
from engine.plans.profiles import profile_for, profiles


@pytest.mark.parametrize(
    ("network", "batch", "expected"),
    [
        ("generator", [1, 25, 25], [[1, 25, 25], [1, 1, 4]]),
        ("generator", [1, 5, 40], [[1, 5, 40], [1, 1, 4]]),
        ("generator", [1, 4, 6], [[1, 4, 6]]),
        ("generator", [1, 1, 25], [[1, 1, 25]]),
        ("generator", [2, 25, 25], [[2, 25, 25]]),
        ("audio_encoder", [1, 32, 32], [[1, 32, 32], [1, 8, 8]]),
        ("audio_encoder", [8, 32, 32], [[8, 32, 32], [8, 8, 8]]),
        ("audio_encoder", [1, 4, 6], [[1, 4, 6]]),
    ],
)
def test_profiles(network, batch, expected):
    assert profiles(network, batch) == expected
    for n in range(batch[0], batch[2] + 1):
        least, _, most = expected[profile_for(network, batch, n)]
        assert least <= n <= most
        assert profile_for(network, batch, n) == (len(expected) == 2 and n <= expected[1][2])


def test_profiles_of_what_pipelines_run():
    """By default one frame and four, and the first 8 windows, have kernels of their own."""
    used = {n: profile_for("generator", BATCH["generator"], n) for n in BATCH_SIZES if n <= 25}
    assert used == {1: 1, 4: 1, 8: 0, 16: 0, 25: 0}
    encoder = BATCH["audio_encoder"]
    assert [profile_for("audio_encoder", encoder, n) for n in ENCODER_BATCH_SIZES] == [1, 0]
