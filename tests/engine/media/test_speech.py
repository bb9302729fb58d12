"""Speech from files of all formats: at the right time and level, and in its full length."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from scipy.io import wavfile

from engine import InputError
from engine.media.speech import audio_blocks, read_speech
from engine.media.video import VideoWriter
from tests.engine.media.sound_files import MATROSKA_SAYS, bursts, heard_at, write_sound

RATE = 16000
AT = (0.5, 1.5)
SECONDS = 2.0
# The delay of encoder and decoder in samples, for formats that cannot store it. For WMA, the
# decoder drops the first packet; the format has the time of the second one, which counts only in a
# film.
AAC, MP2, MP3, AC3, AMR, WMA = 1024, 481, 1105, 256, 130, -2048
MKV_AAC, MKV_MP3, MKV_AC3 = (0, 0, 0) if MATROSKA_SAYS else (AAC, MP3, AC3)

# name, codec, Hz, picture, samples before the sound, seconds after it
FORMATS = [
    ("u8.wav", "pcm_u8", 48000, None, 0, 0),
    ("s16.wav", "pcm_s16le", 48000, None, 0, 0),
    ("s24.wav", "pcm_s24le", 48000, None, 0, 0),
    ("s32.wav", "pcm_s32le", 48000, None, 0, 0),
    ("f32.wav", "pcm_f32le", 44100, None, 0, 0),
    ("f64.wav", "pcm_f64le", 44100, None, 0, 0),
    ("alaw.wav", "pcm_alaw", 8000, None, 0, 0),
    ("mulaw.wav", "pcm_mulaw", 8000, None, 0, 0),
    ("ima.wav", "adpcm_ima_wav", 48000, None, 0, 0.04),
    ("ms.wav", "adpcm_ms", 48000, None, 0, 0.04),
    ("a.w64", "pcm_s16le", 48000, None, 0, 0),
    ("a.aiff", "pcm_s16be", 44100, None, 0, 0),
    ("a.au", "pcm_s16be", 22050, None, 0, 0),
    ("a.caf", "pcm_s16be", 48000, None, 0, 0),
    ("a.flac", "flac", 96000, None, 0, 0),
    ("a.tta", "tta", 48000, None, 0, 0),
    ("a.wv", "wavpack", 48000, None, 0, 0),
    ("alac.m4a", "alac", 48000, None, 0, 0),
    ("a.mp3", "libmp3lame", 44100, None, 0, 0),
    ("a.mp2", "mp2", 48000, None, MP2, 0.03),
    ("a.m4a", "aac", 44100, None, 0, 0.03),
    ("a.aac", "aac", 44100, None, AAC, 0.03),
    ("a.opus", "libopus", 48000, None, 0, 0),
    ("opus.ogg", "libopus", 16000, None, 0, 0),
    ("flac.ogg", "flac", 48000, None, 0, 0),
    ("vorbis.ogg", "vorbis", 48000, None, 0, 0),
    ("a.wma", "wmav2", 44100, None, WMA, 0.05),
    ("a.ac3", "ac3", 48000, None, AC3, 0.04),
    ("a.eac3", "eac3", 48000, None, AC3, 0.04),
    ("a.amr", "libopencore_amrnb", 8000, None, AMR, 0.03),
    ("a.g722", "g722", 16000, None, 0, 0.01),
    ("aac.mka", "aac", 48000, None, MKV_AAC, 0.03),
    ("pcm.mka", "pcm_s16le", 48000, None, 0, 0),
    ("opus.mka", "libopus", 48000, None, 0, 0.01),
    ("opus.webm", "libopus", 48000, "libvpx", 0, 0.01),
    ("aac.mp4", "aac", 48000, "libx264", 0, 0.03),
    ("opus.mp4", "libopus", 48000, "libx264", 0, 0.02),
    ("flac.mp4", "flac", 48000, "libx264", 0, 0),
    ("mp3.mp4", "libmp3lame", 48000, "libx264", 0, 0.03),
    ("aac.mov", "aac", 44100, "libx264", 0, 0.03),
    ("pcm.mov", "pcm_s16le", 48000, "libx264", 0, 0),
    ("ac3.mkv", "ac3", 48000, "libx264", MKV_AC3, 0.04),
    ("mp3.mkv", "libmp3lame", 44100, "libx264", MKV_MP3, 0.06),
    ("flac.mkv", "flac", 48000, "libx264", 0, 0),
    ("aac.ts", "aac", 48000, "libx264", AAC, 0.03),
    ("mp2.ts", "mp2", 48000, "libx264", MP2, 0.03),
    ("mp2.mpg", "mp2", 48000, "mpeg2video", MP2, 0.03),
    ("mp3.avi", "libmp3lame", 44100, "mpeg4", MP3, 0.06),
    ("pcm.avi", "pcm_s16le", 48000, "mpeg4", 0, 0),
    ("aac.flv", "aac", 44100, "libx264", AAC, 0.03),
    ("wma.wmv", "wmav2", 44100, "wmv2", 0, 0.05),
    ("pcm.mxf", "pcm_s16le", 48000, "mpeg2video", 0, 0.05),
]


@pytest.mark.parametrize(
    ("name", "codec", "rate", "picture", "before", "after"), FORMATS, ids=[f[0] for f in FORMATS]
)
def test_format(tmp_path, name, codec, rate, picture, before, after):
    sound = bursts(AT, SECONDS, rate)
    options = {"strict": "-2"} if codec == "vorbis" else {}
    if codec == "vorbis":  # FFmpeg's own encoder knows stereo only
        sound = np.stack([sound, sound])
    path = write_sound(
        tmp_path / name, sound, rate=rate, codec=codec, picture=picture, options=options
    )
    pcm = read_speech(path).numpy()
    delay = before / rate
    np.testing.assert_allclose(heard_at(pcm), np.array(AT) + delay, atol=0.002)
    assert -0.002 <= len(pcm) / RATE - SECONDS - delay <= after + 0.002
    now = slice(round((AT[0] + delay + 0.01) * RATE), round((AT[0] + delay + 0.03) * RATE))
    assert np.sqrt(np.mean(pcm[now] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("kind", [np.int16, np.float32])
@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_mono_and_stereo_are_exact(tmp_path, channels, rate, kind):
    """The result is the mean of the file's samples, resampled by FFmpeg."""
    noise = np.random.default_rng(0).uniform(-1, 1, (rate, channels))
    samples = (noise * 32767).astype(kind) if kind == np.int16 else noise.astype(kind)
    wavfile.write(tmp_path / "a.wav", rate, samples)
    samples = samples.astype(np.float32) / (32768 if kind == np.int16 else 1)
    mean = samples.sum(axis=1, dtype=np.float32) / np.float32(channels)
    if rate != RATE:
        frame = av.AudioFrame.from_ndarray(mean[None], "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        resampler = av.AudioResampler("flt", "mono", RATE)
        parts = resampler.resample(frame) + resampler.resample(None)
        mean = np.concatenate([part.to_ndarray()[0] for part in parts])
    assert np.array_equal(read_speech(tmp_path / "a.wav").numpy(), mean)

    blocks = [block for block, _, _ in audio_blocks(tmp_path / "a.wav")]
    assert np.array_equal(np.concatenate(blocks, axis=1), samples.T)


# --- which track ---------------------------------------------------------------------------------

TONES = (300, 600, 1200)  # Hz, of the tracks


@pytest.fixture
def tracks() -> list[np.ndarray]:
    t = np.arange(48000) / 48000
    return [0.3 * np.sin(2 * np.pi * tone * t) for tone in TONES]


def track_of(pcm: np.ndarray, rate: int = RATE) -> int:
    spectrum = np.abs(np.fft.rfft(pcm[: rate // 2]))
    return int(np.argmax([spectrum[tone // 2] for tone in TONES]))


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
@pytest.mark.parametrize("default", [0, 1, 2])
def test_the_default_track(tmp_path, tracks, name, default):
    path = write_sound(tmp_path / name, *tracks, picture="libx264", default=default)
    assert track_of(read_speech(path).numpy()) == default
    blocks = [block[0] for block, _, _ in audio_blocks(path)]
    assert track_of(np.concatenate(blocks), 48000) == default


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.nut"])
def test_the_first_track_where_the_default_is_not_one(tmp_path, tracks, name):
    """Neither the number of channels nor the bit rate matters."""
    tracks[1] = np.stack([tracks[1]] * 2)
    marked = name != "a.nut"
    path = mark_all(write_sound(tmp_path / "a.ts", *tracks[:2]), tmp_path / name, marked)
    with av.open(str(path)) as container:
        for stream in container.streams.audio:
            assert bool(stream.disposition & av.stream.Disposition.default) == marked
    assert track_of(read_speech(path).numpy()) == 0


def mark_all(path, made, marked: bool):
    """Return the same file with all tracks marked as the default, or none."""
    with av.open(str(path)) as container, av.open(str(made), "w") as output:
        streams = {}
        for stream in container.streams.audio:
            streams[stream.index] = output.add_stream_from_template(stream)
            streams[stream.index].disposition = int(marked)
        for packet in container.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    return made


@pytest.mark.parametrize("track", [0, 1, 2])
def test_a_track_by_its_number(tmp_path, tracks, track):
    path = write_sound(tmp_path / "a.mkv", *tracks, picture="libx264", default=1)
    assert track_of(read_speech(path, track=track).numpy()) == track
    writer = VideoWriter(
        tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25), speech=path, audio_track=track
    )
    with writer:
        writer.write(np.zeros((25, 48, 64, 3), np.uint8))
    with av.open(str(tmp_path / "v.mp4")) as container:
        sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    assert track_of(np.concatenate(sound), 48000) == track


@pytest.mark.parametrize("track", [-1, 3])
def test_no_such_track(tmp_path, tracks, track):
    about = [{"language": "eng", "title": "Director's\ncommentary"}, {"language": "deu"}]
    path = write_sound(tmp_path / "a.mkv", *tracks, about=about, default=1)
    with pytest.raises(InputError) as caught:
        read_speech(path, track=track)
    assert str(caught.value) == (
        f"audio track is {track}; {path} has 3, from 0: "
        '0 ("Director\'s commentary", eng), 1 (deu, default), 2'
    )


def test_a_track_without_a_decoder(tmp_path, tracks):
    """It is skipped if another track can be read, and an error if it is requested."""
    path = write_sound(tmp_path / "a.mkv", *tracks[:2], default=0)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"A_AAC", b"A_XYZ", 1))
    assert track_of(read_speech(path).numpy()) == 1
    with pytest.raises(InputError, match="FFmpeg has no decoder for audio track 0"):
        read_speech(path, track=0)
    path.write_bytes(data.replace(b"A_AAC", b"A_XYZ"))
    with pytest.raises(InputError, match="FFmpeg has no decoder for audio track 0"):
        read_speech(path)


def test_a_stream_that_appears_later(tmp_path):
    """An FLV announces its text stream in the middle."""
    sound = bursts(AT, 30, 44100)  # longer than FFmpeg's probe
    path = write_sound(tmp_path / "a.flv", sound, rate=44100, codec="libmp3lame")
    plain = read_speech(path)
    key, text = b"onTextData", b"text"
    body = b"\x02" + struct.pack(">H", len(key)) + key + b"\x08" + struct.pack(">I", 1)
    body += struct.pack(">H", len(text)) + text + b"\x02\0\2hi\0\0\x09"
    tag = b"\x12" + len(body).to_bytes(3) + (29000).to_bytes(3) + bytes(4) + body
    path.write_bytes(path.read_bytes() + tag + struct.pack(">I", len(tag)))
    assert torch.equal(read_speech(path), plain)


def test_a_cover_is_not_a_film(tmp_path):
    """Its timestamp does not shift the sound."""
    sound = bursts(AT, SECONDS, 48000)
    plain = write_sound(tmp_path / "plain.mp3", sound, codec="libmp3lame")
    with av.open(str(plain)) as container, av.open(str(tmp_path / "cover.mp3"), "w") as output:
        audio = output.add_stream_from_template(container.streams.audio[0])
        cover = output.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic.value
        image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
        output.mux(cover.encode(image) + cover.encode(None))
        for packet in container.demux():
            if packet.dts is not None:
                packet.stream = audio
                output.mux(packet)
    with av.open(str(tmp_path / "cover.mp3")) as container:
        assert container.streams.video and container.streams.audio[0].start_time > 0
    for only in (False, True):
        pcm = read_speech(tmp_path / "cover.mp3", from_first_frame=only)
        assert torch.equal(pcm, read_speech(plain))
