"""Training steps: what they change, what a checkpoint restores, which files the command writes.

Rounding differs between processors, and after tens of steps no digit of a loss is the same on two
of them. So these tests compare a loss with the best one possible without audio, or with another
loss of the same training.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine import InputError
from models import AudioEncoder, Generator, checkpoint
from tests.train.synthetic import CPU, SyntheticData, train_to_end
from train.__main__ import main
from train.batches import audio_batch, batches, image_batch
from train.checkpoint import read_checkpoint, write_checkpoint
from train.config import TrainConfig
from train.losses import image_loss
from train.training import Training

# --- steps ---------------------------------------------------------------------------------------


def test_pretraining_trains_the_audio_side_alone(synthetic):
    """It overfits one audio clip."""
    batch = audio_batch(synthetic, torch.tensor([[0, 60]]))
    shapes = batch.shapes.flatten(0, 1)
    without_audio = (shapes - shapes.median(dim=0).values).abs().mean()  # best constant output
    training = Training(TrainConfig(steps=1, audio_steps=16), synthetic, CPU)
    before = {name: p.clone() for name, p in training.generator.named_parameters()}
    losses = [training.train_step(batch) for _ in range(16)]
    assert max(losses[-3:]) < without_audio
    changed = {
        name for name, p in training.generator.named_parameters() if (p != before[name]).any()
    }
    assert changed and all(name.startswith("audio_model.") for name in changed)
    assert not training.audio_phase


class DarkOrBright(SyntheticData):
    """The inputs of all frames are the same; the target is dark or bright, as the audio says.

    The mouth is small, so that steps on crops are quick.
    """

    mouth, levels = (0.4, 0.4, 0.6, 0.6), (60, 200)

    def __init__(self, speech: torch.Tensor):
        super().__init__(speech)
        self.shapes = None

    def images(self, speech, frame, random):
        planes = torch.full((9, 320, 320), 128, dtype=torch.uint8)
        planes[6:] = self.levels[frame // 20 % 2]
        return planes[:6], planes[6:]


def test_images_train_both_networks_to_use_the_audio(speech):
    """They overfit two frames."""
    data = DarkOrBright(speech)
    chosen = torch.tensor([[0, 10], [0, 30]])
    batch = image_batch(data, chosen, np.random.default_rng(1), crops=True)
    # The best output that is the same in both frames is half-way.
    target, even = batch.target / 255, torch.ones(1, 1, *batch.target.shape[2:])
    without_audio = sum(image_loss(target.mean().expand_as(target), target, even))
    training = Training(
        TrainConfig(steps=16, audio_steps=0, rate=3e-3, frozen_norm_fraction=0), data, CPU
    )
    training.dtype = torch.float32  # in bfloat16 the loss falls later, after more steps than these
    networks = training.generator, training.audio_encoder
    before = [p.clone() for network in networks for p in network.parameters()]
    losses = [training.train_step(batch) for _ in range(16)]
    assert max(losses[-3:]) < without_audio
    after = [p for network in networks for p in network.parameters()]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_frozen_audio_encoder_stays_the_same(synthetic):
    encoder = AudioEncoder()
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    config = TrainConfig(steps=1, audio_steps=0, batch=2, freeze_audio_encoder=True)
    training = Training(config, synthetic, CPU, audio_encoder=encoder)
    training.train_step(next(batches(synthetic, config)))
    for name, tensor in training.audio_encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg=name)


# --- checkpoints ---------------------------------------------------------------------------------


def parts(content: dict) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by the part they belong to, each part as one vector."""
    training = content["training"]
    moments = training["optimizer"]["state"].values()
    groups = {
        "generator": content["generator"].values(),
        "audio encoder": content["audio_encoder"].values(),
        "auxiliary heads": training["aux_heads"].values(),
        "means": [state["exp_avg"] for state in moments],
        "squares": [state["exp_avg_sq"] for state in moments],
    }
    return {name: torch.cat([t.flatten().double() for t in ts]) for name, ts in groups.items()}


@pytest.fixture(scope="module")
def checkpoints(synthetic, tmp_path_factory) -> Iterator[Path]:
    """A folder with N.pth after step N: two steps on audio, one on crops, one on whole ROIs."""
    folder = tmp_path_factory.mktemp("checkpoints")
    config = TrainConfig(
        steps=2,
        audio_steps=2,
        batch=1,
        audio_clips=2,
        crop_fraction=0.5,
        frozen_norm_fraction=0.5,
    )
    training = Training(config, synthetic, CPU)
    train_to_end(training, synthetic, range(4), folder)
    write_checkpoint(folder / "4.pth", training.state_dict())
    yield folder
    shutil.rmtree(folder)  # the files are large


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_in_each_phase(checkpoints, synthetic, tmp_path, stop):
    """The step after `stop` steps gives the same loss, weights and optimizer state."""
    before, after = (read_checkpoint(checkpoints / f"{step}.pth") for step in (stop, stop + 1))
    config = TrainConfig(**before["training"]["config"])
    resumed = Training(config, synthetic, CPU)
    resumed.load_state_dict(before)
    loss = resumed.train_step(next(batches(synthetic, config, stop)))
    assert loss == pytest.approx(after["training"]["losses"][stop], rel=1e-3)
    write_checkpoint(tmp_path / "resumed.pth", resumed.state_dict())
    start, expected, found = map(parts, (before, after, read_checkpoint(tmp_path / "resumed.pth")))
    for name, values in expected.items():
        # Relative to the change of this step. A new phase has an optimizer of another size.
        change = values - start[name] if values.shape == start[name].shape else values
        assert (found[name] - values).norm() <= 0.05 * change.norm(), name


