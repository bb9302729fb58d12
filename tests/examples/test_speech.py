"""Speech with known mouth shapes: the samples, the times of phonemes, and the shapes."""

import hashlib
import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")

from engine.errors import InputError
from examples.make_demo import TEXT
from examples.speech import FIELDS, PAUSE, REST, Phoneme, corpus, espeak, make, mouths, speak
from examples.speech.__main__ import main
from examples.speech.targets import target
from examples.speech.texts import HELD_OUT, TRAINING

ROOT = Path(__file__).parents[2]
OPENNESS, WIDTH, ROUNDING, TEETH, TONGUE = range(5)
LIPS = {"p", "b", "m"}
VOWELS = set("aAeEiIoOuU0@3V")
# Every phoneme of the language, as the voices of the corpus write them.
ENGLISH = "p b t d k g tS dZ f v T D s z S Z h m n N l r w j"
ENGLISH += " i: I eI E a A: 0 O: oU U u: V @ 3 3: aI aU OI e@ i@3 A@ O@ U@ @L"


def bare(name: str) -> str:
    return name.lstrip("'\",%=")


def is_vowel(name: str) -> bool:
    return bare(name)[0] in VOWELS


def frames_of(utterance) -> int:
    return len(utterance.pcm) * 25 // 16000


@pytest.fixture(scope="module")
def held_out():
    """(recipe, utterance, mouths) of the whole held-out corpus."""
    made = [(recipe, make(recipe)) for recipe in corpus(held_out=True)]
    return [(recipe, said, mouths(said.phonemes, frames_of(said))) for recipe, said in made]


@pytest.fixture(scope="module")
def training():
    """(seconds, phonemes) of every utterance of the training corpus."""
    made = map(make, corpus())
    return [(len(said.pcm) / 16000, said.phonemes) for said in made]


def rms(pcm: np.ndarray, start: float, end: float) -> float:
    return float(np.sqrt(np.mean(pcm[round(start * 16000) : round(end * 16000)] ** 2)))


# Speech and phonemes


SAME = """
import hashlib
from examples.speech import make, corpus
digest = hashlib.md5()
for recipe in corpus(held_out=True)[:4]:
    said = make(recipe)
    digest.update(said.pcm.tobytes() + repr(said.phonemes).encode())
"""


