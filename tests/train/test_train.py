"""The trainer: what it learns from, towards what, and what it refuses."""

import errno
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kernels
from engine import Avatar
from models import AudioEncoder, Generator
from tests.train.conftest import SECONDS, SIDE, write_speech
from tests.train.known import CPU, Known
from train.__main__ import main
from train.batches import (
    SEGMENT,
    STRIDE,
    batches,
    feature_windows,
    heard,
    mouth_cells,
)
from train.losses import picture_loss, picture_weights
from train.norms import rest, wake
from train.plan import Plan
from train.progress import HeldOut
from train.recording import FilmRecording, Speech
from train.training import SETTLED, Training

# --- what is heard and seen ----------------------------------------------------------------------


def test_frames_hear_what_a_render_hears(speech):
    """The feature windows made of stretches are those that the pipeline makes of all features."""
    recorded = Speech(speech, kernels.FPS)
    features = torch.rand(len(recorded.windows), 512)
    expected = kernels.feature_windows(features)
    assert recorded.frames == len(expected)
    for first, count in ((0, 1), (0, 30), (50, 24), (recorded.frames - 3, 3)):
        windows, inside = recorded.heard(first, count)
        # which window each row is: the features stand for what the encoder makes of it
        same = (windows[:, None] == recorded.windows[None]).flatten(2).all(dim=2)
        rows = features[same.float().argmax(dim=1)]
        made = feature_windows(rows[None], inside[None])
        torch.testing.assert_close(made, expected[first : first + count])


def test_stretches_go_with_their_shapes(known):
    last = known.speeches[0].frames - 1
    batch = heard(known, torch.tensor([[0, 0], [0, 70], [0, last]]))
    wanted = [torch.arange(first, first + SEGMENT, STRIDE) for first in (0, 58, last + 1 - SEGMENT)]
    torch.testing.assert_close(batch.shapes, known.shapes[0][torch.stack(wanted)])
    windows, _ = known.speeches[0].heard(58, SEGMENT)
    torch.testing.assert_close(batch.windows[1], windows)


def test_a_film(film):
    recording = FilmRecording(film)
    assert recording.speeches[0].frames == SECONDS * kernels.FPS - 1  # the last one is not heard
    train, held_out = recording.train[:, 1], recording.held_out[:, 1]
    assert len(train) > 40 and len(held_out) == 8
    assert train.max() + kernels.FEATURES_PER_FRAME < held_out.min()
    random = np.random.default_rng(1)
    inputs, target = recording.pictures(0, 5, random)
    made, _ = kernels.face_input(*Avatar.load(film, networks=False).batch([5]))
    torch.testing.assert_close(target / 255, made[0, :3])
    torch.testing.assert_close(inputs[3:] / 255, made[0, 3:])
    references = [recording.pictures(0, 5, random)[0][:3] for _ in range(40)]
    assert all((reference != target).any() for reference in references)
    assert len({float(reference.sum()) for reference in references}) > 10


