"""Steps: what they learn, what a checkpoint keeps of them, and what the command leaves.

How fast a training learns is a matter of rounding: after tens of steps, no two kinds of processors
agree in a single digit. So no loss here is held against a number: it is held against what the best
network could reach that does not hear, or against the same training's.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import AudioEncoder, Generator, checkpoint
from tests.train.known import CPU, Known, begun, run
from train.__main__ import main
from train.batches import batches, heard, seen
from train.losses import picture_loss
from train.plan import Plan
from train.training import Training, read

# --- what is learned -----------------------------------------------------------------------------


def test_listening_teaches_the_audio_side_alone(known):
    """The shapes of one stretch, by heart."""
    batch = heard(known, torch.tensor([[0, 60]]))
    shapes = batch.shapes.flatten(0, 1)
    deaf = (shapes - shapes.median(dim=0).values).abs().mean()  # the best that is always the same
    training = Training(Plan(steps=1, listen=16), known, CPU)
    before = {name: p.clone() for name, p in training.generator.named_parameters()}
    losses = [training.learn(batch) for _ in range(16)]
    assert max(losses[-3:]) < deaf
    moved = {name for name, p in training.generator.named_parameters() if (p != before[name]).any()}
    assert moved and all(name.startswith("audio_model.") for name in moved)
    assert not training.listening


class Lamp(Known):
    """A picture that is the same in all frames; what is wanted is dark or bright, and only what is
    heard says which. The mouth is small: close-ups of it are quick."""

    mouth, levels = (0.4, 0.4, 0.6, 0.6), (60, 200)

    def __init__(self, speech: torch.Tensor):
        super().__init__(speech)
        self.shapes = None

    def pictures(self, speech, frame, random):
        level = self.levels[frame // 20 % 2]
        pictures = torch.full((9, 320, 320), 128, dtype=torch.uint8)
        pictures[6:] = level
        return pictures[:6], pictures[6:]


def test_pictures_teach_both_networks_what_is_heard(speech):
    """Two frames, by heart."""
    lamp = Lamp(speech)
    batch = seen(lamp, torch.tensor([[0, 10], [0, 30]]), np.random.default_rng(1), close=True)
    # the best that is the same in both frames: half-way
    target, even = batch.target / 255, torch.ones(1, 1, *batch.target.shape[2:])
    deaf = sum(picture_loss(target.mean().expand_as(target), target, even))
    training = Training(Plan(steps=16, listen=0, rate=3e-3, settle=0), lamp, CPU)
    networks = training.generator, training.audio_encoder
    before = [p.clone() for network in networks for p in network.parameters()]
    losses = [training.learn(batch) for _ in range(16)]
    assert max(losses[-3:]) < deaf
    after = [p for network in networks for p in network.parameters()]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))


def test_a_frozen_encoder_stays(known):
    encoder = AudioEncoder()
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    plan = Plan(steps=1, listen=0, batch=2, freeze_audio_encoder=True)
    training = Training(plan, known, CPU, audio_encoder=encoder)
    training.learn(next(batches(known, plan)))
    for name, tensor in training.audio_encoder.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, msg=name)


# --- what is kept --------------------------------------------------------------------------------


def parts(content: dict) -> dict[str, torch.Tensor]:
    """A checkpoint's numbers by what they belong to, each as one vector."""
    training = content["training"]
    moments = training["optimizer"]["state"].values()
    groups = {
        "generator": content["generator"].values(),
        "audio encoder": content["audio_encoder"].values(),
        "readouts": training["readouts"].values(),
        "means": [state["exp_avg"] for state in moments],
        "squares": [state["exp_avg_sq"] for state in moments],
    }
    return {name: torch.cat([t.flatten().double() for t in ts]) for name, ts in groups.items()}


