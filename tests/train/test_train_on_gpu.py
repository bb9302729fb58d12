"""The trainer on a GPU, in both precisions it may compute in there."""

import numpy as np
import pytest
import torch

from tests.train.known import Known, begun, run
from train.plan import Plan
from train.training import read


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_on_a_gpu(speech, tmp_path, monkeypatch, precision):
    monkeypatch.setattr("train.training.mixed_precision", lambda device: precision)
    known = Known(speech)
    plan = Plan(steps=12, listen=4, batch=2, stretches=2, close_ups=0.5, settle=0.5)
    training = begun(plan, known, torch.device("cuda"))
    losses = run(training, [8], tmp_path)
    assert np.isfinite(losses[4:]).all() and losses[-1] < losses[4]
    again = begun(plan, known, torch.device("cuda"))
    again.restore(read(tmp_path / "8.pth"))
    np.testing.assert_allclose(run(again), losses[8:], rtol=0.1)
    # and on another device, which has no use for the scaler
    elsewhere = begun(plan, known)
    elsewhere.restore(read(tmp_path / "8.pth"))
