"""Training data, batches, losses and batch norms, and the errors of the command."""

import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import kernels
from engine import Avatar
from models import AudioEncoder, Generator
from tests.train.conftest import SECONDS, SIDE
from tests.train.synthetic import CPU, SyntheticData
from train.aux_heads import AuxHeads
from train.batches import (
    CLIP_FRAMES,
    CLIP_STRIDE,
    AudioBatch,
    audio_batch,
    batches,
    feature_windows,
    mouth_cells,
)
from train.config import TrainConfig
from train.data import Speech
from train.film import FilmedPerson
from train.frozen_batch_norm import freeze_norms, unfreeze_norms
from train.losses import image_loss, image_weights
from train.progress import HeldOut
from train.training import AUX_WEIGHT_FROZEN, Training

# --- data and batches ----------------------------------------------------------------------------


def test_feature_windows_of_clips_are_those_of_a_render(speech):
    """`kernels.feature_windows` makes them of the features of the whole speech."""
    whole = Speech(speech, kernels.FPS)
    features = torch.rand(len(whole.windows), 512)
    expected = kernels.feature_windows(features)
    assert whole.frames == len(expected)
    for first, count in ((0, 1), (0, 30), (50, 24), (whole.frames - 3, 3)):
        windows, valid = whole.windows_of(first, count)
        # The features stand for the encoder's output of the window with the same number.
        same = (windows[:, None] == whole.windows[None]).flatten(2).all(dim=2)
        rows = features[same.float().argmax(dim=1)]
        found = feature_windows(rows[None], valid[None])
        torch.testing.assert_close(found, expected[first : first + count])


def test_audio_clips_and_their_shapes(synthetic):
    last = synthetic.speeches[0].frames - 1
    batch = audio_batch(synthetic, torch.tensor([[0, 0], [0, 70], [0, last]]))
    firsts = 0, 58, last + 1 - CLIP_FRAMES
    frames = [torch.arange(first, first + CLIP_FRAMES, CLIP_STRIDE) for first in firsts]
    torch.testing.assert_close(batch.shapes, synthetic.shapes[0][torch.stack(frames)])
    windows, _ = synthetic.speeches[0].windows_of(58, CLIP_FRAMES)
    torch.testing.assert_close(batch.windows[1], windows)


def test_filmed_person(film):
    data = FilmedPerson(film)
    assert data.speeches[0].frames == SECONDS * kernels.FPS - 1  # a render has one frame less
    train, held_out = data.train[:, 1], data.held_out[:, 1]
    assert len(train) > 40 and len(held_out) == 8
    assert train.max() + kernels.FEATURES_PER_FRAME < held_out.min()
    random = np.random.default_rng(1)
    inputs, target = data.images(0, 5, random)
    expected, _ = kernels.face_input(*Avatar.load(film, networks=False).batch([5]))
    torch.testing.assert_close(target / 255, expected[0, :3])
    torch.testing.assert_close(inputs[3:] / 255, expected[0, 3:])
    references = [data.images(0, 5, random)[0][:3] for _ in range(40)]
    assert all((reference != target).any() for reference in references)
    assert len({float(reference.sum()) for reference in references}) > 10


def test_filmed_person_of_a_video(film, tmp_path):
    """Batches are made in a forked process, which does not decode."""
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
    data = FilmedPerson(folder, film / "aud.wav")
    held_out = HeldOut(data, seed=1)
    assert len(list(batches(data, TrainConfig(steps=2, audio_steps=0, batch=2)))) == 2
    assert held_out


def test_batches_are_functions_of_the_step(synthetic):
    config = TrainConfig(
        audio_steps=2, steps=2, batch=2, audio_clips=3, crop_fraction=0.5, frozen_norm_fraction=0.5
    )
    whole, later = list(batches(synthetic, config)), list(batches(synthetic, config, 2))
    assert len(whole) == 4
    assert [isinstance(batch, AudioBatch) for batch in whole] == [True, True, False, False]
    torch.testing.assert_close(whole[2].inputs, later[0].inputs)
    torch.testing.assert_close(whole[3].windows, later[1].windows)
    assert (whole[0].windows != whole[1].windows).any()


