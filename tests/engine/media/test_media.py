"""Read audio and video; write video."""

import resource
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly

from engine import InputError
from engine.media.speech import read_speech
from engine.media.video import Video, VideoWriter
from tests.engine.files import silent_film, write_audio, write_video

RATE = 16000


def tones(rate: int, seconds: float = 1.5) -> np.ndarray:
    """Return different tones below 3 kHz at the beginning, in the middle and at the end."""
    t = np.arange(int(rate * seconds)) / rate
    swell = np.clip(10 * t, 0, 1) * np.clip(10 * (seconds - t), 0, 1) * (1 + np.sin(9 * t**2)) / 2
    return 0.4 * swell * (np.sin(2 * np.pi * 220 * t) + 0.5 * np.sin(2 * np.pi * 1870 * t))


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    n = min(len(a), len(b))
    return float(np.corrcoef(a[:n], b[:n])[0, 1])


def test_16_khz_wav_is_read_exactly(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000, dtype=np.int16)
    wavfile.write(tmp_path / "a.wav", RATE, samples)
    pcm = read_speech(tmp_path / "a.wav")
    assert pcm.dtype == torch.float32
    assert np.array_equal(pcm.numpy(), samples.astype(np.float32) / 32768)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32, np.float64])
def test_sample_formats(tmp_path, kind):
    samples = tones(RATE)
    scale = {np.uint8: 127, np.int32: 2**31 - 1}.get(kind, 1)
    wavfile.write(
        tmp_path / "a.wav", RATE, (samples * scale + 128 * (kind == np.uint8)).astype(kind)
    )
    error = np.abs(read_speech(tmp_path / "a.wav").numpy() - samples)
    assert error.max() < (0.02 if kind == np.uint8 else 1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_rates(tmp_path, rate):
    wavfile.write(tmp_path / "a.wav", rate, tones(rate).astype(np.float32))
    pcm = read_speech(tmp_path / "a.wav").numpy()
    assert abs(len(pcm) - 24000) <= 16
    # a shift of one sample would cost 1870 Hz more than that
    assert similarity(pcm, resample_poly(tones(rate), RATE, rate)) > 0.999
    assert np.abs(pcm).max() == pytest.approx(np.abs(tones(RATE)).max(), rel=0.02)


@pytest.mark.parametrize("rate", [RATE, 44100])
def test_channels_are_averaged(tmp_path, rate):
    left = tones(rate)
    right = np.roll(left, 1000)
    wavfile.write(tmp_path / "two.wav", rate, np.stack([left, right], 1).astype(np.float32))
    wavfile.write(tmp_path / "one.wav", rate, ((left + right) / 2).astype(np.float32))
    two, one = read_speech(tmp_path / "two.wav"), read_speech(tmp_path / "one.wav")
    assert (two - one).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("name", "codec", "rate", "picture"),
    [
        ("a.mp3", "libmp3lame", 44100, False),
        ("a.mp3", "libmp3lame", 48000, False),
        ("a.m4a", "aac", 44100, False),
        ("a.m4a", "aac", 48000, False),
        ("a.flac", "flac", 44100, False),
        ("a.opus", "libopus", 48000, False),
        ("a.mp4", "aac", 44100, True),
    ],
)
def test_formats(tmp_path, name, codec, rate, picture):
    samples = np.stack([tones(rate), tones(rate)])
    write_audio(tmp_path / name, samples, rate, codec, picture)
    pcm = read_speech(tmp_path / name).numpy()
    assert similarity(pcm, tones(RATE)) > 0.99  # in sync: the encoders' delays are removed
    assert abs(len(pcm) - 24000) <= 0.1 * RATE  # they may pad the last packet


def test_surround(tmp_path):
    samples = np.stack([tones(48000) * gain for gain in (1, 0.5, 0.25, 0, 0.5, 0.75)])
    write_audio(tmp_path / "a.flac", samples, 48000, "flac")
    assert similarity(read_speech(tmp_path / "a.flac").numpy(), tones(RATE)) > 0.999


def test_joined_files_may_change_their_format(tmp_path):
    """Two mp3 files in one: 44.1 kHz stereo, then 22.05 kHz mono."""
    parts = [(44100, 2), (22050, 1)]
    joined = b""
    for rate, channels in parts:
        path = tmp_path / f"{rate}.mp3"
        write_audio(path, np.stack([tones(rate)] * channels), rate, "libmp3lame")
        joined += path.read_bytes()
    (tmp_path / "joined.mp3").write_bytes(joined)
    pcm = read_speech(tmp_path / "joined.mp3").numpy()
    assert similarity(pcm[:24000], tones(RATE)) > 0.98
    assert np.abs(pcm[30000:]).max() > 0.2  # the second part is there
    writer = VideoWriter(
        tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25), speech=tmp_path / "joined.mp3"
    )
    with writer:
        writer.write(np.zeros((75, 48, 64, 3), np.uint8))


