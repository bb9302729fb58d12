"""Errors of `python -m train`: one line each, and no file left behind."""

import errno
import shutil
from pathlib import Path

import pytest
import torch

import kernels
from tests.engine.runtime.test_untrusted import write_endless_pickle
from tests.train.conftest import write_speech
from tests.train.synthetic import CPU
from train.__main__ import main
from train.checkpoint import write_checkpoint
from train.config import TrainConfig
from train.training import Training


@pytest.fixture
def own(film, tmp_path) -> Path:
    return Path(shutil.copytree(film, tmp_path / "own"))


def refused(capsys, *arguments) -> str:
    assert main([*map(str, arguments), "--no-progress"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_missing_speech(own, tmp_path, capsys):
    (own / "aud.wav").unlink()
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert (
        "aud.wav does not exist; put the speech of the frames there, or give --audio FILE" in line
    )


def test_speech_of_another_length(own, tmp_path, speech, capsys):
    write_speech(own / "aud.wav", speech[: 4 * kernels.SAMPLE_RATE])
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert "4.00 s of speech for 3.00 s of frames (75 at 25 a second); expected lengths" in line


def test_missing_face_boxes(own, tmp_path, capsys):
    shutil.rmtree(own / "landmarks")
    assert "no face boxes" in refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")


def test_damaged_frame(own, tmp_path, capsys):
    frame = own / "full_body_img" / "40.jpg"
    frame.write_bytes(frame.read_bytes()[:700])
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert "40.jpg cannot be read as an image" in line


def test_full_disk(film, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    line = refused(capsys, "--avatar", film, "-o", tmp_path / "a.pth")
    assert "No space left on device" in line


def test_resuming_with_other_data(film, synthetic, tmp_path, capsys):
    output = tmp_path / "some.pth"
    write_checkpoint(output, Training(TrainConfig(audio_steps=0), synthetic, CPU).state_dict())
    line = refused(capsys, "--avatar", film, "-o", output, "--resume")
    assert "cannot be resumed: the training data differ; expected those" in line


def test_too_few_frames(own, tmp_path, speech, capsys):
    for number in range(20, 75):
        (own / "full_body_img" / f"{number}.jpg").unlink()
        (own / "landmarks" / f"{number}.lms").unlink()
    write_speech(own / "aud.wav", speech[:12800])
    line = refused(capsys, "--avatar", own, "-o", tmp_path / "a.pth")
    assert "has 19 frames with speech; expected at least 32" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "person.onnx"], "output is person.onnx; expected a name that ends in .pth"),
        (["-o", "nowhere/person.pth"], "nowhere is not a folder; create it first"),
        (
            ["-o", "person.pth", "--resume"],
            "person.pth does not exist; there is no training to resume",
        ),
        (["-o", "there.pth"], "there.pth exists; continue it with --resume"),
        (["-o", "there.pth", "--resume"], "is not a checkpoint of python -m train"),
        (["-o", "person.pth", "--generator", "there.pth"], "there.pth: not a checkpoint file"),
        (
            ["-o", "person.pth", "--freeze-audio-encoder"],
            "is given without a trained one; add --audio-encoder FILE",
        ),
        (["-o", "person.pth", "--audio-steps", "5"], "--audio-steps is 5; expected 0 for data"),
        (["-o", "person.pth", "--device", "cuda"], "--device is cuda; PyTorch finds no CUDA GPU"),
    ],
)
def test_bad_arguments(film, tmp_path, monkeypatch, capsys, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    Path("there.pth").write_text("no checkpoint")
    assert message in refused(capsys, "--avatar", film, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["there.pth"]


def test_a_network_that_takes_years_to_read(film, tmp_path, monkeypatch, capsys):
    """A pickle of anyone is read in a process with limits."""
    write_endless_pickle(tmp_path / "x.pth")
    monkeypatch.setattr("engine.runtime.torch.TIMEOUT", 3)
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "--avatar", film, "-o", "person.pth", "--generator", "x.pth")
    assert line == "error: x.pth was not read within 0.05 minutes"
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "2"], "is 2; expected a number above 0 and below 1"),
        (["--frozen-norms", "1.5"], "--frozen-norms: is 1.5; expected a number from 0 to 1"),
        (["--crops", "half"], "is half; expected a number from 0 to 1"),
        (["--batch", "1"], "is 1; expected a whole number of at least 2"),
    ],
)
def test_arguments_out_of_range(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(["--avatar", "somewhere", "-o", "person.pth", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_options_that_cannot_change_when_resuming(synthetic, film, tmp_path, capsys):
    output = tmp_path / "some.pth"
    write_checkpoint(output, Training(TrainConfig(audio_steps=0), synthetic, CPU).state_dict())
    resumed = "--avatar", film, "-o", output, "--resume"
    line = refused(capsys, *resumed, "--seed", "4")
    assert "--seed cannot be given with --resume; only these may change: --steps" in line
    assert line.endswith("--crops, --frozen-norms")
    line = refused(capsys, *resumed, "--freeze-audio-encoder")
    assert "--freeze-audio-encoder cannot be given with --resume" in line


def test_audio_is_for_an_avatar(tmp_path, capsys):
    line = refused(capsys, "--data", "a:b", "--audio", "a.wav", "-o", tmp_path / "person.pth")
    assert "--audio is given with --data, which has speech of its own; expected --avatar" in line


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("examples.nobody:f", ", which cannot be imported: No module named 'examples.nobody'"),
        ("json:nothing", "; json has no function nothing"),
        ("json", "; expected MODULE:FUNCTION"),
        ("json:", "; expected MODULE:FUNCTION"),
    ],
)
def test_data_that_cannot_be_imported(tmp_path, capsys, function, message):
    line = refused(capsys, "--data", function, "-o", tmp_path / "person.pth")
    assert line == f"error: --data is {function}{message}"
