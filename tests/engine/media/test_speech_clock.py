"""The time of speech: relative to the film's frames, and with gaps, losses and broken
timestamps."""

import tracemalloc
import warnings
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
import torch

from engine.media import track
from engine.media.speech import audio_blocks, read_speech
from engine.media.video import VideoWriter
from tests.conftest import ROOT
from tests.engine.media.sound_files import MATROSKA_SAYS, bursts, heard_at, write_sound

RATE = 16000
AT = np.array([0.5, 1.5, 2.5])
SOUND = bursts(AT, 3, 48000)
# The encoder's delay in seconds, for containers that do not store it.
AAC_DELAY = 1024 / 48000
MKV_AAC, MKV_AC3 = (0, 0) if MATROSKA_SAYS else (AAC_DELAY, 256 / 48000)


def read(path, **options) -> tuple[np.ndarray, list[str]]:
    """Return the PCM and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pcm = read_speech(path, **options).numpy()
    return pcm, [str(warning.message) for warning in caught]


def played(path) -> tuple[np.ndarray, int]:
    """Return one channel of the sound for an mp4, and its rate."""
    blocks = list(audio_blocks(path))
    for (block, _, first), (_, _, after) in pairwise(blocks):
        assert first + block.shape[1] == after
    return np.concatenate([block[0] for block, _, _ in blocks]), blocks[0][1]


def assert_heard(path, times, seconds, atol=0.002) -> list[str]:
    """Assert that PCM and mp4 have the bursts at these times, within a packet of padding, and
    return the warnings."""
    pcm, said = read(path)
    np.testing.assert_allclose(heard_at(pcm), times, atol=atol)
    assert seconds - 0.003 <= len(pcm) / RATE <= seconds + 0.035
    sound, rate = played(path)
    np.testing.assert_allclose(heard_at(sound, rate), times, atol=atol)
    assert abs(len(sound) / rate - len(pcm) / RATE) < 0.001
    return said


# --- gaps and losses -----------------------------------------------------------------------------

GAPS = [
    ("a.mkv", "libopus", None, 0),
    ("a.mka", "aac", None, MKV_AAC),
    ("a.mka", "pcm_s16le", None, 0),
    ("a.webm", "libopus", "libvpx", 0),
    ("a.opus", "libopus", None, 0),
    ("a.ogg", "flac", None, 0),
    ("a.m4a", "aac", None, 0),
    ("a.mp4", "aac", "libx264", 0),
    ("a.mkv", "ac3", "libx264", MKV_AC3),
    ("a.ts", "aac", None, AAC_DELAY),
    ("a.ts", "libopus", None, 312 / 48000),
    ("a.flv", "aac", "libx264", AAC_DELAY),
]
gaps = pytest.mark.parametrize(
    ("name", "codec", "picture", "delay"), GAPS, ids=[f"{codec}-{name}" for name, codec, *_ in GAPS]
)


@gaps
def test_a_gap_is_silence(tmp_path, name, codec, picture, delay):
    path = write_sound(
        tmp_path / name, SOUND, codec=codec, picture=picture, times=lambda t: t + (t >= 1)
    )
    assert assert_heard(path, np.array([0.5, 2.5, 3.5]) + delay, 4 + delay) == []
    pcm, _ = read(path)
    silent = pcm[round((1.2 + delay) * RATE) : round((1.9 + delay) * RATE)]
    assert np.abs(silent).max() < 1e-4


@gaps
@pytest.mark.parametrize("lost", [0.02, 0.2])
def test_lost_packets_are_silence(tmp_path, name, codec, picture, delay, lost):
    if (name, lost) in (("a.opus", 0.02), ("a.ogg", 0.02), ("a.ogg", 0.2)):
        pytest.skip("Ogg says the time of a page, not of a packet")
    path = write_sound(
        tmp_path / name,
        SOUND,
        codec=codec,
        picture=picture,
        times=lambda t: None if 1 <= t < 1 + lost else t,
    )
    assert assert_heard(path, AT + delay, 3 + delay) == []


def test_an_mp4_has_the_gap_too(tmp_path):
    """FFmpeg reads it from the written file."""
    path = write_sound(tmp_path / "a.mkv", SOUND, codec="libopus", times=lambda t: t + (t >= 1))
    writer = VideoWriter(tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25), speech=path)
    with writer:
        writer.write(np.zeros((100, 48, 64, 3), np.uint8))
    with av.open(str(tmp_path / "v.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    np.testing.assert_allclose(heard_at(sound, 48000), [0.5, 2.5, 3.5], atol=0.002)


DAMAGED = [
    *(("a.mka", "aac"), ("a.mp4", "aac"), ("a.mkv", "ac3"), ("a.ts", "aac"), ("a.mp4", "mp3")),
    ("a.aac", "aac"),  # no timestamps
]


@pytest.mark.parametrize(("name", "codec"), DAMAGED)
@pytest.mark.parametrize("place", ["first", "begin", "middle", "end"])
def test_damaged_packets_are_silence(tmp_path, name, codec, place):
    codec = {"mp3": "libmp3lame"}.get(codec, codec)
    spoilt = {
        "first": lambda t: t < 0.1,  # with the encoder's delay
        "begin": lambda t: 0 <= t < 0.1,
        "middle": lambda t: 1 <= t < 1.1,
        "end": lambda t: t > 2.8,
    }[place]
    whole, _ = read(write_sound(tmp_path / f"whole{name}", SOUND, codec=codec))
    path = write_sound(tmp_path / name, SOUND, codec=codec, spoilt=spoilt)
    if (codec, place) == ("libmp3lame", "end"):
        pytest.skip("what mp3 decoders make of it is silence already")
    said = assert_heard(path, heard_at(whole), len(whole) / RATE - 0.008)  # mp4 trims the end
    (line,) = said
    assert line.startswith(f"{path}: ") and "of its sound cannot be decoded, the first at" in line
    assert line.endswith("replaced by silence")


def test_the_warning_about_damage(tmp_path):
    path = write_sound(tmp_path / "a.m4a", SOUND, spoilt=lambda t: 1 <= t < 1.02)
    assert read(path)[1] == [
        f"{path}: 1 packet of its sound cannot be decoded, the first at 1.00 s; replaced by silence"
    ]


@pytest.mark.parametrize("tag", [b"", b"TAG".ljust(128, b"a")])
def test_a_tag_between_joined_files_is_no_damage(tmp_path, tag):
    data = write_sound(tmp_path / "a.mp3", SOUND, codec="libmp3lame").read_bytes()
    assert data.startswith(b"ID3")
    (tmp_path / "joined.mp3").write_bytes(data + tag + data)
    pcm, said = read(tmp_path / "joined.mp3")
    assert said == [] and heard_at(pcm).size == 6
    with av.open(str(tmp_path / "joined.mp3")) as container:
        samples = 0
        for packet in container.demux(audio=0):
            if not bytes(packet).startswith(b"ID3"):
                samples += sum(frame.samples for frame in packet.decode())
    assert len(pcm) == pytest.approx(samples / 3, abs=1)


# --- faulty timestamps ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libopus"), ("a.mp4", "aac"), ("a.ts", "mp2"), ("a.flv", "aac")]
)
@pytest.mark.parametrize("jitter", [0.001, 0.007])
def test_jitter_is_no_gap(tmp_path, name, codec, jitter):
    """The samples equal those of a file with exact timestamps."""
    random = np.random.default_rng(3)
    shaken = write_sound(
        tmp_path / f"shaken{name}",
        SOUND,
        codec=codec,
        times=lambda t: t + random.uniform(-jitter, jitter) * (t > 0.1),
    )
    plain = write_sound(tmp_path / f"plain{name}", SOUND, codec=codec)
    assert torch.equal(read_speech(shaken), read_speech(plain))


def test_rounding_does_not_add_up(tmp_path):
    """A minute of packets of 1024 / 44100 s, whose times Matroska rounds to 1 ms."""
    sound = bursts([0.5, 59.5], 60, 44100)
    path = write_sound(tmp_path / "a.mka", sound, rate=44100)
    pcm, _ = read(path)
    delay = 0 if MATROSKA_SAYS else 1024 / 44100
    np.testing.assert_allclose(heard_at(pcm) - delay, [0.5, 59.5], atol=0.001)
    sound, _ = played(path)
    with av.open(str(path)) as container:
        assert len(sound) == sum(frame.samples for frame in container.decode(audio=0))


def test_strong_jitter_costs_no_more_than_itself(tmp_path):
    """Packets come in bunches, up to 67 ms late, but silence is not added for each of them."""
    path = write_sound(
        tmp_path / "a.mka",
        bursts([0.5, 9.5], 10, 48000),
        codec="libopus",
        times=lambda t: t if t < 0 else t // 0.1 * 0.1 + t % 0.1 / 3 + 0.067,
    )
    pcm, _ = read(path)
    assert 0.05 < len(pcm) / RATE - 10 < 0.09


def joined(tmp_path, *begins: float, codec: str = "mp2"):
    """Join MPEG-TS files, each of which begins at its own time."""
    data = b""
    for begin in begins:
        data += write_sound(tmp_path / "part.ts", SOUND, codec=codec, at=begin).read_bytes()
    (tmp_path / "joined.ts").write_bytes(data)
    return tmp_path / "joined.ts"


@pytest.mark.parametrize(
    ("second", "silence"),
    [
        (13, 0),  # one after the other
        (12.5, 0),  # an overlap
        (14, 1),  # a gap
        (19, 6),
        (10, 0),  # a clock that starts again
        (1, 0),
        (40, 0),  # or is set to something else
    ],
)
def test_joined_streams(tmp_path, second, silence):
    path = joined(tmp_path, 10, second)
    pcm, said = read(path)
    single, _ = read(tmp_path / "part.ts")
    length = len(single) / RATE
    gap = silence + 3 - length if silence else 0
    times = [*heard_at(single), *(heard_at(single) + length + gap)]
    np.testing.assert_allclose(heard_at(pcm), times, atol=0.002)
    assert len(pcm) / RATE == pytest.approx(2 * length + gap, abs=0.002)
    assert len(said) == (second == 40)


def test_a_gap_after_an_overlap(tmp_path):
    """Silence fills it, and the end has its own time again."""
    pcm, _ = read(joined(tmp_path, 10, 12.5, 16.5))
    single, _ = read(tmp_path / "part.ts")
    np.testing.assert_allclose(heard_at(pcm)[6:], heard_at(single) + 6.5, atol=0.002)


def test_a_gap_after_a_clock_that_starts_again(tmp_path):
    pcm, _ = read(joined(tmp_path, 10, 1, 5))
    single, _ = read(tmp_path / "part.ts")
    length = len(single) / RATE
    np.testing.assert_allclose(heard_at(pcm)[6:], heard_at(single) + length + 4, atol=0.002)


@pytest.mark.parametrize("name", ["a.mka", "a.m4a", "a.opus"])
def test_a_jump_of_hours_is_no_gap(tmp_path, name):
    codec = "aac" if name == "a.m4a" else "libopus"
    path = write_sound(tmp_path / name, SOUND, codec=codec, times=lambda t: t + 7200 * (t >= 1))
    (line,) = assert_heard(path, AT, 3)
    assert line.startswith(f"{path}: its timestamps jump by 7200.0 s at 1.0")
    assert line.endswith("s; the jump is taken for a restart, and no silence is added")


def test_total_silence_is_bounded(tmp_path, monkeypatch):
    """The bound is for the whole file, so that many jumps cannot exhaust the memory."""
    monkeypatch.setattr(track, "MOST_SILENCE", 10)
    path = write_sound(tmp_path / "a.mka", SOUND, times=lambda t: t + 4 * round(t * 5))
    pcm, (line,) = read(path)
    assert 3 + 8 <= len(pcm) / RATE < 3.1 + 10
    assert "(the first of 13 jumps); the jump is taken" in line


def test_silence_comes_in_pieces(tmp_path):
    """Half an hour of silence is read in blocks, as the mp4 is written."""
    path = write_sound(
        tmp_path / "a.mka", SOUND, codec="libopus", times=lambda t: t + 1800 * (t >= 1)
    )
    tracemalloc.start()
    seconds = 0.0
    for block, rate, _ in audio_blocks(path):
        seconds += block.shape[1] / rate
        assert block.shape[1] <= rate
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds == pytest.approx(1803, abs=0.05)
    assert peak < 4 << 20


# --- sound and picture ---------------------------------------------------------------------------

FILMS = [
    ("a.mp4", "aac", "libx264"),
    ("a.mov", "aac", "libx264"),
    ("a.mov", "pcm_s16le", "libx264"),
    ("a.mkv", "aac", "libx264"),
    ("a.mkv", "libopus", "libx264"),
    ("a.webm", "libopus", "libvpx"),
    ("a.ts", "aac", "libx264"),
    ("a.flv", "aac", "libx264"),
    ("a.avi", "pcm_s16le", "mpeg4"),
]


@pytest.mark.parametrize(("name", "codec", "picture"), FILMS)
@pytest.mark.parametrize(("sound_at", "picture_at"), [(0, 0), (0.28, 0), (0, 0.4)])
def test_sound_is_on_the_clock_of_its_film(tmp_path, name, codec, picture, sound_at, picture_at):
    """Training takes it from the first frame on. A render keeps the sound before it."""
    if name == "a.avi" and sound_at != picture_at:
        pytest.skip("an avi begins with both")
    path = write_sound(
        tmp_path / name, SOUND, codec=codec, picture=picture, at=sound_at, picture_at=picture_at
    )
    delay = {"a.ts": AAC_DELAY, "a.flv": AAC_DELAY, "a.mkv": MKV_AAC}.get(name, 0)
    delay *= codec == "aac"
    # The muxers of FLV and MPEG-TS move both to begin at 0, including the encoder's delay.
    seen = AT + sound_at - picture_at
    pcm, _ = read(path, from_first_frame=True)
    np.testing.assert_allclose(heard_at(pcm), seen[seen > 0], atol=0.003)
    pcm, _ = read(path)
    before = max(picture_at - sound_at, delay if sound_at == picture_at else 0)
    before += delay if picture_at > sound_at else 0
    np.testing.assert_allclose(heard_at(pcm), seen + before, atol=0.003)
    sound, rate = played(path)
    np.testing.assert_allclose(heard_at(sound, rate), heard_at(pcm), atol=0.001)


@pytest.mark.parametrize("name", ["a.ts", "a.mkv"])
def test_a_film_that_is_cut_begins_with_a_keyframe(tmp_path, name):
    """Frames 10 to 24 cannot be decoded without the ones before them."""
    path = write_sound(tmp_path / name, SOUND, codec="mp2", picture="libx264", frames=75, cut=10)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        begin = next(container.decode(stream)).pts - stream.start_time
        assert begin * stream.time_base == pytest.approx(0.6)
    pcm, _ = read(path, from_first_frame=True)
    np.testing.assert_allclose(heard_at(pcm), AT[1:] - 1, atol=0.004)
    delay = 481 / 48000 if name == "a.ts" or not MATROSKA_SAYS else 0
    pcm, _ = read(path)
    np.testing.assert_allclose(heard_at(pcm), AT + delay, atol=0.004)


def test_a_flash_and_its_beep():
    path = ROOT / "tests" / "cases" / "late_sound.mp4"
    with av.open(str(path)) as container:
        light = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
    flashes = np.flatnonzero(np.diff(np.array(light) > 100, prepend=False) == 1)[::2]
    assert len(flashes) == 5
    for only in (False, True):
        beeps = heard_at(read_speech(path, from_first_frame=only).numpy())
        assert np.abs(beeps * 25 - flashes).max() < 0.1


def test_sound_alone_begins_at_its_first_sample(tmp_path):
    """Its timestamps do not matter."""
    for name, codec in (("a.mka", "aac"), ("a.mka", "libopus"), ("a.ts", "mp2")):
        late = write_sound(tmp_path / f"late{name}", SOUND, codec=codec, at=0.28)
        early = write_sound(tmp_path / f"early{name}", SOUND, codec=codec)
        for only in (False, True):
            assert torch.equal(read_speech(late, from_first_frame=only), read_speech(early))