def test_a_damaged_packet_is_passed_over(tmp_path):
    path = write_audio(tmp_path / "a.mp3", np.stack([tones(44100)] * 2), 44100, "libmp3lame")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="1 packet of its sound cannot be decoded"):
        pcm = read_speech(path).numpy()
    assert len(pcm) > 22000 and similarity(pcm[:8000], tones(RATE)[:8000]) > 0.98


def test_names_with_colons(tmp_path):
    path = tmp_path / "take 12:30.wav"
    wavfile.write(path, RATE, tones(RATE).astype(np.float32))
    assert len(read_speech(path)) == 24000
    with VideoWriter(
        tmp_path / "a:b.mp4", height=48, width=64, fps=Fraction(25), speech=path
    ) as writer:
        writer.write(np.zeros((37, 48, 64, 3), np.uint8))
    assert len(Video(tmp_path / "a:b.mp4")) == 37


def text_file(path):
    path.write_text("this is not audio\n" * 50)


def no_samples(path):
    wavfile.write(path, RATE, np.zeros(0, np.int16))


def bad_sample(value, position, channels=1):
    def write(path):
        samples = np.zeros((20000, channels), np.float32)
        samples[position, channels - 1] = value
        wavfile.write(path, RATE, samples)

    return write


def bad_samples(path):
    samples = np.zeros((20000, 2), np.float32)
    samples[100, 1] = samples[900, 0] = np.nan  # the error names the earliest, in any channel
    wavfile.write(path, RATE, samples)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder; expected a file"),
        (lambda path: path.touch(), "is empty; expected a media file"),
        (text_file, "cannot be read as audio or video"),
        (no_samples, "0 samples"),
        (bad_sample(np.nan, 12345), r"sample 12345 \(0.772 s\) of channel 0 is nan"),
        (bad_sample(np.inf, 19999, 2), r"sample 19999 \(1.250 s\) of channel 1 is inf"),
        (bad_samples, r"sample 100 \(0.006 s\) of channel 1 is nan"),
        (bad_sample(-np.inf, 0), r"sample 0 \(0.000 s\) of channel 0 is -inf"),
        (silent_film, "no audio stream.*video"),
    ],
)
def test_bad_audio(tmp_path, make, message):
    path = tmp_path / "speech.wav"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_speech(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# --- video in ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbered() -> np.ndarray:
    """40 small frames whose brightness encodes their number."""
    frames = np.zeros((40, 48, 64, 3), np.uint8)
    frames += (np.arange(40) * 6).astype(np.uint8)[:, None, None, None]
    return frames


@pytest.mark.parametrize("options", [{"g": "40"}, {"g": "7", "bf": "3"}, {"g": "1"}])
def test_video_from_any_keyframe(tmp_path, numbered, options):
    video = Video(write_video(tmp_path / "v.mp4", numbered, codec="libx264", **options))
    assert (len(video), video.height, video.width, video.fps) == (40, 48, 64, 25)
    for start in video.keyframes:
        numbers = []
        for number, frame in video.frames(start):
            numbers.append(number)
            assert abs(float(video.pixels(frame).mean()) - 6 * number) < 3
        assert set(range(start, 40)) <= set(numbers) and numbers == sorted(numbers)


def test_video_colors(tmp_path, person):
    """A BT.709 file, as `VideoWriter` writes it, is read with the original colors."""
    frames = person[:2].numpy()
    with VideoWriter(tmp_path / "v.mp4", height=1280, width=720, fps=Fraction(25)) as writer:
        writer.write(frames)
    video = Video(tmp_path / "v.mp4")
    for (_, frame), before in zip(video.frames(), frames, strict=True):
        ours = video.pixels(frame)
        assert cv2.PSNR(ours, before) > 36
        bias = ours.astype(float).mean((0, 1)) - before.mean((0, 1))
        # FFmpeg's quick conversion to RGB is a level dark; a wrong matrix turns skin by several
        assert np.abs(bias).max() < 1.6 and np.ptp(bias) < 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist"),
        (text_file, "cannot be read as audio or video"),
        (lambda path: wavfile.write(path, RATE, np.zeros(99, np.int16)), "no video stream"),
    ],
)
def test_bad_video(tmp_path, make, message):
    make(tmp_path / "v.wav")
    with pytest.raises(InputError, match=message):
        Video(tmp_path / "v.wav")


