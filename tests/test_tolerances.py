"""The comparison of the tests with their tolerances fails where it should."""

import numpy as np
import pytest
import torch

from tests.tolerances import Tolerance, assert_close

LEVEL = Tolerance(1, "one level", share=0.25)
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("actual", "expected"), [
    ([0, 0, 0, 0], [0, 0, 0, 0]),
    ([1, 0, 0, 0], [0, 0, 0, 0]),
    ([0, 255, 0, 0], [0, 254, 0, 0]),
    ([NAN, INF, -INF, -0.0], [NAN, INF, -INF, 0.0]),
    ([], []),
])  # fmt: skip
def test_within(actual, expected):
    assert_close(torch.tensor(actual), torch.tensor(expected), LEVEL)
    assert_close(np.array(actual), np.array(expected), LEVEL)


@pytest.mark.parametrize(("actual", "expected", "message"), [
    ([2, 0, 0, 0], [0, 0, 0, 0], "2.0 off"),
    ([1, 1, 0, 0], [0, 0, 0, 0], "2 of 4 values differ"),
    ([NAN, 0, 0, 0], [0, 0, 0, 0], "NaN on one side"),
    ([0, 0, 0, 0], [NAN, 0, 0, 0], "NaN on one side"),
    ([INF, 0, 0, 0], [0, 0, 0, 0], "inf off"),
    ([INF, 0, 0, 0], [-INF, 0, 0, 0], "inf off"),
])  # fmt: skip
def test_outside(actual, expected, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(torch.tensor(actual), torch.tensor(expected), LEVEL)


def test_bytes_do_not_wrap_around():
    with pytest.raises(AssertionError, match="255"):
        assert_close(torch.tensor([0]).byte(), torch.tensor([255]).byte(), LEVEL)


def test_shapes_must_be_equal():
    with pytest.raises(AssertionError):
        assert_close(torch.zeros(4), torch.zeros(1), LEVEL)


def test_relative_bound():
    relative = Tolerance(0, "rounding", relative=1e-5)
    assert_close(torch.tensor([100.0009]), torch.tensor([100.0]), relative)
    with pytest.raises(AssertionError, match="off"):
        assert_close(torch.tensor([100.0011]), torch.tensor([100.0]), relative)


def test_some_may_differ_however_few_there_are():
    assert_close(torch.ones(2), torch.zeros(2), LEVEL, at_least=2)
    with pytest.raises(AssertionError, match="2 of 2 values differ"):
        assert_close(torch.ones(2), torch.zeros(2), LEVEL)


def test_bound_relative_to_the_largest():
    scaled = Tolerance(0, "rounding", scaled=1e-3)
    assert_close(torch.tensor([0.09, 100.0]), torch.tensor([0.0, 100.0]), scaled)
    with pytest.raises(AssertionError, match="off"):
        assert_close(torch.tensor([0.11, 100.0]), torch.tensor([0.0, 100.0]), scaled)


def test_some_may_be_further_off():
    outliers = Tolerance(1, "edges", beyond=0.25)
    assert_close(torch.tensor([1, 1, 0, 200]), torch.zeros(4), outliers)
    with pytest.raises(AssertionError, match="2.0 off"):
        assert_close(torch.tensor([1, 1, 2, 2]), torch.zeros(4), outliers)


@pytest.mark.parametrize(("dtype", "peak"), [(torch.float32, 1), (torch.uint8, 255)])
def test_psnr(dtype, peak):
    """One value of 100 off by the whole range: a mean square of 1/100 of it, which is 20 dB."""
    expected = torch.zeros(100, dtype=dtype)
    actual = expected.clone()
    actual[7] = peak
    assert_close(actual, expected, Tolerance(peak, "one pixel", psnr=19.99))
    assert_close(expected, expected, Tolerance(peak, "one pixel", psnr=99))
    with pytest.raises(AssertionError, match=r"PSNR 20\.0 dB"):
        assert_close(actual, expected, Tolerance(peak, "one pixel", psnr=20.01))
