"""The evaluation of the demo avatar, its training data, its contact sheet and its networks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("skimage", reason="SSIM is scikit-image's")
pytest.importorskip("espeakng_loader", reason="espeak-ng speaks the held-out corpus")

from engine import Avatar
from examples import DEMO, network_files
from examples import evaluate as evaluation
from examples.drawn_person import EXTRA_CLOSURES, DrawnPerson, closed, drawn_roi
from examples.evaluate import (
    MouthMetrics,
    Truth,
    closures,
    edge_errors,
    evaluate,
    openness,
    table,
    truth_of,
)
from examples.install_networks import main as install
from examples.make_demo import FPS, FRAMES
from examples.person import Mouth, Pose, draw, idle, mouth_box
from examples.sheet import SHOWN, moments, sheet
from examples.speech import REST, Phoneme, Utterance, corpus, make, mouths
from models import AudioEncoder, Generator, checkpoint

# --- the measures --------------------------------------------------------------------------------


def mouth_pictures(rows: np.ndarray) -> list[np.ndarray]:
    return [
        draw(idle(i / FPS), Mouth(*row.tolist()), region=mouth_box(idle(i / FPS)))
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def utterance() -> Utterance:
    """2 s of speech with silence."""
    return make(corpus(2026, held_out=True)[3])


@pytest.fixture(scope="module")
def truth(utterance) -> Truth:
    """The mouth shapes and the drawn mouths of 50 frames; frame i is the avatar's frame i."""
    shapes = mouths(utterance.phonemes, 50, FPS)
    numbers = list(range(50))
    boxes = [mouth_box(idle(number / FPS)) for number in numbers]
    return Truth(numbers, boxes, shapes, mouth_pictures(shapes), closures(utterance, shapes))


def test_openness_is_how_far_the_mouth_is_open():
    shapes = [Mouth(openness=o, width=0.2) for o in (0, 0.1, 0.2, 0.4, 0.6)]
    found = [openness(draw(Pose(), shape, region=mouth_box(Pose()))) for shape in shapes]
    assert found[0] < 0.003
    assert np.diff(found).min() > 0.01
    assert openness(draw(Pose(), Mouth(*REST), region=mouth_box(Pose()))) < 0.003


def test_truth_of_an_utterance(utterance):
    """Frames come in the order of a render, boxes and drawings have the same poses."""
    truth = truth_of(utterance, 5)
    assert truth.numbers == [1, 2, 3, 4, 5]
    assert truth.boxes[2] == mouth_box(idle(3 / FPS))
    assert np.array_equal(truth.shapes, mouths(utterance.phonemes, 5, FPS))
    drawn = draw(idle(3 / FPS), Mouth(*truth.shapes[2].tolist()), region=truth.boxes[2])
    assert np.array_equal(truth.pictures[2], drawn)


def figures_of(truth: Truth, rows: np.ndarray) -> dict:
    """Return the figures of a mouth that has these shapes instead of the right ones."""
    metrics = MouthMetrics()
    metrics.add(mouth_pictures(rows), truth)
    return metrics.figures()


def test_the_right_mouth_is_perfect(truth):
    figures = figures_of(truth, truth.shapes)
    assert figures["SSIM"] == pytest.approx(1)
    assert figures["PSNR, worst tenth"] > 60
    assert figures["openness, correlation"] == pytest.approx(1)
    assert figures["openness, correlation with the shape"] > 0.9
    assert figures["openness, best lag"] == 0
    assert figures["openness, slope"] == pytest.approx(1)
    assert figures["open when open"] == figures["closed on p, b, m"] == 1
    assert figures["closed in silence"] == figures["change in silence"] == 1


def test_a_late_mouth_is_noticed(truth):
    figures = figures_of(truth, np.concatenate([np.tile(REST, (3, 1)), truth.shapes[:-3]]))
    assert figures["openness, best lag"] == 3
    assert figures["openness, correlation"] < 0.7
    assert figures["PSNR, while speaking"] < figures["PSNR, mean of frames"] < 30


def test_a_mouth_that_never_moves_is_noticed(truth):
    figures = figures_of(truth, np.tile(REST, (len(truth.shapes), 1)))
    assert figures["openness, correlation"] is None or figures["openness, correlation"] < 0.5
    assert figures["open when open"] == 0
    assert abs(figures["openness, slope"]) < 0.1
    assert figures["PSNR, while speaking"] < 28


def test_a_mouth_that_opens_too_little_is_noticed(truth):
    rows = truth.shapes.copy()
    rows[:, 0] *= 0.4
    figures = figures_of(truth, rows)
    assert figures["openness, slope"] < 0.7
    assert figures["open when open"] < 0.7


def test_a_trembling_mouth_is_noticed(truth):
    rows = truth.shapes.copy()
    rows[::2, 0] += 0.04
    figures = figures_of(truth, rows)
    assert figures["change in silence"] > 1.5