def test_checkpoint_of_format_1_is_refused(tmp_path):
    """Such files had a "plan" and no number."""
    path = tmp_path / "old.pth"
    torch.save({"generator": {}, "audio_encoder": {}, "training": {"plan": {}, "step": 1}}, path)
    with pytest.raises(InputError) as refused:
        read_checkpoint(path)
    assert str(refused.value) == (
        f"{path} has checkpoint format 1; expected 2. A new training can start from its weights: "
        f"--generator {path} --audio-encoder {path}"
    )


# --- the command ---------------------------------------------------------------------------------

STEPS = 3


@pytest.fixture(scope="module")
def trained(film, tmp_path_factory) -> Path:
    """The checkpoint of a few steps of the command, in a folder of its own."""
    output = tmp_path_factory.mktemp("trained") / "person.pth"
    arguments = ["--avatar", film, "-o", output, "--steps", STEPS, "--batch", 2, "--no-progress"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.progress.IMAGE_SAMPLES", 8)  # as many as the sheet shows
        assert main(list(map(str, arguments))) == 0
    return output


def test_files_of_the_command(trained):
    log = json.loads(trained.with_suffix(".json").read_text())
    assert len(log["losses"]) == STEPS
    (last,) = log["checkpoints"]
    assert last["step"] == STEPS and 5 < last["held_out_mouth_psnr"] < 40
    assert log["config"]["audio_steps"] == 0  # the mouth shapes of a film are not known
    with Image.open(trained.with_suffix(".png")) as sheet:
        assert sheet.size == (8 * 160, 3 * 160)
    files = sorted(path.name for path in trained.parent.iterdir())
    assert files == ["person.json", "person.png", "person.pth"]
    torch.manual_seed(log["config"]["seed"])
    for kind, new in (("generator", Generator()), ("audio_encoder", AudioEncoder())):
        network = checkpoint.load(trained, kind)
        for name, weights in new.named_parameters():
            assert (network.get_parameter(name) != weights).any(), name


def test_resuming_after_an_interruption(film, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.progress.IMAGE_SAMPLES", 1)
    start = ["--avatar", str(film), "--batch", "2", "--steps", str(STEPS)]
    resume = ["--avatar", str(film), "--resume"]
    output = tmp_path / "parts.pth"
    files = ["--no-progress", "--every", "0", "-o", str(output)]
    train_step = Training.train_step

    def interrupted(self, batch):
        if self.step == 1:
            raise KeyboardInterrupt
        return train_step(self, batch)

    monkeypatch.setattr(Training, "train_step", interrupted)
    assert main([*start, *files]) == 130
    assert "has the last checkpoint, if one was written (--resume)" in capsys.readouterr().err
    monkeypatch.setattr(Training, "train_step", train_step)
    assert main([*resume, *files]) == 0
    logs = [json.loads(path.with_suffix(".json").read_text()) for path in (trained, output)]
    np.testing.assert_allclose(logs[0]["losses"], logs[1]["losses"], rtol=1e-3)
    assert [entry["step"] for entry in logs[1]["checkpoints"]] == list(range(1, STEPS + 1))
    assert main([*resume, *files]) == 2
    assert f"has done its {STEPS} steps; give more with --steps" in capsys.readouterr().err
    assert main([*resume, *files, "--steps", str(STEPS + 1)]) == 0
    state = read_checkpoint(output)["training"]
    assert state["step"] == state["config"]["steps"] == STEPS + 1
    assert state["config"]["batch"] == 2


def test_data_of_a_function(synthetic, tmp_path, monkeypatch):
    """It is called with the seed, and the steps on audio are done because the data has shapes."""
    seeds = []

    def make(seed: int, *, progress: bool) -> SyntheticData:
        seeds.append(seed)
        return synthetic

    monkeypatch.setattr("tests.train.synthetic.make", make, raising=False)
    monkeypatch.setattr("train.progress.IMAGE_SAMPLES", 1)
    monkeypatch.setattr("train.progress.AUDIO_SAMPLES", 1)
    output = tmp_path / "person.pth"
    arguments = ["--data", "tests.train.synthetic:make", "-o", str(output), "--no-progress"]
    arguments += ["--steps", "1", "--audio-steps", "1", "--batch", "2", "--seed", "7"]
    assert main(arguments) == 0 and seeds == [7]
    log = json.loads(output.with_suffix(".json").read_text())
    assert len(log["losses"]) == 2 and log["data"] == "synthetic"
    assert [entry["step"] for entry in log["checkpoints"]] == [1, 2]
    figures = {"held_out_shape_error", "held_out_shape_correlation", "held_out_psnr"}
    assert all(figures <= entry.keys() for entry in log["checkpoints"])
