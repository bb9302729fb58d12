"""The mixing of channels: any number, in any order, with and without names."""

import struct
import subprocess
import sys
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest
from scipy.io import wavfile
from scipy.signal import resample_poly

from engine.live.convert import SpeechConverter
from engine.media.mixdown import LEAST_KEPT, Mixer, to_mono, to_stereo
from engine.media.speech import audio_blocks, read_speech
from engine.media.video import VideoWriter
from tests.conftest import DEMO, ROOT
from tests.engine.media.sound_files import write_sound

RATE = 16000
CASES = ROOT / "tests" / "cases"


def read(path, **options) -> tuple[np.ndarray, list[str]]:
    """Return the PCM and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pcm = read_speech(path, **options).numpy()
    return pcm, [str(warning.message) for warning in caught]


def played(path) -> np.ndarray:
    """Return the samples for an mp4, (channels, n)."""
    return np.concatenate([block for block, _, _ in audio_blocks(path)], axis=1)


def level(samples: np.ndarray) -> float:
    """Return the level in dB of full scale."""
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)))


@pytest.fixture(scope="module")
def voice() -> np.ndarray:
    """3 s of speech at 16 kHz."""
    _, samples = wavfile.read(DEMO / "speech.wav")
    return (samples[RATE : 4 * RATE] / 32768).astype(np.float32)


# --- eight channels and more ---------------------------------------------------------------------

READ = """
import sys
from engine.media.speech import audio_blocks, read_speech
for path in sys.argv[1:]:
    print(len(read_speech(path)), sum(block.shape[1] for block, _, _ in audio_blocks(path)))
"""


def read_in_a_process(*paths) -> list[list[int]]:
    """Return the number of samples at 16 kHz and in the mp4 of each file, read in a separate
    process, because a fault may kill it."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ, *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    return [[int(count) for count in line.split()] for line in done.stdout.splitlines()]


def test_eight_channels_of_opus():
    assert read_in_a_process(CASES / "eight_channels.opus") == [[48000, 144000]]
    pcm, said = read(CASES / "eight_channels.opus")
    assert len(pcm) == 48000 and said == []
    assert -30 < level(pcm) < -10


def test_many_channels(tmp_path, voice):
    """One channel has the voice, the others are silent."""
    paths = []
    for channels in (8, 9, 16, 24, 37, 64):
        samples = np.zeros((channels, len(voice)), np.float32)
        samples[channels - 2] = voice
        folder = tmp_path / str(channels)
        folder.mkdir()
        wavfile.write(folder / "a.wav", RATE, (samples.T * 32767).astype(np.int16))
        wavfile.write(folder / "float.wav", RATE, samples.T)
        paths += [folder / "a.wav", folder / "float.wav"]
        kinds = [("a.mka", "pcm_s16le", f"{channels} channels", 1)]
        if channels == 8:
            kinds += [("a.flac", "flac", "7.1", 3), ("a.opus", "libopus", "7.1", 3)]
            kinds += [("a.m4a", "alac", "7.1(wide)", 3), ("a.wv", "wavpack", "7.1", 3)]
        for name, codec, layout, times in kinds:
            sound, rate = samples.repeat(times, axis=1), times * RATE
            paths.append(write_sound(folder / name, sound, rate=rate, codec=codec, layout=layout))
    for path, (heard, written) in zip(paths, read_in_a_process(*paths), strict=True):
        assert abs(heard - 48000) <= 1 and written in (48000, 144000), path


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["ac3", "flac"])
def test_a_voice_in_the_centre(tmp_path, voice, codec):
    """The networks get it at 0 dB, and the mp4 at -3 dB on both sides."""
    samples = np.zeros((6, 3 * len(voice)), np.float32)
    samples[2] = resample_poly(voice, 3, 1)
    path = write_sound(tmp_path / f"a.{codec}", samples, codec=codec, layout="5.1(side)")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    if codec == "flac":  # its channels lie one beside the other
        frames = [frame.reshape(-1, 6).T for frame in frames]
    centre = level(
        np.concatenate(frames, axis=1)[2].astype(float) / (32768 if codec == "flac" else 1)
    )
    pcm, said = read(path)
    assert level(pcm) == pytest.approx(centre, abs=0.05) and said == []
    left, right = played(path)
    assert level(left) == pytest.approx(centre - 3.01, abs=0.05)
    np.testing.assert_allclose(left, right, atol=1e-4)