def test_change_in_silence_is_between_two_frames_at_rest():
    """From speech to rest the mouth changes by 50 levels, at rest by 6 where 2 are right."""

    def pictures(*levels: int) -> list[np.ndarray]:
        return [np.full((20, 40, 3), level, np.uint8) for level in (*[50] * 20, *levels)]

    shapes = np.stack([*[REST + np.float32(0.1)] * 20, REST, REST])
    boxes = [(0, 0, 40, 20)] * 22
    metrics = MouthMetrics()
    metrics.add(pictures(100, 106), Truth(list(range(22)), boxes, shapes, pictures(60, 62), set()))
    assert metrics.figures()["change in silence"] == pytest.approx(3)


def test_a_mouth_that_never_closes_is_noticed(truth):
    rows = truth.shapes.copy()
    rows[:, 0] = np.maximum(rows[:, 0], 0.08)
    figures = figures_of(truth, rows)
    assert figures["closures"] > 0 and figures["closed on p, b, m"] == 0
    assert figures["closed in silence"] == 0


def test_closures_are_the_frames_of_p_b_m():
    phonemes = [Phoneme("a", 0, 0.4), Phoneme("'b", 0.4, 0.52), Phoneme("a", 0.52, 1.0)]
    rows = mouths(phonemes, 25, FPS)
    (frame,) = closures(Utterance(np.zeros(16000, np.float32), phonemes), rows)
    assert 10 <= frame <= 12
    assert rows[frame, 0] == 0


def test_an_edge_is_noticed():
    frame = np.full((100, 100, 3), 90, np.uint8)
    pasted = frame.copy()
    pasted[20:80, 20:80] += 10
    assert edge_errors(pasted, frame, (20, 20, 80, 80)) == [100] * 4
    pasted[20:80, 20:80] -= 10
    pasted[40:60, 40:60] += 50  # the mouth may differ
    assert edge_errors(pasted, frame, (20, 20, 80, 80)) == [0] * 4
    pasted[70:80, 40:60] += 10
    errors = edge_errors(pasted, frame, (20, 20, 80, 80))
    assert [error > 0 for error in errors] == [False, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pth", "--seconds", "0"], "seconds is 0; expected more than 0"),
        (["a.pth", "-o", "nowhere/a.json"], "nowhere is not a folder; create it first"),
        (["nothing.pth"], "nothing.pth: no such file"),
    ],
)
def test_evaluation_refuses(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert evaluation.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()  # the library for ONNX may have warned before
    assert lines[-1].startswith("error: ") and message in lines[-1]


def test_a_render_is_evaluated(monkeypatch):
    """A render that shows the avatar unchanged is the baseline that never moves."""
    monkeypatch.setattr("examples.evaluate.Pipeline", Mirror)
    monkeypatch.setattr("examples.evaluate.Avatar", Bare)
    recipes = corpus(2026, held_out=True)[3:4]
    monkeypatch.setattr("examples.evaluate.corpus", lambda *_, **__: recipes)
    figures = evaluate(Path("any"), Path("any"), seconds=1)
    assert 2 < figures["seconds"] < 3
    assert figures["speaks"] == figures["never moves"]
    assert figures["speaks"]["open when open"] == 0
    assert figures["speaks"]["closures"] > 0
    # the recorded mouth smiles more and less, and its video has noise
    assert 1 < figures["speaks"]["change in silence"] < 2
    assert figures["PSNR along the box's edge"] > 60
    lines = table(figures).splitlines()
    assert "never moves" in lines[0] and "5 frames late" in lines[0]
    assert lines[-1].startswith("PSNR along its worst side: ")


# --- the training data ----------------------------------------------------------------


def test_training_data_of_the_drawn_person(utterance, monkeypatch):
    def one(seed, minutes=0, held_out=False):
        return corpus(seed, held_out=True)[3:4]

    monkeypatch.setattr("examples.drawn_person.corpus", one)
    data = DrawnPerson(2026)
    rows = mouths(utterance.phonemes, data.speeches[0].frames, FPS)
    frame = int(rows[:, 0].argmax())
    inputs, target = data.images(0, frame, np.random.default_rng(1))
    number = int(np.random.default_rng(1).integers(FRAMES))
    drawn = drawn_roi(idle(number / FPS), Mouth(*rows[frame].tolist()))
    inner = slice(None), slice(40, 280), slice(40, 280)
    assert torch.equal(target[inner], drawn[inner]) and (target[inner] != inputs[:3][inner]).any()
    edge = torch.ones(320, 320, dtype=bool)
    edge[20:300, 20:300] = False
    assert torch.equal(target[:, edge], inputs[:3][:, edge])
    # lips closed for a p, b or m: trained on more often, but measured once
    shut = closed(utterance.phonemes, rows)
    assert closures(utterance, rows) <= shut and all(rows[frame, 0] < 0.05 for frame in shut)
    counts = [np.bincount(part[:, 1], minlength=len(rows)) for part in (data.train, data.held_out)]
    for frame in range(len(rows)):
        more = EXTRA_CLOSURES if frame in shut else 0
        assert counts[0][frame] == counts[1][frame] + more


# --- the sheet and the networks' command ---------------------------------------------------------


def test_moments():
    phonemes = [["w", 0.0, 0.1], ["'A:", 0.1, 0.3], ["w", 0.3, 0.5], ["m", 0.5, 0.7]]
    assert moments(phonemes, ("w", "w", "m")) == [
        ("w", 0.05),
        ("w", pytest.approx(0.4)),
        ("m", pytest.approx(0.6)),
    ]


class Mirror:
    """A pipeline that renders the avatar unchanged."""

    def __init__(self, avatar: Avatar, runtime: str | None = None):
        self.avatar = avatar

    def frame_count(self, speech: torch.Tensor) -> int:
        return len(speech) * FPS // 16000

    def render(self, speech):
        count = 150 if isinstance(speech, Path) else self.frame_count(speech)
        for number in range(count):
            frames, _, _ = self.avatar.batch([number + 1])
            yield frames


class Bare:
    """Loads avatars without networks."""

    @staticmethod
    def load(path, **_) -> Avatar:
        return Avatar.load(path, networks=False)


def test_the_sheet_has_pictures_and_text(monkeypatch):
    phonemes = json.loads((DEMO / "phonemes.json").read_text())
    assert len(moments(phonemes, SHOWN)) == 8
    monkeypatch.setattr("examples.sheet.Pipeline", Mirror)
    picture = sheet(Avatar.load(DEMO, networks=False), DEMO / "speech.wav", phonemes)
    assert picture.size == (4 * 240, 2 * 274)
    pixels = np.asarray(picture)
    assert (pixels[240:274].min(axis=(0, 2)) < 100).any()  # a line of text under the pictures
    assert pixels[:240].std() > 20


def test_trained_networks_are_installed(tmp_path):
    torch.manual_seed(0)
    trained = tmp_path / "trained.pth"
    made = {"generator": Generator(), "audio_encoder": AudioEncoder()}
    torch.save({kind: network.state_dict() for kind, network in made.items()}, trained)
    assert install([str(trained), "-o", str(tmp_path)]) == 0
    files = network_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["trained.pth", *(path.name for path in files.values())]
    )
    for kind, path in files.items():
        written, expected = checkpoint.load(path, kind).state_dict(), made[kind].state_dict()
        for name, tensor in expected.items():
            if tensor.is_floating_point():  # not the count of batches, which nothing needs
                torch.testing.assert_close(written[name], tensor.half().float(), msg=name)