def test_same_speech_in_every_process():
    here = {}
    exec(SAME, here)
    speak("Something else, so that there is a state to forget.", variant="m3")
    again = {}
    exec(SAME, again)
    there = subprocess.run(
        [sys.executable, "-c", SAME + "print(digest.hexdigest())"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    digests = here["digest"].hexdigest(), again["digest"].hexdigest(), there.stdout.strip()
    assert len(set(digests)) == 1


@pytest.mark.parametrize("voice", ["en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029"])
def test_voices_differ(voice):
    said = speak(TEXT, voice=voice)
    assert said.pcm.dtype == np.float32
    assert np.abs(said.pcm).max() == pytest.approx(0.8)
    digest = hashlib.md5(said.pcm.tobytes()).hexdigest()
    for other in ({"variant": "m3"}, {"rate": 190}, {"pitch": 70}, {"variant": None}):
        changed = speak(TEXT, voice=voice, **other)
        assert hashlib.md5(changed.pcm.tobytes()).hexdigest() != digest


def test_rate_and_pitch():
    slow, fast = speak(TEXT, rate=120), speak(TEXT, rate=210)
    assert len(slow.pcm) > 1.4 * len(fast.pcm)

    def pitch(pcm: np.ndarray) -> float:
        """Return the pitch in Hz, where the autocorrelation of the whole is largest."""
        spectrum = np.abs(np.fft.rfft(pcm, 2 * len(pcm))) ** 2
        ripple = np.fft.irfft(spectrum)[16000 // 400 : 16000 // 60]
        return 16000 / (np.argmax(ripple) + 16000 // 400)

    low, high = (pitch(speak("Mm, all along.", variant="m3", pitch=p).pcm) for p in (25, 75))
    assert high > 1.2 * low


def test_phonemes_cover_the_utterance(held_out):
    for _, said, _ in held_out:
        names = [p.name for p in said.phonemes]
        assert said.phonemes[0].start == 0
        assert said.phonemes[-1].end == pytest.approx(len(said.pcm) / 16000, abs=1e-4)
        for before, after in zip(said.phonemes, said.phonemes[1:], strict=False):
            assert before.end == pytest.approx(after.start, abs=1e-4)
        for phoneme in said.phonemes:
            # Nobody articulates faster; espeak-ng's own shortest sound is a /b/ of 17 ms.
            assert phoneme.name == PAUSE or phoneme.end - phoneme.start > 0.009
            assert phoneme.name == PAUSE or phoneme.end - phoneme.start < 0.6
        assert not any(name.startswith("_") and name != PAUSE for name in names)


def test_no_sound_is_lost():
    """espeak-ng gives final /l/ and /r/ no duration."""
    names = [bare(p.name) for p in speak("All balls fall.", voice="en-us").phonemes]
    assert [n for n in names if n != PAUSE] == ["O:", "l", "b", "O:", "l", "z", "f", "O:", "l"]
    names = [bare(p.name) for p in speak("Pat kept Bob.", variant="m3").phonemes]
    assert [n for n in names if n != PAUSE] == ["p", "a", "t", "k", "E", "p", "t", "b", "0", "b"]


def test_vowels_are_loud_and_closures_silent(held_out):
    vowels, closures, pauses = [], [], []
    for recipe, said, _ in held_out:
        if recipe.noise:
            continue
        for before, phoneme in zip(said.phonemes, said.phonemes[1:], strict=False):
            start, end = phoneme.start, phoneme.end
            level = recipe.gain
            if is_vowel(phoneme.name) and phoneme.name[0] == "'":
                third = (end - start) / 3
                vowels.append(rms(said.pcm, start + third, end - third) / level)
            elif bare(phoneme.name) in {"p", "t", "k"} and is_vowel(before.name):
                closures.append(rms(said.pcm, start + 0.005, start + 0.025) / level)
            elif phoneme.name == PAUSE and end - start > 0.2:
                pauses.append(rms(said.pcm, start + 0.12, end) / level)
    assert len(vowels) > 60 and len(closures) > 30 and len(pauses) > 20
    assert np.median(vowels) > 0.15
    assert np.percentile(vowels, 5) > 0.05
    assert np.median(closures) < 0.003
    assert np.percentile(closures, 80) < 0.03
    assert max(pauses) < 0.02


def test_boundaries_are_where_they_are_heard(held_out):
    """Loudness follows the vowels without a lag: none in the median, and a small one in each."""
    lags = []
    for recipe, said, _ in held_out:
        if recipe.noise:
            continue
        count = len(said.pcm) // 80  # 5 ms
        loud = np.log10(1e-4 + np.sqrt((said.pcm[: count * 80].reshape(count, 80) ** 2).mean(1)))
        vowel = np.zeros(count)
        for phoneme in said.phonemes:
            if is_vowel(phoneme.name):
                vowel[round(phoneme.start * 200) : round(phoneme.end * 200)] = 1
        fits = [
            np.corrcoef(loud[20 + lag : count - 20 + lag], vowel[20 : count - 20])[0, 1]
            for lag in range(-20, 21)
        ]
        lags.append(5 * (int(np.argmax(fits)) - 20))
    # The voice in /b/ or /n/ is more often before a vowel than after it.
    assert -12 <= np.median(lags) <= 5
    assert max(map(abs, lags)) <= 20


def test_text_that_espeak_cannot_speak(monkeypatch):
    with pytest.raises(ValueError, match="no voice 'xx\\+f4'"):
        speak("hello", voice="xx")
    with pytest.raises(ValueError, match="no variant 'f99'"):
        speak("hello", variant="f99")
    for text in ("", "..."):
        with pytest.raises(ValueError, match="is silent for the text"):
            speak(text)
    monkeypatch.setattr(espeak, "_library", lambda: ("libnothing.so", None))
    with pytest.raises(InputError, match="pip install espeakng-loader"):
        speak("hello")
    monkeypatch.undo()
    assert len(speak("hello").pcm) > 4000


# Mouth shapes


def sequence(*names: str, each: float = 0.12, pause: float = 1.0) -> list[Phoneme]:
    """Return the sounds, `each` seconds long, between two pauses."""
    lengths = [pause, *[each] * len(names), pause]
    ends = np.cumsum(lengths).tolist()
    starts = [0.0, *ends[:-1]]
    return [Phoneme(*p) for p in zip((PAUSE, *names, PAUSE), starts, ends, strict=True)]


def at(shapes: np.ndarray, seconds: float) -> np.ndarray:
    return shapes[int(seconds * 25)]


def test_rows_are_the_middle_of_their_frames():
    shapes = mouths(sequence("'A:", each=0.4), 60)
    assert shapes.shape == (60, len(FIELDS)) and shapes.dtype == np.float32
    middle = np.average((np.arange(60) + 0.5) / 25, weights=shapes[:, OPENNESS])
    assert middle == pytest.approx(1.2 - 0.01, abs=0.005)  # the jaw leads by 10 ms
    # At another frame rate the mouth does the same at the same time.
    fine = mouths(sequence("'A:", each=0.4), 300, fps=125)
    np.testing.assert_allclose(fine[2::5], shapes, atol=1e-5)


def closed_frames(shapes: np.ndarray, phoneme: Phoneme) -> np.ndarray:
    """Return, for each frame of the phoneme, whether its lips are closed."""
    first, last = int(phoneme.start * 25), int(phoneme.end * 25)
    during = shapes[max(first, 0) : last + 1]
    return during[:, [OPENNESS, TEETH, TONGUE]].max(axis=1) < 1e-3


def test_lips_close_on_p_b_m(held_out):
    count = 0
    for _, said, shapes in held_out:
        for phoneme in said.phonemes:
            if bare(phoneme.name) in LIPS:
                assert closed_frames(shapes, phoneme).any(), phoneme
                count += 1
    assert count > 70


@pytest.mark.parametrize("rate", [120, 210, 320])
@pytest.mark.parametrize("variant", ["f3", "m2"])
def test_lips_close_at_any_speed(rate, variant):
    text = "Maybe Bob bumped a rumpled paper bamboo lamp. A happy puppy popped up, Pam."
    said = speak(text, variant=variant, rate=rate)
    shapes = mouths(said.phonemes, frames_of(said))
    closures = [p for p in said.phonemes if bare(p.name) in LIPS]
    assert len(closures) > 20
    for phoneme in closures:
        assert closed_frames(shapes, phoneme).any(), phoneme
    # Between two closures the mouth opens again.
    stressed = [p for p in said.phonemes if bare(p.name) in {"a", "V", "0"} and p.name[0] == "'"]
    tops = [shapes[int(p.start * 25) : int(p.end * 25) + 1, OPENNESS].max() for p in stressed]
    assert len(tops) > 5
    # Beyond the corpus's rates a vowel may fall between two frames.
    assert rate > 210 or min(tops) > 0.15
    assert np.median(tops) > 0.1


@pytest.mark.parametrize("shift", np.arange(0, 0.04, 0.005))
@pytest.mark.parametrize("name", sorted(LIPS))
def test_short_closures_are_seen(name, shift):
    """20 ms of closed lips are seen, at any place between the frames' middles."""
    sounds = [
        Phoneme("'A:", 0, 0.4 + shift),
        Phoneme(name, 0.4 + shift, 0.42 + shift),
        Phoneme("'A:", 0.42 + shift, 0.9),
    ]
    shapes = mouths(sounds, 22)
    assert closed_frames(shapes, sounds[1]).any()
    assert shapes[:6, OPENNESS].min() > 0.4 < shapes[15:20, OPENNESS].min()


def test_shapes_of_sounds():
    """Each sound stands between two vowels without its own feature."""
    for name in ("w", "u:", "U", "oU", "S"):
        assert at(mouths(sequence("'E", name, "'E"), 60), 1.18)[ROUNDING] > 0.35, name
    for name in ("f", "v", "s", "z", "S", "Z", "tS", "dZ"):
        assert at(mouths(sequence("'A:", name, "'A:"), 60), 1.18)[TEETH] > 0.5, name
    for name in ("f", "v", "s", "z"):
        assert at(mouths(sequence("'A:", name, "'A:"), 60), 1.18)[OPENNESS] < 0.15, name
    for name in ("T", "D", "l"):
        assert at(mouths(sequence("'A:", name, "'A:"), 60), 1.18)[TONGUE] > 0.6, name
    for name in ("n", "t", "d"):
        assert 0.2 < at(mouths(sequence("'A:", name, "'A:"), 60), 1.18)[TONGUE] < 0.6, name
    assert at(mouths(sequence("h", "'i:", "d"), 60), 1.18)[WIDTH] > 0.6
    wide = [at(mouths(sequence("d", v, "d"), 60), 1.18)[OPENNESS] for v in ("'i:", "'E", "'A:")]
    assert wide[0] + 0.1 < wide[1] < wide[2] - 0.1


def test_sounds_show_in_speech(held_out):
    """The same in running speech, over all cases, in the frame in the middle of the sound."""
    seen: dict[str, list[np.ndarray]] = {}
    for _, said, shapes in held_out:
        for phoneme in said.phonemes:
            middle = (phoneme.start + phoneme.end) / 2
            if middle * 25 < len(shapes):
                seen.setdefault(bare(phoneme.name), []).append(at(shapes, middle))
    mean = {name: np.mean(rows, axis=0) for name, rows in seen.items() if len(rows) >= 4}
    for name, field, least in [
        *(("w", ROUNDING, 0.6), ("u:", ROUNDING, 0.45), ("oU", ROUNDING, 0.45)),
        *(("f", TEETH, 0.45), ("v", TEETH, 0.4), ("s", TEETH, 0.5), ("z", TEETH, 0.45)),
        *(("tS", TEETH, 0.45), ("S", TEETH, 0.45), ("l", TONGUE, 0.4), ("D", TONGUE, 0.4)),
    ]:
        assert mean[name][field] > least, (name, mean[name])
    for name in ("a", "I", "i:", "E"):
        assert mean[name][ROUNDING] < 0.15, name
    assert mean["a"][OPENNESS] > 2 * mean["i:"][OPENNESS]


def test_shapes_blend_with_their_neighbours():
    """A /k/ takes the lip shape of its vowel: round before /u:/, broad before /i:/. An /s/ less
    so."""
    before_u, before_i = (mouths(sequence("k", v), 60) for v in ("'u:", "'i:"))
    assert at(before_u, 1.06)[ROUNDING] > at(before_i, 1.06)[ROUNDING] + 0.3
    assert at(before_i, 1.06)[WIDTH] > at(before_u, 1.06)[WIDTH] + 0.3


def test_weak_vowels_open_less():
    for vowel in ("a", "E", "I", "oU", "aI"):
        strong, weak = (mouths(sequence("d", mark + vowel, "d"), 60) for mark in ("'", ""))
        assert at(weak, 1.18)[OPENNESS] < 0.9 * at(strong, 1.18)[OPENNESS]


def test_diphthongs_move():
    shapes = mouths(sequence("h", "'aI", "'aU", each=0.3), 60)
    assert at(shapes, 1.42)[OPENNESS] > at(shapes, 1.58)[OPENNESS] + 0.1
    assert at(shapes, 1.88)[ROUNDING] > at(shapes, 1.70)[ROUNDING] + 0.3


def test_silence_is_still(held_out):
    count = 0
    for _, said, shapes in held_out:
        middles = (np.arange(len(shapes)) + 0.5) / 25
        runs: list[list[float]] = []
        for phoneme in said.phonemes:
            if phoneme.name != PAUSE:
                continue
            if runs and abs(runs[-1][1] - phoneme.start) < 1e-6:
                runs[-1][1] = phoneme.end
            else:
                runs.append([phoneme.start, phoneme.end])
        for start, end in runs:
            if end - start >= 0.25:
                inside = (middles >= start + 0.15) & (middles <= end - 0.15)
                assert (shapes[inside] == REST).all()
                count += inside.sum()
    assert count > 250
    assert (mouths([Phoneme(PAUSE, 0, 3)], 75) == REST).all()
    assert (mouths([], 5) == REST).all()
    assert mouths([Phoneme("s", 0, 0.02)], 1).shape == (1, len(FIELDS))
    assert mouths([Phoneme("s", 0, 0.02)], 0).shape == (0, len(FIELDS))


def test_rest_before_within_and_after():
    shapes = mouths(sequence("'A:", PAUSE, "'A:", each=0.2, pause=0.6), 80)
    assert (shapes[:10] == REST).all()
    assert (shapes[34:] == REST).all()
    assert not (shapes[15:29] == REST).all(axis=1).any()  # too short for REST
    round_lips = mouths(sequence("'u:", PAUSE, "'u:", each=0.2), 60)[28:36, ROUNDING]
    assert round_lips.min() > 0.2  # nor to begin with it
    # With sound to the very end, the mouth closes after it without a jump.
    shapes = mouths([Phoneme("'A:", 0, 1)], 40)
    assert np.abs(np.diff(shapes[:, OPENNESS])).max() < 0.36
    assert (shapes[29:] == REST).all()


def test_bounds_and_smoothness(held_out):
    for _, said, shapes in held_out:
        assert shapes[:, [OPENNESS, ROUNDING, TEETH, TONGUE]].min() >= 0
        assert shapes[:, OPENNESS].max() < 0.7
        assert shapes[:, WIDTH].min() >= -0.3
        assert shapes.max() <= 1
        middles = (np.arange(len(shapes)) + 0.5) / 25
        near = np.zeros(len(shapes), bool)
        for phoneme in said.phonemes:
            if bare(phoneme.name) in LIPS:
                near |= (middles > phoneme.start - 0.1) & (middles < phoneme.end + 0.1)
        steps = np.abs(np.diff(shapes[:, OPENNESS]))
        assert steps.max() < 0.6
        assert steps[~(near[1:] & near[:-1])].max(initial=0) <= 0.35
    every = np.concatenate([shapes for _, _, shapes in held_out])
    assert 0.5 < np.percentile(every[:, OPENNESS], 99) < 0.65


def test_unknown_phoneme():
    with pytest.raises(ValueError, match='no mouth shape for the phoneme "\'y:"'):
        mouths(sequence("p", "'y:"), 10)


# The corpora


def test_every_phoneme_has_a_shape(training):
    names = {p.name for _, phonemes in training for p in phonemes}
    for name in names:
        for shape, strengths in target(name):
            assert len(shape) == len(strengths) == len(FIELDS)
            assert min(strengths) > 0
    # And the training corpus has every sound of the language.
    missing = set(ENGLISH.split()) - {bare(name) for name in names}
    assert not missing


def test_lengths(training, held_out):
    assert sum(seconds for seconds, _ in training) > 20 * 60
    assert 80 < sum(len(said.pcm) / 16000 for _, said, _ in held_out) < 120
    quiet = [recipe for recipe in corpus() if not recipe.sentences]
    assert len(quiet) >= 8
    assert any(recipe.noise for recipe in quiet) and not all(recipe.noise for recipe in quiet)


def test_corpora_share_nothing():
    train, judge = corpus(), corpus(held_out=True)
    assert train == corpus() and judge == corpus(held_out=True)
    assert train != corpus(seed=1)
    said, heard = ({s for r in part for s in r.sentences} for part in (train, judge))
    assert said == set(TRAINING) and heard <= set(HELD_OUT)
    assert not set(TRAINING) & {*HELD_OUT, TEXT}
    assert len(set(TRAINING)) == len(TRAINING) >= 200
    assert len(set(HELD_OUT)) == len(HELD_OUT) >= 40
    variants = [{r.variant for r in part if r.sentences} for part in (train, judge)]
    assert len(variants[0]) >= 12 and len(variants[1]) == 5
    assert not variants[0] & variants[1]
    assert len({r.voice for r in train}) >= 4
    assert np.ptp([r.rate for r in train]) > 80 and np.ptp([r.pitch for r in train]) > 45
    pauses = [pause for r in train for pause in r.pauses if pause]
    assert min(pauses) >= 0.3 and max(pauses) > 2


def test_levels():
    loud = next(r for r in corpus() if r.sentences and r.gain > 0.9 and not r.noise)
    assert np.abs(make(loud).pcm).max() == pytest.approx(loud.gain, abs=1e-4)
    noisy = [r for r in corpus() if r.sentences and r.noise and r.pauses[0]][:6]
    for recipe in noisy:
        pcm = make(recipe).pcm
        quiet = pcm[: round(recipe.pauses[0] * 16000)]
        assert quiet.std() == pytest.approx(recipe.noise, rel=0.1)
        assert np.abs(pcm).max() <= 1
        assert 24 < 20 * np.log10(pcm.std() / quiet.std()) < 56


def test_command(tmp_path):
    assert main(["-o", str(tmp_path), "--held-out", "--minutes", "0.1"]) == 0
    recipe = corpus(minutes=0.1, held_out=True)[0]
    said = make(recipe)
    with wave.open(str(tmp_path / "000.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (1, 16000, 2)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    np.testing.assert_allclose(pcm / 32767, said.pcm, atol=1e-4)
    written = json.loads((tmp_path / "000.json").read_text())
    assert written["recipe"]["sentences"] == list(recipe.sentences)
    assert [name for name, _, _ in written["phonemes"]] == [p.name for p in said.phonemes]