# --- video out -----------------------------------------------------------------------------------


def probe(path) -> tuple[list[Fraction], np.ndarray, int]:
    """Return the times of the frames in seconds, the audio, and its rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
    if not av.open(str(path)).streams.audio:
        return times, np.zeros(0), 0
    with av.open(str(path)) as container:
        blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]
        return times, np.concatenate(blocks, axis=1), container.streams.audio[0].rate


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(24)])
def test_frame_times_are_exact(tmp_path, fps):
    with VideoWriter(tmp_path / "v.mp4", height=48, width=64, fps=fps) as writer:
        for _ in range(7):
            writer.write(np.zeros((9, 48, 64, 3), np.uint8))
    times, _, _ = probe(tmp_path / "v.mp4")
    assert times == [i / fps for i in range(63)]
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == fps


@pytest.mark.parametrize(("rate", "written"), [(16000, 16000), (44100, 44100), (10000, 11025)])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_speech_is_heard(tmp_path, rate, written, channels):
    write_audio(tmp_path / "a.flac", np.stack([tones(rate)] * channels), rate, "flac")
    writer = VideoWriter(
        tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25), speech=tmp_path / "a.flac"
    )
    with writer:
        writer.write(np.zeros((37, 48, 64, 3), np.uint8))
    times, audio, audio_rate = probe(tmp_path / "v.mp4")
    assert audio_rate == written and audio.shape[0] == min(channels, 2)
    assert similarity(audio[0], tones(written)) > 0.98
    assert len(times) == 37
    # the speech to its end, but for what AAC needs to fill its last packets of 1024 samples
    assert 0 <= audio.shape[1] / audio_rate - 1.5 + 0.001 < 2 * 1024 / audio_rate


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes(tmp_path, height, width):
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    frames = np.broadcast_to(ramp[None, None, :, None], (3, height, width, 3))
    with VideoWriter(tmp_path / "v.mp4", height=height, width=width, fps=Fraction(25)) as writer:
        writer.write(frames)
    video = Video(tmp_path / "v.mp4")
    frame = video.pixels(next(video.frames())[1])
    assert frame.shape == (48, 64, 3)
    assert cv2.PSNR(frame[:height, :width].copy(), frames[0].copy()) > 30


def test_no_partial_video_after_an_error(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"what was there before")
    writer = VideoWriter(tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25))
    with pytest.raises(KeyboardInterrupt), writer:
        writer.write(np.zeros((30, 48, 64, 3), np.uint8))
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert (tmp_path / "v.mp4").read_bytes() == b"what was there before"


def test_a_full_disk_leaves_no_video(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 128, 128, 3), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        writer = VideoWriter(tmp_path / "v.mp4", height=128, width=128, fps=Fraction(25))
        with pytest.raises(OSError, match="File too large"), writer:
            writer.write(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_two_videos_of_one_name_at_once(tmp_path):
    """The one that is finished last stays, whole."""
    size = {"height": 48, "width": 64, "fps": Fraction(25)}
    bright = np.full((60, 48, 64, 3), 200, np.uint8)  # more than the encoder holds back
    with VideoWriter(tmp_path / "v.mp4", **size) as last:
        last.write(bright)
        with VideoWriter(tmp_path / "v.mp4", **size) as first:
            first.write(np.zeros((50, 48, 64, 3), np.uint8))
        assert len(Video(tmp_path / "v.mp4")) == 50
        last.write(bright)
    video = Video(tmp_path / "v.mp4")
    assert len(video) == 120 and [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
    assert all(abs(int(video.pixels(frame).mean()) - 200) < 3 for _, frame in video.frames())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("v.avi", "does not end in .mp4"),
        ("no/such/folder/v.mp4", "cannot be written: No such file or directory"),
        ("file/v.mp4", "cannot be written: Not a directory"),
        ("folder.mp4", "is a folder"),
    ],
)
def test_bad_output(tmp_path, path, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match=message):
        VideoWriter(tmp_path / path, height=48, width=64, fps=Fraction(25))


def test_bad_speech_leaves_no_video(tmp_path):
    text_file(tmp_path / "a.wav")
    with pytest.raises(InputError, match="cannot be read"):
        VideoWriter(
            tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25), speech=tmp_path / "a.wav"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
