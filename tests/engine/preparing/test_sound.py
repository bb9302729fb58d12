"""What is said of a film's sound, and what becomes of it: channels, levels, damage."""

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from engine.errors import InputError
from engine.preparing import sound
from engine.preparing.sound import speech_fraction, survey_sound, write_speech
from tests.engine.media.sound_files import write_sound

RATE, FPS = 16000, Fraction(25)
TONE = 0.4 * np.sin(2 * np.pi * 220 * np.arange(2 * RATE) / RATE)


def film(path: Path, *channels: np.ndarray, **options) -> Path:
    """A film of 2 s whose sound is stored as it is."""
    return write_sound(
        path, np.stack(channels), rate=RATE, codec="pcm_s16le", picture="mpeg4", **options
    )


def written(path: Path, survey=None, seconds: int = 2) -> np.ndarray:
    """Return the samples of the speech of a film."""
    out = path.with_suffix(".wav")
    kept = np.ones(25 * seconds, bool)
    write_speech(out, path, survey, zero=0.0, fps=FPS, kept=kept)
    with wave.open(str(out)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767


def test_channels_that_cancel_each_other(tmp_path):
    """Their mean would be silence."""
    path = film(tmp_path / "film.mov", -0.9 * TONE, TONE)
    survey = survey_sound(path, 0.0)
    assert survey.alone == 1 and survey.channels == 2
    (note,) = survey.notes
    assert "film.mov: the mono mix keeps 0." in note and "channel 1 is used alone" in note
    np.testing.assert_allclose(written(path, survey), TONE, atol=1e-3)


def test_the_channel_that_is_clipped_most_counts(tmp_path):
    clipped = TONE.copy()
    clipped[: RATE // 5] = 1
    survey = survey_sound(film(tmp_path / "film.mov", TONE, clipped), 0.0)
    assert survey.clipped == pytest.approx(0.1, abs=1e-4) and survey.peak > 0.999
    assert survey.alone is None and survey.notes == [] and survey.seconds == 2


def test_sound_that_ends_before_the_first_frame(tmp_path):
    path = film(tmp_path / "film.mov", TONE[: RATE // 2], picture_at=1.0)
    with pytest.raises(InputError, match="film.mov has no sound after its first frame; if that is"):
        survey_sound(path, 1.0)
    path = film(tmp_path / "silent.mov", 0 * TONE)
    with pytest.raises(InputError, match="silent.mov has silence for its sound; if that is meant"):
        survey_sound(path, 0.0)


def test_damaged_sound_is_named(tmp_path):
    path = write_sound(
        tmp_path / "film.mkv", TONE, rate=RATE, picture="mpeg4", spoilt=lambda t: 1 < t < 1.2
    )
    (note,) = survey_sound(path, 0.0).notes
    assert "film.mkv" in note


def test_a_mix_that_exceeds_full_scale_is_clipped(tmp_path, monkeypatch):
    """As an integer, it would turn over."""
    loud = np.concatenate([np.full(RATE, 1.2), np.full(RATE, -1.2)]).astype(np.float32)
    monkeypatch.setattr(sound, "_pieces", lambda *_: iter([loud]))
    assert np.array_equal(written(tmp_path / "film"), np.sign(loud))


def test_silence_is_no_speech():
    """However quiet the loudest frames are."""
    assert speech_fraction(np.full(100, sound.QUIETEST)) == 0
    hum = np.where(np.arange(100) < 30, -56.0, -60.0)
    assert speech_fraction(hum) == 0
    assert speech_fraction(np.where(np.arange(100) < 30, -20.0, -50.0)) == 0.3
