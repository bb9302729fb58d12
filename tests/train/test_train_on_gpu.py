"""Training on a GPU, in both precisions that a GPU may use."""

import numpy as np
import pytest
import torch

from tests.train.synthetic import CPU, SyntheticData, train_to_end
from train.checkpoint import read_checkpoint
from train.config import TrainConfig
from train.training import Training


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_training_on_a_gpu(speech, tmp_path, monkeypatch, precision):
    monkeypatch.setattr("train.training.mixed_precision", lambda device: precision)
    data = SyntheticData(speech)
    config = TrainConfig(
        steps=12,
        audio_steps=4,
        batch=2,
        audio_clips=2,
        crop_fraction=0.5,
        frozen_norm_fraction=0.5,
    )
    gpu = torch.device("cuda")
    losses = train_to_end(Training(config, data, gpu), data, [8], tmp_path)
    assert np.isfinite(losses[4:]).all() and losses[-1] < losses[4]
    checkpoint = read_checkpoint(tmp_path / "8.pth")
    resumed = Training(config, data, gpu)
    resumed.load_state_dict(checkpoint)
    np.testing.assert_allclose(train_to_end(resumed, data), losses[8:], rtol=0.1)
    # A CPU needs no scaler, and can resume all the same.
    Training(config, data, CPU).load_state_dict(read_checkpoint(tmp_path / "8.pth"))