THREE = 0.70711
# Layout, channels in FFmpeg's order, weights in left, right and mono: ITU-R BS.775.
BY_HAND = [
    ("3.0", "FL FR FC", [(1, 0, THREE), (0, 1, THREE), (THREE, THREE, 1)]),
    ("2.1", "FL FR LFE", [(1, 0, THREE), (0, 1, THREE), (0, 0, 0)]),
    (
        "5.1",
        "FL FR FC LFE BL BR",
        [
            (1, 0, THREE),
            (0, 1, THREE),
            (THREE, THREE, 1),
            (0, 0, 0),
            (THREE, 0, 0.5),
            (0, THREE, 0.5),
        ],
    ),
]


@pytest.mark.parametrize(("layout", "names", "expected"), BY_HAND, ids=[row[0] for row in BY_HAND])
def test_weights_by_hand(layout, names, expected):
    names = tuple(names.split())
    assert tuple(channel.name for channel in av.AudioLayout(layout).channels) == names
    alone = np.eye(len(names), dtype=np.float32)
    made = np.vstack([to_stereo(alone, names), to_mono(alone, names)])
    np.testing.assert_allclose(made.T, expected, atol=1e-5)


LAYOUTS = [
    *("3.0", "2.1", "3.0(back)", "3.1", "4.0", "quad", "quad(side)", "4.1", "5.0", "5.0(side)"),
    *("5.1", "5.1(side)", "6.0", "6.0(front)", "hexagonal", "6.1", "6.1(back)", "6.1(front)"),
    *("7.0", "7.0(front)", "7.1", "7.1(wide)", "7.1(wide-side)", "octagonal"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_ffmpegs(layout):
    """FFmpeg mixes each channel alone, in float, which it does not scale down."""
    names = tuple(channel.name for channel in av.AudioLayout(layout).channels)
    alone = np.eye(len(names), dtype=np.float32)
    for target, mixed in (("mono", to_mono(alone, names)), ("stereo", to_stereo(alone, names))):
        frame = av.AudioFrame.from_ndarray(alone.reshape(1, -1), "flt", layout)
        frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), 0
        resampler = av.AudioResampler("flt", target, RATE)
        parts = resampler.resample(frame) + resampler.resample(None)
        expected = np.concatenate([part.to_ndarray() for part in parts], axis=1)
        np.testing.assert_allclose(mixed.T.ravel(), expected.ravel(), atol=1e-4)


def test_every_speaker_is_heard():
    """This includes the speakers above and below, which FFmpeg's own mixdown omits."""
    for layout in ("22.2", "7.1.4", "9.1.6", "hexadecagonal", "cube"):
        names = tuple(channel.name for channel in av.AudioLayout(layout).channels)
        alone = np.eye(len(names), dtype=np.float32)
        for name, mono, sides in zip(
            names, to_mono(alone, names), to_stereo(alone, names).T, strict=True
        ):
            assert (mono >= 0.5 and sides.max() >= 0.5) != name.startswith("LFE"), name
            if name.endswith("L"):
                assert sides[0] > sides[1]
            if name.endswith("R"):
                assert sides[1] > sides[0]


def test_ambisonics_are_heard_from_no_side():
    names = tuple(f"AMBI{i}" for i in range(4))
    alone = np.eye(4, dtype=np.float32)
    assert to_mono(alone, names).tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(to_stereo(alone, names)[:, 0], [THREE, THREE], atol=1e-5)
    assert not to_stereo(alone, names)[:, 1:].any()


def test_mono_then_stereo(tmp_path, voice):
    """In a joined file, the mp4 has the first part's channels, and both parts have the same
    level."""
    parts = []
    for channels in (1, 2, 1):
        path = tmp_path / "part.mp3"
        write_sound(path, np.stack([voice] * channels), rate=RATE, codec="libmp3lame")
        parts.append(path.read_bytes())
    for name, order, sides in (("mono.mp3", (0, 1), 1), ("stereo.mp3", (1, 2), 2)):
        (tmp_path / name).write_bytes(b"".join(parts[i] for i in order))
        sound = played(tmp_path / name)
        assert sound.shape[0] == sides
        first, second = sound[0, RATE : 2 * RATE], sound[0, 4 * RATE : 5 * RATE]
        pcm, _ = read(tmp_path / name)
        assert level(first) == pytest.approx(level(pcm[RATE : 2 * RATE]), abs=0.1)
        assert level(second) == pytest.approx(level(pcm[4 * RATE : 5 * RATE]), abs=0.1)


def test_surround_in_the_middle(tmp_path):
    """A stereo programme is followed by one with a voice in the center, as on television."""
    t = np.arange(48000) / 48000
    tone = 0.3 * np.sin(2 * np.pi * 300 * t).astype(np.float32)
    silence = 0 * tone
    parts = []
    for samples, layout in (
        ([tone, tone], "stereo"),
        ([silence, silence, tone, silence, silence, silence], "5.1(side)"),
    ):
        path = tmp_path / "part.ac3"
        write_sound(path, np.stack(samples), codec="ac3", layout=layout)
        parts.append(path.read_bytes())
    (tmp_path / "joined.ac3").write_bytes(b"".join(parts))
    pcm, said = read(tmp_path / "joined.ac3")
    tone_level = level(tone)
    assert level(pcm[4000:12000]) == pytest.approx(tone_level, abs=0.2)
    assert level(pcm[20000:28000]) == pytest.approx(tone_level, abs=0.2)
    sound = played(tmp_path / "joined.ac3")
    assert level(sound[:, 12000:36000]) == pytest.approx(tone_level, abs=0.2)
    assert level(sound[:, 60000:84000]) == pytest.approx(tone_level - 3, abs=0.2)
    assert said == []


def write_caf(path, samples: np.ndarray, labels: list[int]):
    """Write (n, channels) to a CAF with Apple's channel labels: 1 L, 2 R, 3 C, 4 LFE, 5 Ls, 6 Rs;
    65536 + i is a discrete channel."""
    count = samples.shape[1]
    data = (samples * 32767).astype(">i2").tobytes()
    form = struct.pack(">d4sIIIII", float(RATE), b"lpcm", 0, 2 * count, 1, count, 16)
    layout = struct.pack(">III", 0, 0, count)
    layout += b"".join(struct.pack(">IIfff", label, 0, 0, 0, 0) for label in labels)
    chunks = [(b"desc", form), (b"chan", layout), (b"data", bytes(4) + data)]
    body = b"".join(kind + struct.pack(">q", len(chunk)) + chunk for kind, chunk in chunks)
    path.write_bytes(b"caff\x00\x01\x00\x00" + body)
    return path


ORDERS = [
    ([3, 1, 2], 0, (-3.01, -3.01, 0)),  # C, L, R: the voice in the first
    ([3, 1, 2, 5, 6, 4], 0, (-3.01, -3.01, 0)),  # as in cinemas
    ([3, 1, 2, 5, 6, 4], 1, (0, None, -3.01)),
    ([2, 1], 0, (None, 0, -6.02)),
]


def test_an_order_that_is_not_ffmpegs(tmp_path, voice):
    """Left, right and mono are compared in dB of the voice. PyAV 18 crashes with such a file."""
    paths = []
    for number, (labels, spoken, _) in enumerate(ORDERS):
        samples = np.zeros((len(voice), len(labels)), np.float32)
        samples[:, spoken] = voice
        paths.append(write_caf(tmp_path / f"{number}.caf", samples, labels))
    assert read_in_a_process(*paths, *paths) == [[48000, 48000]] * 2 * len(paths)
    for path, (_, _, levels) in zip(paths, ORDERS, strict=True):
        for sound, expected in zip([*played(path), read(path)[0]], levels, strict=True):
            if expected is None:
                assert not sound.any()
            else:
                assert level(sound) - level(voice) == pytest.approx(expected, abs=0.01)


# --- opposite phases, and channels without names -------------------------------------------------


def test_opposite_phases(tmp_path, voice):
    """One channel is used alone, with a warning. The mp4 has both."""
    path = tmp_path / "a.wav"
    samples = np.stack([voice, -voice], axis=1)
    wavfile.write(path, RATE, samples)
    pcm, said = read(path)
    assert np.array_equal(pcm, voice)
    assert said == [
        f"{path}: the mono mix keeps 0.0% of the energy of channel 0, the loudest; "
        "channel 0 is used alone"
    ]
    assert np.array_equal(played(path), samples.T)


@pytest.mark.parametrize(
    ("left", "right", "alone"),
    [
        (1, 1, None),
        (1, 0, None),  # on one side only: a quarter of the energy
        (0, 0, None),
        (1, 0.5, None),
        (1, -0.9, 0),
        (0.5, -0.6, 1),  # the louder one
        (1, -0.3, None),  # 12% is left
    ],
)
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_when_channels_cancel(tmp_path, voice, left, right, alone, rate):
    samples = np.stack([left * voice, right * voice], axis=1)
    wavfile.write(tmp_path / "a.wav", rate, samples)
    pcm, said = read(tmp_path / "a.wav")
    expected = samples.mean(axis=1, dtype=np.float32) if alone is None else samples[:, alone]
    assert len(said) == (alone is not None)
    if rate == RATE:
        assert np.array_equal(pcm, expected)
    elif left:
        assert level(pcm) == pytest.approx(level(expected), abs=0.5)  # the highs are gone


def test_a_stereo_microphone_does_not_cancel(tmp_path, voice):
    """The mean is used for two microphones 20 cm apart with different room reflections."""
    random = np.random.default_rng(5)
    sides = []
    for delay in (0, 9):
        room = random.normal(0, 1, 4000) * np.exp(-np.arange(4000) / 800)
        room *= 0.7 / np.linalg.norm(room)
        room[0] += 1
        sides.append(np.convolve(np.roll(voice, delay), room)[: len(voice)])
    samples = np.stack(sides, axis=1).astype(np.float32)
    wavfile.write(tmp_path / "a.wav", RATE, samples)
    pcm, said = read(tmp_path / "a.wav")
    assert said == [] and np.array_equal(pcm, samples.mean(axis=1, dtype=np.float32))


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_channels_without_names(tmp_path, voice, channels):
    """Networks and mp4 get the mean of all channels, or a single channel if it is lost in the
    mean."""
    labels = [65536 + i for i in range(channels)]
    samples = np.zeros((len(voice), channels), np.float32)
    samples[:, 1] = voice
    pcm, said = read(write_caf(tmp_path / "one.caf", samples, labels))
    drowns = channels > 3
    expected = level(voice) - (0 if drowns else 20 * np.log10(channels))
    assert level(pcm) == pytest.approx(expected, abs=0.01)
    for side in played(tmp_path / "one.caf"):
        assert level(side) == pytest.approx(expected, abs=0.01)
    assert len(said) == drowns
    if drowns:
        assert said[0].endswith("channel 1 is used alone")

    samples[:] = voice[:, None]
    pcm, said = read(write_caf(tmp_path / "all.caf", samples, labels))
    assert level(pcm) == pytest.approx(level(voice), abs=0.01) and said == []
    assert level(played(tmp_path / "all.caf")) == pytest.approx(level(voice), abs=0.01)


def test_a_loud_lfe_is_no_voice(tmp_path, voice):
    samples = np.zeros((len(voice), 6), np.float32)
    samples[:, 2] = 0.1 * voice
    samples[:, 3] = 0.9 * np.sin(2 * np.pi * 40 * np.arange(len(voice)) / RATE)
    path = write_caf(tmp_path / "a.caf", samples, [1, 2, 3, 4, 5, 6])
    pcm, said = read(path)
    assert said == [] and level(pcm) == pytest.approx(level(voice) - 20, abs=0.01)


# --- what is too loud ----------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.2, 1.0])
def test_a_mix_does_not_clip(tmp_path, gain):
    """5.1 with full level in all channels is scaled down as a whole, so that the peak is 1. Other
    sound is mixed by ITU-R BS.775."""
    t = np.arange(2 * RATE) / RATE
    tone = np.sin(2 * np.pi * 300 * t) * (t < 1) + 0.1 * np.sin(2 * np.pi * 300 * t) * (t >= 1)
    samples = np.stack([gain * tone] * 6).astype(np.float32)
    path = write_sound(tmp_path / "a.flac", samples, rate=RATE, codec="flac", layout="5.1")
    mixed = 1 + 2 * THREE
    expected = min(gain * mixed, 1)
    sound = played(path)
    assert np.abs(sound[:, :RATE]).max() == pytest.approx(expected, abs=1e-3)
    assert np.abs(sound[:, RATE:]).max() == pytest.approx(expected / 10, abs=1e-3)
    pcm, _ = read(path)  # float: nothing to clip
    assert np.abs(pcm).max() == pytest.approx(gain * (2 * THREE + 1 + 1), abs=1e-2)

    writer = VideoWriter(tmp_path / "v.mp4", height=48, width=64, fps=Fraction(25), speech=path)
    with writer:
        writer.write(np.zeros((50, 48, 64, 3), np.uint8))
    with av.open(str(tmp_path / "v.mp4")) as container:
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert np.abs(heard).max() < 1.05  # what AAC adds of its own


def test_loud_stereo_stays_as_it_is(tmp_path):
    samples = np.random.default_rng(0).uniform(-1.5, 1.5, (RATE, 2)).astype(np.float32)
    wavfile.write(tmp_path / "a.wav", RATE, samples)
    assert np.array_equal(played(tmp_path / "a.wav"), samples.T)


# --- sound that comes in pieces ------------------------------------------------------------------


def mixed_in_pieces(sound: np.ndarray, seed: int, rate: int = RATE) -> np.ndarray:
    mixer, random = Mixer(rate), np.random.default_rng(seed)
    ends = np.sort(random.integers(0, sound.shape[1], 40))
    return np.concatenate([mixer(piece) for piece in np.split(sound, ends, axis=1)])


@pytest.mark.parametrize("quiet", [1, -0.97])
def test_opposite_phases_in_pieces(voice, quiet):
    """The mix is of no use after a few words at the latest; the pieces make no difference."""
    left, right = (voice, -voice) if quiet == 1 else (voice * -quiet, -voice)
    stereo = np.stack([left, right])
    with pytest.warns(UserWarning, match="keeps little of channel") as told:
        mono = mixed_in_pieces(stereo, seed=1)
    loudest = left if quiet == 1 else right
    assert len(told) == 1
    energy = np.cumsum(np.square(loudest, dtype=np.float64))
    begin = int(np.argmax(energy > 0.05 * 1e-4 * RATE))
    assert begin < RATE // 2 and np.array_equal(mono[begin:], loudest[begin:])
    assert np.abs(mono[:begin]).max() < 0.05
    with pytest.warns(UserWarning):
        assert np.array_equal(mixed_in_pieces(stereo, seed=2), mono)
    with pytest.warns(UserWarning):
        assert np.array_equal(SpeechConverter(RATE)(stereo), mono)


def test_what_does_not_cancel_is_a_mean_from_the_first_sample_on(voice, recwarn):
    noise = np.random.default_rng(3).standard_normal((2, len(voice))).astype(np.float32)
    for stereo in (
        np.stack([voice, voice]),
        np.stack([voice, 0 * voice]),
        np.stack([voice, np.roll(voice, 9)]),
        0.1 * noise,
        np.round(noise * 0.5) / 32768,  # the last bit
    ):
        assert np.array_equal(mixed_in_pieces(stereo, seed=4), stereo.mean(axis=0))
    assert not recwarn.list


def test_a_mix_that_keeps_enough_again_is_used_again(voice):
    """A channel that comes in late, and louder."""
    both = np.concatenate([np.stack([voice, -voice]), 2 * np.stack([voice, voice])], axis=1)
    with pytest.warns(UserWarning):
        mono = mixed_in_pieces(both, seed=5)
    sums = [np.cumsum(np.square(x, dtype=np.float64)) for x in (both[0], both.mean(axis=0))]
    right = np.where(sums[1] < LEAST_KEPT * sums[0], both[0], both.mean(axis=0))
    assert np.array_equal(mono[RATE:], right[RATE:])
    assert np.array_equal(mono[-RATE:], both[0, -RATE:])
