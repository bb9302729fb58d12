"""The end of a render: its picture lasts as long as its sound."""

from fractions import Fraction

import av
import numpy as np
import pytest
from scipy.io import wavfile

import kernels
from engine.media.video import VideoWriter
from tests.engine.videos import moving, plain_decode

RATE = 16000
RATES = [24, 25, Fraction(30000, 1001), 30, 50, 60, 120, 240]


def write(path, fps, samples: int, frames: np.ndarray, speech_rate: int = RATE) -> VideoWriter:
    speech = path.with_suffix(".wav")
    tone = np.sin(np.arange(samples) * 2 * np.pi * 220 / speech_rate)
    wavfile.write(speech, speech_rate, (tone * 9999).astype(np.int16))
    height, width = frames.shape[1:3]
    writer = VideoWriter(path, height=height, width=width, fps=Fraction(fps), speech=speech)
    with writer:
        for first in range(0, len(frames), 16):
            writer.write(frames[first : first + 16])
    return writer


def ends(path) -> tuple[Fraction, Fraction, list[Fraction]]:
    """Return when the picture and the sound end, in seconds, and the times of the frames."""
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        times, last = [], Fraction(0)
        for packet in container.demux():
            if packet.size and packet.stream is video:
                times.append(packet.pts * packet.time_base)
                last = max(last, (packet.pts + packet.duration) * packet.time_base)
        return last, sound.duration * sound.time_base, sorted(times)


@pytest.mark.parametrize("fps", RATES, ids=str)
@pytest.mark.parametrize("samples", [3000, 9600, 16000, 24100, 35999])
def test_picture_and_sound_end_together(tmp_path, fps, samples):
    windows = kernels.mel_window_count(kernels.mel_rows(samples), float(fps))
    count = kernels.frame_count(windows)
    frames = moving(count)
    writer = write(tmp_path / "o.mp4", fps, samples, frames)
    picture, sound, times = ends(tmp_path / "o.mp4")
    assert abs(picture - Fraction(samples, RATE)) <= Fraction(1, 1) / fps
    # AAC fills its last packet, which is 64 ms here
    assert -Fraction(1, RATE) <= sound - Fraction(samples, RATE) <= Fraction(1024, RATE)
    # the rate stays constant, and the first frames are those of the render
    assert times == [i / Fraction(fps) for i in range(count + writer.repeated)]
    # the sound ends 0.2 s after the frames, less the four that are added at its ends
    missing = samples / RATE - count / fps
    assert writer.repeated == max(int(np.ceil(missing * fps - 1e-9)) - 1, 0)
    assert missing < 0.2125


def test_60_frames_a_second_lack_more_than_25():
    """The reason for the repetition, computed for 10 s of speech."""
    lacks = {}
    for fps in (25, 60, 120):
        count = kernels.frame_count(kernels.mel_window_count(kernels.mel_rows(10 * RATE), fps))
        lacks[fps] = 10 - count / fps
    assert lacks == pytest.approx({25: 0.04, 60: 0.1333, 120: 0.1583}, abs=0.0085)


def test_the_last_frame_is_repeated(tmp_path):
    frames = moving(30)
    writer = write(tmp_path / "o.mp4", 60, 16000, frames)
    assert writer.repeated == 29
    decoded = plain_decode(tmp_path / "o.mp4")
    assert len(decoded) == 59
    for frame in decoded[29:]:
        assert np.abs(frame.astype(int) - frames[29]).mean() < 5
    assert np.abs(decoded[28].astype(int) - frames[29]).mean() > 20


@pytest.mark.parametrize("frames", [14, 15, 28, 29])
def test_a_frame_less_is_not_too_short(tmp_path, frames):
    """Exactly one frame is missing, also with rounding errors of floats."""
    assert write(tmp_path / "o.mp4", 25, (frames + 1) * 640, moving(frames)).repeated == 0


def test_no_repetition_if_the_picture_is_longer(tmp_path):
    assert write(tmp_path / "o.mp4", 25, 16000, moving(60)).repeated == 0
    with VideoWriter(tmp_path / "p.mp4", height=48, width=64, fps=Fraction(25)) as writer:
        writer.write(moving(5))
    assert writer.repeated == 0 and len(plain_decode(tmp_path / "p.mp4")) == 5


def test_other_rates_of_speech(tmp_path):
    writer = write(tmp_path / "o.mp4", 60, 44100, moving(50), 44100)
    assert writer.repeated == 9 and ends(tmp_path / "o.mp4")[0] == Fraction(59, 60)