class Coordinates(SyntheticData):
    """Images whose values are the coordinates of the pixels in the ROI."""

    def images(self, speech, frame, random):
        down, across = torch.meshgrid(*[torch.arange(320)] * 2, indexing="ij")
        image = torch.stack([down // 2, across // 2, 0 * down]).byte()
        return torch.cat([image, image]), image


def test_crops(speech):
    """Three of four are of the mouth; the batch has about as many pixels as whole ROIs."""
    config = TrainConfig(audio_steps=0, steps=2, batch=2, crop_fraction=0.5)
    crops, whole = batches(Coordinates(speech), config)
    assert whole.corners is None and whole.target.shape == (2, 3, 320, 320)
    assert crops.inputs.shape == (4, 6, 192, 192) and crops.shapes.shape == (4, 1, 2)
    assert crops.corners[:3].tolist() == [[2, 2]] * 3
    assert crops.corners[3].tolist() != [2, 2] and crops.corners[3].min() >= 0
    for images in (crops.inputs[:, 3:], crops.target):
        for image, (down, across) in zip(images, crops.corners.tolist(), strict=True):
            assert (image[0, :, 0] == (32 * down + torch.arange(192)) // 2).all()
            assert (image[1, 0] == (32 * across + torch.arange(192)) // 2).all()


def test_mouth_cells():
    assert mouth_cells((0.22, 0.24, 0.78, 0.59)) == (2, 2, 4, 6)
    assert mouth_cells((0.0, 0.1, 1.0, 1.0)) == (1, 0, 9, 10)


class AudioOnly(nn.Module):
    """A generator that returns the activation of its audio part: the numbers of 10 x 10 cells."""

    def __init__(self):
        super().__init__()
        self.audio_model = nn.Flatten()
        self.audio_model.forward = lambda audio: (
            torch.arange(100.0).view(1, 1, 10, 10).expand(len(audio), -1, -1, -1)
        )

    def forward(self, images, audio):
        return self.audio_model(audio)


def test_audio_activation_is_cropped_as_the_image(synthetic):
    config = TrainConfig(audio_steps=0, steps=1, batch=2, crop_fraction=1)
    training = Training(config, synthetic, CPU)
    batch = next(batches(synthetic, config))
    training.generator = AudioOnly()
    output = training.forward(batch.windows, batch.valid, batch.inputs, batch.corners)
    for cells, (down, across) in zip(output, batch.corners.tolist(), strict=True):
        assert cells.shape == (1, 6, 6)
        assert cells[0, 0, 0] == 10 * down + across and cells[0, 5, 5] == cells[0, 0, 0] + 55
    whole = training.forward(batch.windows, batch.valid, torch.zeros(4, 6, 320, 320))
    assert whole.shape[2] == 10


def test_phases_of_the_default_configuration():
    config = TrainConfig()
    assert (config.audio_steps, config.first_frozen_step) == (2000, 8000)
    assert (config.first_whole_step, config.total_steps) == (16000, 22000)


@pytest.mark.parametrize("crops", [True, False])
def test_weights_of_crops_are_those_of_their_place(synthetic, monkeypatch, crops):
    config = TrainConfig(audio_steps=0, steps=1, batch=2, crop_fraction=float(crops))
    training = Training(config, synthetic, CPU)
    training._aux_heads = AuxHeads(0)
    batch = next(batches(synthetic, config))
    target, side = batch.target / 255, batch.target.shape[2]
    corners = batch.corners.tolist() if crops else [[0, 0]] * len(target)
    whole = image_weights(synthetic.mouth)[0]
    parts = [whole[:, 32 * y : 32 * y + side, 32 * x : 32 * x + side] for y, x in corners]
    weights = torch.stack(parts)
    last = len(target) - 1  # the crop from a random place
    for frame, y, x in ((0, 40, 60), (0, 120, 100), (0, 5, 5), (last, 40, 60)):
        output = target.clone()
        output[frame, :, y, x] += 0.1
        monkeypatch.setattr(training, "forward", lambda *_, output=output: output)
        expected = sum(image_loss(output, target, weights / weights.mean()))
        torch.testing.assert_close(training._image_loss(batch), expected, rtol=1e-4, atol=0)


def test_auxiliary_loss_counts_less_with_frozen_norms(synthetic, monkeypatch):
    monkeypatch.setattr("train.training.image_loss", lambda *_: (torch.zeros(()),) * 2)
    config = TrainConfig(audio_steps=0, steps=2, batch=2, crop_fraction=0, frozen_norm_fraction=0.5)
    training = Training(config, synthetic, CPU)
    batch = next(batches(synthetic, config))
    freeze_norms(training.generator)
    freeze_norms(training.audio_encoder)
    with torch.no_grad():
        before = training._image_loss(batch)
        training.step = config.first_frozen_step
        after = training._image_loss(batch)
    torch.testing.assert_close(after, AUX_WEIGHT_FROZEN * before)
    assert before > 0


# --- losses and batch norms ----------------------------------------------------------------------


def test_mouth_has_the_highest_weight():
    weights = image_weights((0.2, 0.5, 0.6, 0.9))[0, 0]
    assert weights.mean() == pytest.approx(1)
    assert weights[220, 128] > 2.5 * weights[40, 128]
    for y, x in ((0, 0), (310, 300), (100, 10), (23, 200)):  # near the edge of the ROI
        assert weights[y, x] > 1.9 * weights[40, 250]
    output = torch.zeros(1, 3, 320, 320)
    losses = []
    for y, x in ((220, 128), (40, 128)):
        target = torch.zeros(1, 3, 320, 320)
        target[:, :, y - 8 : y + 8, x - 8 : x + 8] = 1
        losses.append(sum(image_loss(output, target, weights[None, None])))
    assert losses[0] > 2.5 * losses[1]
    assert sum(image_loss(target, target, weights[None, None])) == 0


def test_blur_costs_more_than_a_tint():
    """Both have the same mean |difference|."""
    edge = (torch.arange(320) >= 160).float().expand(1, 3, 320, 320)
    blurred = ((torch.arange(320) - 144).clamp(0, 32) / 32).expand(1, 3, 320, 320)
    tinted = edge + (blurred - edge).abs().mean()
    weights = torch.ones(1, 1, 320, 320)
    torch.testing.assert_close((blurred - edge).abs().mean(), (tinted - edge).abs().mean())
    (_, blur), (_, tint) = (image_loss(output, edge, weights) for output in (blurred, tinted))
    assert blur > 10 * tint


def test_few_large_errors_cost_more_than_many_small_ones():
    """Both have the same mean |difference|."""
    target, weights = torch.full((1, 3, 320, 320), 0.5), torch.ones(1, 1, 320, 320)
    much = target.clone()
    much[..., :16, :32] += 0.4
    little = target + (much - target).mean()
    (few, _), (many, _) = (image_loss(output, target, weights) for output in (much, little))
    assert few > 2 * many


@pytest.mark.parametrize("network", [Generator, AudioEncoder])
def test_frozen_norms_give_the_same_output_and_gradients(network):
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
    for prepare in (nn.Module.eval, freeze_norms):
        prepare(module)
        module.zero_grad()
        output = module(*inputs)
        output.square().sum().backward()
        results.append([output, *(p.grad.clone() for p in module.parameters())])
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(before, after, rtol=1e-6, atol=1e-9)
    unfreeze_norms(module)
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