def test_a_film_that_is_a_video(film, tmp_path, monkeypatch):
    """Its decoder has threads of its own on large machines; batches are made in another process."""
    monkeypatch.setattr("engine.media.packets.SPARE_CORES", True)
    folder = tmp_path / "native"
    folder.mkdir()
    with av.open(folder / "frames.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv444p"
        for number in range(SECONDS * kernels.FPS):
            with Image.open(film / "full_body_img" / f"{number}.jpg") as image:
                container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    (folder / "boxes.json").write_text(json.dumps([[14, 16, 116, 118]] * SECONDS * kernels.FPS))
    networks = {"generator": "none.onnx", "audio_encoder": "none.onnx"}
    parts = {"fps": 25, "frames": "frames.mp4", "boxes": "boxes.json", **networks}
    (folder / "avatar.json").write_text(json.dumps(parts))
    recording = FilmRecording(folder, film / "aud.wav")
    held_out = HeldOut(recording, seed=1)
    assert len(list(batches(recording, Plan(steps=2, listen=0, batch=2)))) == 2
    assert held_out


def test_batches_are_functions_of_the_step(known):
    plan = Plan(listen=2, steps=2, batch=2, stretches=3, close_ups=0.5, settle=0.5, seed=3)
    whole, later = list(batches(known, plan)), list(batches(known, plan, 2))
    assert len(whole) == 4
    assert [batch.inputs is None for batch in whole] == [True, True, False, False]
    torch.testing.assert_close(whole[2].inputs, later[0].inputs)
    torch.testing.assert_close(whole[3].windows, later[1].windows)
    assert (whole[0].windows != whole[1].windows).any()


class Places(Known):
    """Pictures whose values say where in the ROI they are."""

    def pictures(self, speech, frame, random):
        down, across = torch.meshgrid(*[torch.arange(320)] * 2, indexing="ij")
        picture = torch.stack([down // 2, across // 2, 0 * down]).byte()
        return torch.cat([picture, picture]), picture


def test_close_ups(speech):
    """Of the mouth's cells, one of four of others, as many pixels as whole pictures have."""
    plan = Plan(listen=0, steps=2, batch=2, close_ups=0.5, settle=0.5)
    close, whole = batches(Places(speech), plan)
    assert whole.corners is None and whole.target.shape == (2, 3, 320, 320)
    assert close.inputs.shape == (4, 6, 192, 192) and close.shapes.shape == (4, 1, 2)
    assert close.corners[:3].tolist() == [[2, 2]] * 3
    assert close.corners[3].tolist() != [2, 2] and close.corners[3].min() >= 0
    for pictures in (close.inputs[:, 3:], close.target):
        for picture, (down, across) in zip(pictures, close.corners.tolist(), strict=True):
            assert (picture[0, :, 0] == (32 * down + torch.arange(192)) // 2).all()
            assert (picture[1, 0] == (32 * across + torch.arange(192)) // 2).all()


def test_mouth_cells():
    assert mouth_cells((0.22, 0.24, 0.78, 0.59)) == (2, 2, 4, 6)
    assert mouth_cells((0.0, 0.1, 1.0, 1.0)) == (1, 0, 9, 10)


class Heard(nn.Module):
    """A generator that hands on what its audio side says, a number for each of 10 x 10 places."""

    def __init__(self):
        super().__init__()
        self.audio_model = nn.Flatten()
        self.audio_model.forward = lambda heard: (
            torch.arange(100.0).view(1, 1, 10, 10).expand(len(heard), -1, -1, -1)
        )

    def forward(self, picture, heard):
        return self.audio_model(heard)


def test_close_ups_hear_what_is_heard_there(known):
    plan = Plan(listen=0, steps=1, batch=2, close_ups=1)
    training = Training(plan, known, CPU)
    batch = next(batches(known, plan))
    training.generator = Heard()
    heard = training.make(batch.windows, batch.inside, batch.inputs, batch.corners)
    for places, (down, across) in zip(heard, batch.corners.tolist(), strict=True):
        assert places.shape == (1, 6, 6)
        assert places[0, 0, 0] == 10 * down + across and places[0, 5, 5] == places[0, 0, 0] + 55
    assert training.make(batch.windows, batch.inside, torch.zeros(4, 6, 320, 320)).shape[2] == 10


def test_the_default_plan():
    plan = Plan()
    assert (plan.listen, plan.settled_from, plan.whole_from, plan.end) == (2000, 8000, 16000, 22000)


@pytest.mark.parametrize("close", [True, False])
def test_pictures_weigh_as_their_place_does(known, monkeypatch, close):
    """In a close-up too: an error counts by where in the ROI it is."""
    plan = Plan(listen=0, steps=1, batch=2, close_ups=float(close))
    training = Training(plan, known, CPU)
    training._readouts = nn.ModuleDict()
    batch = next(batches(known, plan))
    target, side = batch.target / 255, batch.target.shape[2]
    corners = batch.corners.tolist() if close else [[0, 0]] * len(target)
    whole = picture_weights(known.mouth)[0]
    parts = [whole[:, 32 * y : 32 * y + side, 32 * x : 32 * x + side] for y, x in corners]
    weights = torch.stack(parts)
    last = len(target) - 1  # of close-ups, one of elsewhere
    for frame, y, x in ((0, 40, 60), (0, 120, 100), (0, 5, 5), (last, 40, 60)):
        made = target.clone()
        made[frame, :, y, x] += 0.1
        monkeypatch.setattr(training, "make", lambda *_, made=made: made)
        expected = sum(picture_loss(made, target, weights / weights.mean()))
        torch.testing.assert_close(training._see(batch), expected, rtol=1e-4, atol=0)


def test_shapes_count_less_once_norms_are_at_rest(known, monkeypatch):
    monkeypatch.setattr("train.training.picture_loss", lambda *_: (torch.zeros(()),) * 2)
    plan = Plan(listen=0, steps=2, batch=2, close_ups=0, settle=0.5)
    training = Training(plan, known, CPU)
    batch = next(batches(known, plan))
    rest(training.generator)
    rest(training.audio_encoder)
    with torch.no_grad():
        before = training._see(batch)
        training.step = plan.settled_from
        after = training._see(batch)
    torch.testing.assert_close(after, SETTLED * before)
    assert before > 0


# --- losses and norms ----------------------------------------------------------------------------


def test_the_mouth_weighs_most():
    weights = picture_weights((0.2, 0.5, 0.6, 0.9))[0, 0]
    assert weights.mean() == pytest.approx(1)
    assert weights[220, 128] > 2.5 * weights[40, 128]
    for y, x in ((0, 0), (310, 300), (100, 10), (23, 200)):  # where a seam would be
        assert weights[y, x] > 1.9 * weights[40, 250]
    made = torch.zeros(1, 3, 320, 320)
    losses = []
    for y, x in ((220, 128), (40, 128)):
        target = torch.zeros(1, 3, 320, 320)
        target[:, :, y - 8 : y + 8, x - 8 : x + 8] = 1
        losses.append(sum(picture_loss(made, target, weights[None, None])))
    assert losses[0] > 2.5 * losses[1]
    assert sum(picture_loss(target, target, weights[None, None])) == 0


def test_a_blur_costs_more_than_a_tint():
    """Of two errors with the same mean |difference|, the one that moves edges."""
    edge = (torch.arange(320) >= 160).float().expand(1, 3, 320, 320)
    blurred = ((torch.arange(320) - 144).clamp(0, 32) / 32).expand(1, 3, 320, 320)
    tinted = edge + (blurred - edge).abs().mean()
    weights = torch.ones(1, 1, 320, 320)
    torch.testing.assert_close((blurred - edge).abs().mean(), (tinted - edge).abs().mean())
    (_, blur), (_, tint) = (picture_loss(made, edge, weights) for made in (blurred, tinted))
    assert blur > 10 * tint


def test_few_pixels_that_are_wrong_by_much():
    """They cost more than many that are wrong by little, with the same mean |difference|."""
    target, weights = torch.full((1, 3, 320, 320), 0.5), torch.ones(1, 1, 320, 320)
    much = target.clone()
    much[..., :16, :32] += 0.4
    little = target + (much - target).mean()
    (few, _), (many, _) = (picture_loss(made, target, weights) for made in (much, little))
    assert few > 2 * many


@pytest.mark.parametrize("network", [Generator, AudioEncoder])
def test_norms_at_rest_are_the_same_network(network):
    torch.manual_seed(0)
    module = network().double()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    inputs = (torch.rand(1, 6, 320, 320).double(), torch.rand(1, 32, 16, 16).double())
    if network is AudioEncoder:
        inputs = (torch.randn(3, 1, 80, 16).double(),)
    results = []
    for prepare in (nn.Module.eval, rest):
        prepare(module)
        module.zero_grad()
        made = module(*inputs)
        made.square().sum().backward()
        results.append([made, *(p.grad.clone() for p in module.parameters())])
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-6, atol=1e-9)
    wake(module)
    assert all(child.training for child in module.modules())
    before = [
        layer.running_mean.clone()
        for layer in module.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        module(*(torch.cat([t, 1 - t]) for t in inputs))
    after = [layer.running_mean for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all((a != b).any() for a, b in zip(before, after, strict=True))


# --- what is refused -----------------------------------------------------------------------------


@pytest.fixture
def own(film, tmp_path) -> Path:
    return Path(shutil.copytree(film, tmp_path / "own"))


def refused(capsys, *arguments) -> str:
    assert main([*map(str, arguments), "--no-progress"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_no_speech(own, tmp_path, capsys):
    (own / "aud.wav").unlink()
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert "aud.wav does not exist, the speech of the recording (or --audio FILE)" in line


def test_speech_of_another_length(own, tmp_path, speech, capsys):
    write_speech(own / "aud.wav", speech[: 4 * kernels.SAMPLE_RATE])
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert "4.00 s of speech for 3.00 s of frames (75 at 25 a second)" in line


def test_no_boxes(own, tmp_path, capsys):
    shutil.rmtree(own / "landmarks")
    assert "no face boxes" in refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")


def test_a_damaged_frame(own, tmp_path, capsys):
    frame = own / "full_body_img" / "40.jpg"
    frame.write_bytes(frame.read_bytes()[:700])
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert "40.jpg cannot be read as an image" in line


def test_no_room(film, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    line = refused(capsys, "--avatar", film, "-o", tmp_path / "a.pth")
    assert "No space left on device" in line


def test_another_recording(film, known, tmp_path, capsys):
    output = tmp_path / "some.pth"
    Training(Plan(listen=0), known, CPU).save(output)
    line = refused(capsys, "--avatar", film, "-o", output, "--resume")
    assert "cannot be resumed: another recording than the one" in line


def test_too_short(own, tmp_path, speech, capsys):
    for number in range(20, 75):
        (own / "full_body_img" / f"{number}.jpg").unlink()
        (own / "landmarks" / f"{number}.lms").unlink()
    write_speech(own / "aud.wav", speech[:12800])
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert "has 19 frames with speech, at least 32 are needed" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "made.onnx"], "made.onnx must end in .pth"),
        (["-o", "nowhere/made.pth"], "nowhere is not a folder"),
        (["-o", "made.pth", "--resume"], "made.pth does not exist: there is nothing to resume"),
        (["-o", "there.pth"], "there.pth exists: --resume goes on with it"),
        (["-o", "there.pth", "--resume"], "is not a checkpoint that python -m train wrote"),
        (["-o", "made.pth", "--generator", "there.pth"], "there.pth: not a checkpoint file"),
        (["-o", "made.pth", "--freeze-audio-encoder"], "needs one that has learned"),
        (["-o", "made.pth", "--listen", "5"], "listen is 5, it must be 0 for a film"),
        (["-o", "made.pth", "--device", "cuda"], "device is cuda, but PyTorch finds no CUDA GPU"),
    ],
)
def test_bad_arguments(film, tmp_path, monkeypatch, capsys, arguments, said):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    Path("there.pth").write_text("no checkpoint")
    assert said in refused(capsys, "--avatar", film, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pth"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "2"], "is 2, it must be above 0 and below 1"),
        (["--settle", "1.5"], "is 1.5, it must be from 0 to 1"),
        (["--batch", "1"], "is 1, it must be a whole number from 2 on"),
    ],
)
def test_arguments_out_of_range(capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        main(["--avatar", "somewhere", "-o", "made.pth", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_plan_goes_with_its_checkpoint(known, film, tmp_path, capsys):
    output = tmp_path / "some.pth"
    Training(Plan(listen=0), known, CPU).save(output)
    resumed = "--avatar", film, "-o", output, "--resume"
    line = refused(capsys, *resumed, "--seed", "4")
    assert "--seed cannot be given with --resume" in line and "but for --steps, --batch" in line
    line = refused(capsys, *resumed, "--freeze-audio-encoder")
    assert "--freeze-audio-encoder cannot be given with --resume" in line


def test_audio_of_a_drawing(tmp_path, capsys):
    line = refused(capsys, "--drawn", "--audio", "a.wav", "-o", tmp_path / "made.pth")
    assert "--audio is of an avatar" in line


@pytest.mark.parametrize("module", ["examples.nobody", "json"])
def test_nobody_drawn(tmp_path, capsys, module):
    line = refused(capsys, "--drawn", module, "-o", tmp_path / "made.pth")
    assert f"{module} cannot be drawn: " in line
