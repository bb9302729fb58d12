"""What is measured between a network and its original, by values worked out by hand."""

import math

import numpy as np
import pytest

from engine.plans.comparison import measure, random_inputs


def test_the_generators_difference_is_of_pixels():
    """100 values of which one is off by 0.1: a mean square of 1e-4, which is 40 dB."""
    expected = [np.zeros((1, 50)), np.full((1, 50), 0.5)]
    actual = [array.astype(np.float16) for array in expected]
    actual[1][0, 7] = 0.6
    found = measure("generator", actual, expected)
    assert found.largest == found.relative == pytest.approx(0.1, abs=1e-3)
    assert found.psnr == pytest.approx(40, abs=0.05)
    assert found.excess("fp16") == "differs by 0.1; expected at most 0.03"
    actual[1][0, :20] = 0.515625  # 1/64 off: 0.2 / 4096
    assert measure("generator", actual, expected).excess("fp16").startswith("has a PSNR of 43.1 dB")
    assert measure("generator", expected, expected).psnr == math.inf


def test_the_encoders_difference_is_relative_to_its_largest_feature():
    expected = [np.array([[0.0, -200.0]]), np.array([[50.0, 100.0]])]
    actual = [expected[0] + 0.5, expected[1]]
    found = measure("audio_encoder", actual, expected)
    assert (found.largest, found.relative, found.psnr) == (0.5, 0.0025, None)
    assert found.excess("fp16") is None
    assert found.excess("fp32") == "differs by 0.0025; expected at most 0.0001"


@pytest.mark.parametrize("kind", ["generator", "audio_encoder"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(kind, wrong):
    expected = [np.ones((1, 4))]
    actual = [np.array([[1, wrong, 1, 1]])]
    assert measure(kind, actual, expected).excess("fp16").startswith(f"differs by {wrong}")


def test_random_inputs_are_like_those_of_the_pipeline():
    image, audio = random_inputs("generator", 3)
    assert image.shape == (3, 6, 320, 320) and audio.shape == (3, 32, 16, 16)
    assert image.min() >= 0 and image.max() <= 1 and image.dtype == audio.dtype == np.float32
    masked = np.zeros((320, 320), bool)
    masked[5 : 309 + 1, 5 : 314 + 1] = True
    assert not image[:, 3:, masked].any()
    assert np.array_equal(image[:, 3:, ~masked], image[:, :3, ~masked])
    assert image[:, :3, masked].any()
    (mel,) = random_inputs("audio_encoder", 3)
    assert mel.shape == (3, 1, 80, 16) and mel.min() < -3.9 and mel.max() > 3.9
