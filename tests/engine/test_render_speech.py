"""The command and its speech: the mp4 has the sound that the mouth speaks."""

import av
import numpy as np
import torch
from scipy.io import wavfile

from engine import Avatar, Pipeline
from engine.media.speech import read_speech
from engine.render import main
from tests.conftest import ROOT
from tests.engine.media.sound_files import bursts, heard_at, write_sound

CASES = ROOT / "tests" / "cases"


def render(*arguments) -> int:
    return main([*map(str, arguments), "--no-progress"])


def sound_of(path) -> tuple[np.ndarray, int]:
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)]), rate


def test_a_track_of_a_film(native, tmp_path):
    """The track has a gap, and begins after the picture."""
    tracks = [bursts([0.2], 0.6, 48000), bursts([0.1, 0.4], 0.6, 48000)]
    film = write_sound(
        tmp_path / "film.mkv", *tracks, picture="libx264", at=0.12, frames=20, default=0,
        times=lambda t: t + 0.2 * (t > 0.4),
    )  # fmt: skip
    out, images = tmp_path / "o.mp4", tmp_path / "frames"
    spoken = read_speech(film, track=1)
    np.testing.assert_allclose(heard_at(spoken.numpy()), [0.22, 0.72], atol=0.003)
    options = ["--audio-track", 1, "--frames", images, "--device", "cpu"]
    assert render("--avatar", native, "--audio", film, "-o", out, *options) == 0
    sound, rate = sound_of(out)
    np.testing.assert_allclose(heard_at(sound, rate), [0.22, 0.72], atol=0.003)
    pipeline = Pipeline(Avatar.load(native, device="cpu"))
    assert len(list(images.iterdir())) == pipeline.frame_count(spoken)
    of_default = read_speech(film)
    assert heard_at(of_default.numpy()).size == 1 and not torch.equal(of_default, spoken)


def test_no_such_track(native, tmp_path, capsys):
    path = CASES / "eight_channels.opus"
    options = ["-o", tmp_path / "o.mp4", "--audio-track", 1]
    assert render("--avatar", native, "--audio", path, *options) == 2
    assert capsys.readouterr().err == f"error: audio track is 1; {path} has 1, from 0: 0\n"
    assert list(tmp_path.iterdir()) == []


def test_a_warning_is_one_line_and_once(native, tmp_path, capsys):
    sound = bursts([0.2], 0.6, 16000).astype(np.float32)
    path = tmp_path / "a.wav"
    wavfile.write(path, 16000, np.stack([sound, -sound], axis=1))
    assert render("--avatar", native, "--audio", path, "-o", tmp_path / "o.mp4") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said == [
        f"warning: {path}: the mono mix keeps 0.0% of the energy of channel 0, the loudest; "
        "channel 0 is used alone"
    ]
