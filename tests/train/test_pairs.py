"""Synchronization of the frames of a film with its speech."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels
from engine import InputError
from engine.media.speech import read_speech
from engine.media.video import Video
from tests.conftest import ROOT
from tests.engine.media.sound_files import bursts, write_sound
from train.__main__ import main
from train.data import Speech
from train.film import FilmedPerson

RATE = kernels.SAMPLE_RATE


def folder_of(film: Path, folder: Path) -> Path:
    """Make an avatar whose frames are those of a video."""
    folder.mkdir()
    shutil.copy(film, folder / film.name)
    video = Video(film)
    side = min(video.height, video.width)
    (folder / "boxes.json").write_text(json.dumps([[0, 0, side, side]] * len(video)))
    networks = {"generator": "none.onnx", "audio_encoder": "none.onnx"}
    parts = {"fps": 25, "frames": film.name, "boxes": "boxes.json", **networks}
    (folder / "avatar.json").write_text(json.dumps(parts))
    return folder


def onsets(active: np.ndarray) -> np.ndarray:
    """Return the first index of each run of True."""
    return np.flatnonzero(active & ~np.r_[False, active[:-1]])


def beeps(speech: Speech) -> np.ndarray:
    """Return the first video frame whose mel windows contain each beep."""
    level = speech.windows.amax(dim=(1, 2, 3)).numpy()
    return onsets(level > (level.max() + level.min()) / 2)


def test_flashes_and_beeps_stay_together(tmp_path):
    """The sound of this film starts 0.28 s after its picture."""
    film = ROOT / "tests" / "cases" / "late_sound.mp4"
    data = FilmedPerson(folder_of(film, tmp_path / "film"), film)
    light = data._rois.float().mean(dim=(1, 2, 3)).numpy()
    flashes = onsets(light > (light.max() + light.min()) / 2)
    assert len(flashes) == 5
    together = Speech(torch.from_numpy(bursts(flashes / 25, 10, RATE)).float(), 25)
    assert np.abs(beeps(data.speeches[0]) - beeps(together)).max() <= 1


@pytest.mark.parametrize("early", [0.0, 0.32])
def test_sound_before_the_picture_is_dropped(tmp_path, early):
    """Frame 0 goes with the sound at the time of the first picture."""
    sound = bursts([0.5 + early, 1.5 + early], 4 + early, 48000)
    film = write_sound(
        tmp_path / "film.mkv", sound, picture="libx264", frames=100, picture_at=early
    )
    data = FilmedPerson(folder_of(film, tmp_path / "film"), film)
    together = Speech(torch.from_numpy(bursts([0.5, 1.5], 4, RATE)).float(), 25)
    assert np.array_equal(beeps(data.speeches[0]), beeps(together))


def test_audio_track_is_chosen(tmp_path, capsys):
    tracks = [bursts([at], 4, 48000) for at in (1, 2)]
    film = write_sound(tmp_path / "film.mkv", *tracks, picture="libx264", frames=100, default=1)
    folder = folder_of(film, tmp_path / "film")
    for track, at in ((None, 2), (0, 1), (1, 2)):
        data = FilmedPerson(folder, film, audio_track=track)
        alone = Speech(torch.from_numpy(bursts([at], 4, RATE)).float(), 25)
        assert np.array_equal(beeps(data.speeches[0]), beeps(alone))
    with pytest.raises(InputError, match="audio track is 2"):
        FilmedPerson(folder, film, audio_track=2)

    output = str(tmp_path / "person.pth")
    arguments = ["--avatar", str(folder), "--audio", str(film), "-o", output, "--no-progress"]
    arguments += ["--steps", "1", "--batch", "2"]
    assert main([*arguments, "--audio-track", "7"]) == 2
    assert capsys.readouterr().err == (
        f"error: audio track is 7; {film} has 2, from 0: 0, 1 (default)\n"
    )
    assert main(["--data", "a:b", "--audio-track", "1", "-o", output]) == 2
    assert "--audio-track is given with --data, which has speech" in capsys.readouterr().err


def test_warning_of_the_reader_is_one_line(tmp_path, capsys):
    """It is printed before the error for speech of another length."""
    film = write_sound(tmp_path / "film.mkv", bursts([1], 4, 48000), picture="libx264", frames=100)
    sound = bursts([1], 9, RATE).astype(np.float32)
    path = write_sound(tmp_path / "a.wav", np.stack([sound, -sound]), rate=RATE, codec="pcm_s16le")
    folder = folder_of(film, tmp_path / "film")
    arguments = ["--avatar", str(folder), "--audio", str(path), "-o", str(tmp_path / "person.pth")]
    assert main(arguments) == 2
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {path}: the mono mix keeps")
    assert error.startswith(f"error: {path} has 9.00 s of speech for 4.00 s of frames")
    assert len(read_speech(path)) == 9 * RATE
