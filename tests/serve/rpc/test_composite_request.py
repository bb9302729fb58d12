"""What a request is decoded to."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from serve.config import Output
from serve.rpc import composite_request
from serve.rpc.composite_request import Refused, check, parse, samples_needed
from tests.serve.rpc.go_client import FACE_BYTES

PLAIN = Output()
TONE = np.sin(np.arange(48000) / 20).astype(np.float32) / 3


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, count).astype(np.float32)


def decode(messages, output=PLAIN, **fields):
    fields = {"model_id": "anna", "batch_size": 1, **fields}
    if not fields.keys() & {"raw_audio", "audio_features"}:
        fields["raw_audio"] = TONE.tobytes()
    message = messages.CompositeBatchRequest(**fields).SerializeToString()
    return check(*parse(message)).decode(output)


@pytest.mark.parametrize("name", ["a", "ab", "abc", "abcd"])  # at every alignment
def test_faces_are_taken_as_they_come(messages, name):
    faces = np.random.default_rng(1).random((2, 6, 320, 320), np.float32)
    output = Output(visual_layout="planar")
    batch = decode(messages, output, model_id=name, visual_frames=faces.tobytes(), batch_size=2)
    assert batch.faces.shape == (2, 6, 320, 320) and batch.faces.dtype == np.float32
    assert np.array_equal(batch.faces, faces)
    assert batch.faces.flags.aligned and batch.faces.flags.writeable
    assert (batch.count, batch.layout) == (2, "planar")
    assert decode(messages, Output(visual_layout="interleaved")).layout == "interleaved"


def test_a_request_without_faces_or_with_features(messages):
    features = noise(8192)
    batch = decode(messages, audio_features=features.tobytes(), start_frame_idx=-7, batch_size=32)
    assert batch.faces is None and batch.speech is None and batch.layout == "auto"
    assert (batch.count, batch.start, batch.context) == (32, -7, 0)
    assert np.array_equal(batch.audio, features.reshape(32, 16, 16))
    # raw audio wins
    batch = decode(messages, audio_features=b"123", raw_audio=TONE[:3000].tobytes())
    assert batch.audio is None and np.array_equal(batch.speech, TONE[:3000])


@pytest.mark.parametrize("start", [-(2**31), -1, 0, 7, 8, 2**31 - 1])
def test_context(messages, start):
    """The configured one is no longer than what was before the batch; a request's own is itself."""
    output = Output(audio_context_frames=8)
    assert decode(messages, output, start_frame_idx=start).context == min(max(start, 0), 8)
    assert decode(messages, start_frame_idx=start).context == 0
    for own in (0, 3, 100):
        batch = decode(messages, output, start_frame_idx=start, audio_context_frames=own)
        assert (batch.start, batch.context) == (start, own)


# --- audio ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 192000])
def test_audio_is_resampled_as_files_are(messages, rate, tmp_path):
    """Next to FFmpeg's reading of a wav of the same samples, where those are short enough."""
    import wave

    from engine.media.speech import read_speech

    pcm = (noise(rate) * 20000).astype(np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(pcm.tobytes())
    expected = read_speech(tmp_path / "a.wav").numpy()
    sound = (pcm / np.float32(32768)).astype("<f4")
    batch = decode(messages, raw_audio=sound.tobytes(), sample_rate=rate, batch_size=32)
    assert len(batch.speech) == len(expected) > 15900
    assert np.abs(batch.speech - expected).max() < 1e-6


@pytest.mark.parametrize("rate", [0, 16000])
def test_audio_at_16_khz_is_not_touched(messages, rate):
    assert np.array_equal(decode(messages, sample_rate=rate).speech, TONE[: samples_needed(1, 0)])


@pytest.mark.parametrize("samples", [1, 2, 5, 100, 799])
@pytest.mark.parametrize("rate", [8000, 16000, 192000])
def test_a_few_samples(messages, samples, rate):
    batch = decode(messages, raw_audio=TONE[:samples].tobytes(), sample_rate=rate)
    # a filter may make nothing of less than its length; no frame hears less than 3000 samples
    assert len(batch.speech) <= samples * 16000 / rate + 1
    assert batch.speech.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 32), st.integers(0, 100))