def test_a_file_without_networks_is_not_installed(tmp_path, capsys):
    trained = Path(shutil.copy(DEMO / "speech.wav", tmp_path / "trained.pth"))
    assert install([str(trained), "-o", str(tmp_path)]) == 2
    assert "trained.pth: not a checkpoint file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["trained.pth"]


def test_networks_beyond_float16_are_not_installed(tmp_path, capsys):
    made = {"generator": Generator(), "audio_encoder": AudioEncoder()}
    weights = {kind: network.state_dict() for kind, network in made.items()}
    weights["audio_encoder"]["0.conv_block.1.running_var"] += 1e5
    torch.save(weights, tmp_path / "trained.pth")
    assert install([str(tmp_path / "trained.pth"), "-o", str(tmp_path)]) == 2
    assert "trained.pth: 0.conv_block.1.running_var is not finite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["trained.pth"]


def test_networks_are_not_installed_into_no_folder(tmp_path, capsys):
    assert install([str(tmp_path / "trained.pth"), "-o", str(tmp_path / "no")]) == 2
    assert "no is not a folder; expected the folder of an avatar" in capsys.readouterr().err


# --- the demo's own networks ----------------------------------------------------------------------


def test_the_demo_is_small():
    assert sum(path.stat().st_size for path in network_files().values()) <= 32 * 2**20


def test_the_demo_speaks(tmp_path):
    """One held-out utterance, in float16."""
    assert evaluation.main(["--seconds", "1", "-o", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["networks"] == "onnxruntime-fp16"
    speaks, still, late = (figures[name] for name in ("speaks", "never moves", "5 frames late"))
    assert speaks["PSNR, mean of frames"] > 29 > still["PSNR, mean of frames"] + 4
    assert speaks["SSIM"] > 0.92 > late["SSIM"]
    assert speaks["openness, correlation"] > 0.9 > late["openness, correlation"] + 0.2
    assert speaks["openness, best lag"] == 0 and late["openness, best lag"] == 5
    assert speaks["closed on p, b, m"] >= 0.9 > late["closed on p, b, m"]
    assert figures["PSNR along the box's edge"] > 40