@pytest.fixture(scope="module")
def whole(known, tmp_path_factory) -> Iterator[Path]:
    """A folder with N.pth after each step N of a training: two that listen, one that sees
    close-ups, one that sees whole pictures."""
    folder = tmp_path_factory.mktemp("whole")
    training = begun(
        Plan(steps=2, listen=2, batch=2, stretches=2, close_ups=0.5, settle=0.5), known
    )
    run(training, range(4), folder)
    training.save(folder / "4.pth")
    yield folder
    shutil.rmtree(folder)  # they are large


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_in_any_phase(whole, known, tmp_path, stop):
    """A step after `stop` steps is the same: its loss, the weights, what the optimizer remembers."""
    before, after = (read(whole / f"{step}.pth") for step in (stop, stop + 1))
    plan = Plan(**before["training"]["plan"])
    again = begun(plan, known)
    again.restore(before)
    loss = again.learn(next(batches(known, plan, stop)))
    assert loss == pytest.approx(after["training"]["losses"][stop], rel=1e-3)
    again.save(tmp_path / "again.pth")
    begin, end, resumed = map(parts, (before, after, read(tmp_path / "again.pth")))
    for name, numbers in end.items():
        # of what the step changes; but where it begins anew, with other numbers to remember
        changed = numbers - begin[name] if numbers.shape == begin[name].shape else numbers
        assert (resumed[name] - numbers).norm() <= 0.05 * changed.norm(), name


# --- the command ---------------------------------------------------------------------------------

STEPS = 3


@pytest.fixture(scope="module")
def made(film, tmp_path_factory) -> Path:
    """The checkpoint of a few steps of the command, in a folder with all that it left."""
    output = tmp_path_factory.mktemp("made") / "made.pth"
    arguments = ["--avatar", film, "-o", output, "--steps", STEPS, "--batch", 2, "--no-progress"]
    assert main(list(map(str, arguments))) == 0
    return output


def test_what_the_command_leaves(made):
    log = json.loads(made.with_suffix(".json").read_text())
    assert len(log["losses"]) == STEPS
    (last,) = log["checkpoints"]
    assert last["step"] == STEPS and 5 < last["held_out_mouth_psnr"] < 40
    assert log["plan"]["listen"] == 0  # nobody knows the shapes of a film's mouth
    with Image.open(made.with_suffix(".png")) as sheet:
        assert sheet.size == (8 * 160, 3 * 160)
    files = sorted(path.name for path in made.parent.iterdir())
    assert files == ["made.json", "made.png", "made.pth"]
    torch.manual_seed(log["plan"]["seed"])
    for kind, new in (("generator", Generator()), ("audio_encoder", AudioEncoder())):
        trained = checkpoint.load(made, kind)
        for name, weights in new.named_parameters():
            assert (trained.get_parameter(name) != weights).any(), name


def test_resumed_is_as_if_never_ended(film, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.progress.LOOKED_AT", 1)
    begin = ["--avatar", str(film), "--batch", "2", "--steps", str(STEPS)]
    again = ["--avatar", str(film), "--resume"]
    output = tmp_path / "parts.pth"
    shown = ["--no-progress", "--every", "0", "-o", str(output)]
    learn = Training.learn

    def interrupted(self, batch):
        if self.step == 1:
            raise KeyboardInterrupt
        return learn(self, batch)

    monkeypatch.setattr(Training, "learn", interrupted)
    assert main([*begin, *shown]) == 130
    assert "is of the last checkpoint, if there was one (--resume)" in capsys.readouterr().err
    monkeypatch.setattr(Training, "learn", learn)
    assert main([*again, *shown]) == 0
    logs = [json.loads(path.with_suffix(".json").read_text()) for path in (made, output)]
    np.testing.assert_allclose(logs[0]["losses"], logs[1]["losses"], rtol=1e-3)
    assert [entry["step"] for entry in logs[1]["checkpoints"]] == list(range(1, STEPS + 1))
    assert main([*again, *shown]) == 2
    assert f"has done its {STEPS} steps already" in capsys.readouterr().err
    assert main([*again, *shown, "--steps", str(STEPS + 1)]) == 0
    kept = read(output)["training"]
    assert kept["step"] == kept["plan"]["steps"] == STEPS + 1 and kept["plan"]["batch"] == 2
