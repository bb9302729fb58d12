"""Files that ask for more than is given: rates, lengths, sizes, amplitudes."""

import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from scipy.io import wavfile

from engine import InputError
from engine.media import limits
from engine.media.sample_tables import check_sample_tables
from engine.media.speech import read_speech
from engine.media.video import Video, VideoWriter
from tests.engine.media.sound_files import write_sound
from tests.engine.videos import encode, moving

RATE = 16000
MIB = 1 << 20


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that Python and NumPy held at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- sample rates ----------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1, 7, 3999, 384001, 999999937, 2**31 - 1])
@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_a_rate_that_no_recorder_has(tmp_path, rate, size):
    path = tmp_path / "a.wav"
    wavfile.write(path, rate, np.zeros(size // 2, np.int16))

    def refused() -> None:
        with pytest.raises(InputError, match=f"rate of {rate} Hz; expected 4000 to 384000"):
            read_speech(path)

    assert peak(refused) < 20 * MIB
    with pytest.raises(InputError, match=f"rate of {rate} Hz"):
        VideoWriter(tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25), speech=path)
    assert [left.name for left in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("rate", [4000, 384000])
def test_the_lowest_and_the_highest_rate(tmp_path, rate):
    t = np.arange(rate) / rate
    wavfile.write(tmp_path / "a.wav", rate, np.float32(0.3 * np.sin(2 * np.pi * 400 * t)))
    pcm = read_speech(tmp_path / "a.wav").numpy()
    assert len(pcm) == pytest.approx(RATE, abs=20)
    assert np.argmax(np.abs(np.fft.rfft(pcm[:RATE], RATE))) == 400


# --- length ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silence(tmp_path_factory) -> Path:
    """A FLAC of 20,000 s of silence, in blocks of 65535 samples."""
    path = tmp_path_factory.mktemp("long") / "a.flac"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, options={"frame_size": "65535"})
        stream.layout, stream.format = "mono", "s16"
        block = np.zeros((1, 65535), np.int16)
        for number in range(20_000 * RATE // 65535):
            frame = av.AudioFrame.from_ndarray(block, "s16", "mono")
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = number * 65535
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert path.stat().st_size < 100_000
    return path


def test_a_small_file_of_hours(silence):
    """Reading stops at the limit: a minute takes 4 MB, all of it would take 1.3 GB."""

    def refused() -> None:
        with pytest.raises(InputError, match="longer than 300 s; split it into shorter files"):
            read_speech(silence, max_seconds=300)

    assert peak(refused) < 300 * 4 * RATE + 16 * MIB


def test_the_default_length(silence):
    with pytest.raises(InputError, match="longer than 10800 s; split it into shorter files"):
        read_speech(silence)


@pytest.mark.parametrize("rate", [RATE, 48000])
def test_speech_as_long_as_the_limit(tmp_path, rate):
    noise = np.random.default_rng(0).uniform(-1, 1, 150 * rate)
    wavfile.write(tmp_path / "a.wav", rate, noise.astype(np.float32))
    pcm = read_speech(tmp_path / "a.wav", max_seconds=150)
    assert len(pcm) == 150 * RATE and torch.equal(pcm, read_speech(tmp_path / "a.wav"))
    if rate == RATE:
        assert np.array_equal(pcm.numpy(), noise.astype(np.float32))
    with pytest.raises(InputError, match="longer than 149.999 s"):
        read_speech(tmp_path / "a.wav", max_seconds=149.999)


def test_speech_takes_no_more_memory_than_its_samples(tmp_path):
    wavfile.write(tmp_path / "a.wav", RATE, np.zeros(600 * RATE, np.int16))
    assert peak(lambda: read_speech(tmp_path / "a.wav")) < 660 * 4 * RATE + 8 * MIB


# --- amplitude -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "said"), [(1e10, r"1e\+10"), (-32768, "-32768"), (3e38, r"3e\+38"), (1001, "1001")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_far_beyond_full_scale(tmp_path, value, said, channels):
    samples = np.zeros((20000, channels), np.float32)
    samples[12345, -1] = value
    wavfile.write(tmp_path / "a.wav", RATE, samples)
    message = rf"sample 12345 \(0.772 s\) of channel {channels - 1} is {said}; expected -1 to 1"
    with pytest.raises(InputError, match=message):
        read_speech(tmp_path / "a.wav")
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a.wav")
    assert [left.name for left in tmp_path.iterdir()] == ["a.wav"]


def write(speech: Path) -> Path:
    path = speech.with_suffix(".mp4")
    with VideoWriter(path, height=48, width=64, fps=Fraction(25), speech=speech) as writer:
        writer.write(np.zeros((30, 48, 64, 3), np.uint8))
    return path


@pytest.mark.parametrize("amplitude", [1.2, 5, 1000])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_samples_beyond_full_scale(tmp_path, amplitude, kind):
    """Nothing is clipped or scaled, and the AAC encoder takes them."""
    samples = amplitude * np.sin(2 * np.pi * 200 * np.arange(RATE) / RATE + 0.5 * np.pi)
    wavfile.write(tmp_path / "a.wav", RATE, samples.astype(kind))
    pcm = read_speech(tmp_path / "a.wav").numpy()
    assert np.array_equal(pcm, samples.astype(np.float32))
    with av.open(str(write(tmp_path / "a.wav"))) as container:
        sound = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    assert len(np.concatenate(sound)) >= RATE


# --- video -----------------------------------------------------------------------------------


def test_too_many_frames(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", moving(30))
    monkeypatch.setattr(limits, "MAX_PACKETS", 30)
    assert len(Video(path)) == 30
    monkeypatch.setattr(limits, "MAX_PACKETS", 29)
    with pytest.raises(InputError, match="has more than 29 frames; split it into shorter files"):
        Video(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.ts"])
def test_too_large_frames(tmp_path, monkeypatch, name):
    codec = "mpeg4" if name == "a.avi" else "libx264"
    path = encode(tmp_path / name, moving(10, 240, 320), codec)
    monkeypatch.setattr(limits, "MAX_PIXELS", 320 * 240)
    assert len(Video(path)) == 10
    monkeypatch.setattr(limits, "MAX_PIXELS", 320 * 240 - 1)
    with pytest.raises(InputError, match="frames of 320 x 240; expected at most 76799 pixels"):
        Video(path)


@pytest.mark.parametrize(
    ("most", "message"),
    [
        (320 * 240 - 1, r"has frames of 320 x 240; expected at most 76799 pixels"),
        (320 * 24, r"a frame cannot be decoded \(.*\); expected at most 7680 pixels"),
    ],
)
def test_frames_that_are_larger_than_their_container_says(tmp_path, monkeypatch, most, message):
    """FFmpeg refuses much larger ones before it takes memory for them."""
    path = encode(tmp_path / "a.avi", moving(10, 240, 320), "mjpeg", pix_fmt="yuvj420p")
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 12
    assert struct.unpack_from("<ii", data, at) == (320, 240)
    struct.pack_into("<ii", data, at, 64, 48)
    path.write_bytes(data)
    assert Video(path).width == 320
    monkeypatch.setattr(limits, "MAX_PIXELS", most)
    with pytest.raises(InputError, match=message):
        Video(path)


def test_the_sound_of_a_film_of_large_frames(tmp_path, monkeypatch):
    path = write_sound(tmp_path / "a.mp4", 0.3 * np.ones(48000), picture="libx264", frames=25)
    monkeypatch.setattr(limits, "MAX_PIXELS", 64 * 48 - 1)
    assert len(read_speech(path)) >= RATE


@pytest.mark.parametrize(
    ("name", "codec", "known", "unknown"),
    [
        ("a.mkv", "libx264", b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ"),
        ("a.webm", "libvpx", b"V_VP8", b"V_XP8"),
        ("a.mov", "mjpeg", b"jpeg", b"zzzz"),
    ],
)
def test_a_codec_that_nobody_knows(tmp_path, name, codec, known, unknown):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / name, moving(5), codec, pix_fmt=pix_fmt)
    data = path.read_bytes()
    assert data.count(known) >= 1
    path.write_bytes(data.replace(known, unknown))
    with pytest.raises(InputError, match="a video stream of a codec that FFmpeg does not know"):
        Video(path)


# --- sample tables of mp4 --------------------------------------------------------------------


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def claiming(path: Path, kind: bytes, at: int, value: int, fragments: bool = False) -> Path:
    """Write a film, and then another number `at` bytes into the content of a box of it."""
    movflags = "frag_keyframe+empty_moov" if fragments else None
    encode(path, moving(30), options={"g": "10"}, movflags=movflags)
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, data.index(kind) + 4 + at, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "at", "fragments"), [(b"stsz", 8, False), (b"stsc", 12, False), (b"trun", 4, True)]
)
def test_a_table_that_claims_too_many_samples(tmp_path, kind, at, fragments):
    path = claiming(tmp_path / "a.mp4", kind, at, 30_000_000, fragments)
    size = path.stat().st_size
    message = rf"is damaged: it claims \d{{8,}} samples, but has only {size} bytes"
    with pytest.raises(InputError, match=message):
        Video(path)
    with pytest.raises(InputError, match=message):
        read_speech(path)


def test_samples_of_many_fragments_add_up(tmp_path):
    run = box(b"moof", box(b"traf", box(b"trun", struct.pack(">II", 0, 900_000))))
    (tmp_path / "a.mp4").write_bytes(run)
    check_sample_tables(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(2 * run)
    with pytest.raises(InputError, match="it claims 1800000 samples"):
        check_sample_tables(tmp_path / "a.mp4")


def test_chunks_of_many_samples(tmp_path):
    """Also if the tables come in another order."""
    chunks = box(b"stco", struct.pack(">II", 0, 4), bytes(16))
    samples = box(b"stsc", struct.pack(">II6I", 0, 2, 1, 9, 1, 3, 400_000, 1))
    for tables in ((chunks, samples), (samples, chunks)):
        header = box(b"stbl", *tables)
        for kind in (b"minf", b"mdia", b"trak", b"moov"):
            header = box(kind, header)
        (tmp_path / "a.mp4").write_bytes(header)
        check_sample_tables(tmp_path / "a.mp4")
        (tmp_path / "a.mp4").write_bytes(
            header.replace(struct.pack(">I", 400_000), struct.pack(">I", 983_040))
        )
        with pytest.raises(InputError, match="it claims 1966098 samples"):  # 2 x 9 + 2 x 983040
            check_sample_tables(tmp_path / "a.mp4")


def test_a_compressed_header(tmp_path):
    (tmp_path / "a.mov").write_bytes(box(b"moov", box(b"cmov", bytes(99))))
    with pytest.raises(InputError, match="has a compressed header"):
        Video(tmp_path / "a.mov")


def test_hours_of_pcm_in_a_mov(tmp_path):
    """Each sample of PCM counts as one."""
    noise = np.random.default_rng(0).uniform(-1, 1, 1_500_000)
    path = write_sound(tmp_path / "a.mov", noise, rate=RATE, codec="pcm_u8")
    assert len(read_speech(path)) == 1_500_000