def test_audio_after_what_can_be_heard_changes_nothing(count, context):
    """With the kernels, as for `engine.batches`: as many windows and no other values."""
    most = samples_needed(count, context)
    windows = context + count + 16
    speech = torch.from_numpy(noise(most + 20000, seed=count))

    def heard(speech: torch.Tensor) -> torch.Tensor:
        mel = kernels.log_mel(speech)
        assert (len(mel) - 16) * 25 // 80 >= windows
        return kernels.mel_windows(mel, start=0, count=windows)

    assert torch.equal(heard(speech[:most]), heard(speech))


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 192000])
def test_long_audio_is_cut_before_it_is_resampled(messages, rate, monkeypatch):
    most = samples_needed(4, 2)
    sound = noise(int((most + 30000) * rate / 16000))
    taken = []
    real = composite_request.SpeechConverter

    def converter(rate):
        made, call = real(rate), lambda sound: (taken.append(sound.shape), made(sound))[1]
        return type("Converter", (), {"__call__": lambda _, s: call(s), "flush": lambda _: made.flush()})()  # fmt: skip

    monkeypatch.setattr(composite_request, "SpeechConverter", converter)
    fields = {"batch_size": 4, "audio_context_frames": 2, "sample_rate": rate}
    cut = decode(messages, raw_audio=sound.tobytes(), **fields).speech
    assert len(cut) == most and taken[0][0] == 1
    assert taken[0][1] <= (most + 1600) * rate / 16000 + 1 < len(sound)
    whole = real(rate)
    expected = np.concatenate([whole(sound[None]), whole.flush()])
    assert np.array_equal(cut, expected[:most])
    # nor is what cannot be heard looked at
    sound[-1] = np.nan
    assert np.array_equal(decode(messages, raw_audio=sound.tobytes(), **fields).speech, cut)


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -40000])
@pytest.mark.parametrize("place", [0, 2, 2999])
def test_bad_sound(messages, value, place):
    sound = TONE[:3000].copy()
    sound[place] = value
    text = f"Invalid raw audio: sample {place} is {value:g}, expected -32768 to 32768"
    with pytest.raises(Refused, match=f"^{re.escape(text)}$"):
        decode(messages, raw_audio=sound.tobytes())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1.5, 255])
@pytest.mark.parametrize("place", [0, 700_000, 2 * 614_400 - 1])
def test_bad_faces(messages, value, place):
    faces = np.full(2 * 614_400, 0.5, np.float32)
    faces[[0, -1]] = -0.25, 1.25  # as filters overshoot
    decode(messages, batch_size=2, visual_frames=faces.tobytes())
    faces[place] = value
    text = f"Invalid visual frames: value {place} is {value:g}, expected -1 to 2"
    with pytest.raises(Refused, match=f"^{re.escape(text)}$"):
        decode(messages, batch_size=2, visual_frames=faces.tobytes())


def test_bad_features(messages):
    features = noise(8192)
    features[8000] = np.inf
    text = "Invalid audio features: value 8000 is inf, expected -65504 to 65504"
    with pytest.raises(Refused, match=f"^{re.escape(text)}$"):
        decode(messages, audio_features=features.tobytes())


def test_what_is_decoded_in_a_thread(messages):
    def large(**fields) -> bool:
        fields = {"model_id": "a", "batch_size": 1, **fields}
        return check(*parse(messages.CompositeBatchRequest(**fields).SerializeToString())).is_large

    assert large(visual_frames=bytes(FACE_BYTES), audio_features=bytes(32768))
    assert large(raw_audio=bytes(100_000))
    assert not large(raw_audio=bytes(64_000)) and not large(audio_features=bytes(32768))
