"""Utterances to learn from, and others to be judged by: recipes from a seed."""

from dataclasses import dataclass
from itertools import cycle

import numpy as np

from .espeak import PAUSE, PEAK, SAMPLE_RATE, Phoneme, Utterance, speak
from .texts import HELD_OUT, TRAINING

MINUTES = 24.0
HELD_OUT_MINUTES = 1.6
VOICES = ("en-us", "en-us", "en-us", "en-gb", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029")
VARIANTS = (
    *("f1", "f2", "f4", "m1", "m3", "m4", "m5", "m7"),
    *("Andy", "Alicia", "Michael", "adam", "belinda", "linda", "quincy", "steph2", "zac"),
)
HELD_OUT_VARIANTS = ("f3", "f5", "m2", "m6", "m8")
_SILENT = 0.05  # share of utterances in which nobody speaks
_NOISY = 0.3  # share with background noise
_CUT = 0.25  # share that begins, and that ends, without a pause: recordings do
_LETTERS_A_WORD = 6.1  # the space included; makes `_seconds` a little short


@dataclass(frozen=True)
class Recipe:
    """One utterance: `sentences`, `pauses[i]` seconds before sentence i and the last at the end.

    No sentences: `pauses[0]` seconds of silence. `gain` is the loudest sample of the speech,
    `noise` the standard deviation of the background, drawn from `seed`; 0 for none.
    """

    sentences: tuple[str, ...]
    pauses: tuple[float, ...]
    voice: str = "en-us"
    variant: str | None = "f4"
    rate: int = 160
    pitch: int = 46
    gain: float = PEAK
    noise: float = 0.0
    seed: int = 0


def _seconds(recipe: Recipe) -> float:
    """About how long the utterance is, without speaking it."""
    words = sum(map(len, recipe.sentences)) / _LETTERS_A_WORD
    return words * 60 / recipe.rate + sum(recipe.pauses)


def _pause(random: np.random.Generator) -> float:
    """0.3 to 2.5 s, short ones more often; whole milliseconds."""
    return round(0.3 + 2.2 * random.random() ** 6, 3)


def _recipe(random: np.random.Generator, sentences, variants: tuple[str, ...]) -> Recipe:
    gain = round(random.uniform(0.3, 1.0), 3)
    noise = 0.0
    if random.random() < _NOISY:
        # 30 to 50 dB below speech, whose standard deviation is about a seventh of its peak.
        noise = gain / 7 * 10 ** (-random.uniform(30, 50) / 20)
    pauses = [_pause(random) for _ in range(len(sentences) + 1)]
    for end in (0, -1):
        if random.random() < _CUT:
            pauses[end] = 0.0
    return Recipe(
        sentences=sentences,
        pauses=tuple(pauses),
        voice=VOICES[random.integers(len(VOICES))],
        variant=variants[random.integers(len(variants))],
        rate=int(random.integers(120, 211)),
        pitch=int(random.integers(25, 76)),
        gain=gain,
        noise=noise,
        seed=int(random.integers(2**31)),
    )


def corpus(seed: int = 2026, minutes: float | None = None, held_out: bool = False) -> list[Recipe]:
    """Recipes of at least `minutes`, always the same for a seed.

    Every text comes up before any comes up again. The held-out corpus shares no text and no voice
    variant with the other.

    Args:
        seed: of everything that is drawn.
        minutes: 24, or 1.6 of the held-out corpus, unless given.
        held_out: the corpus to judge by instead of the one to learn from.
    """
    if minutes is None:
        minutes = HELD_OUT_MINUTES if held_out else MINUTES
    random = np.random.default_rng((seed, held_out))
    texts = HELD_OUT if held_out else TRAINING
    variants = HELD_OUT_VARIANTS if held_out else VARIANTS
    order = cycle(random.permutation(len(texts)).tolist())
    recipes: list[Recipe] = []
    seconds = 0.0
    while seconds < minutes * 60:
        if random.random() < _SILENT:
            length = round(random.uniform(1.5, 4.0), 3)
            noise = 10 ** random.uniform(-4.5, -3) if random.random() < 0.6 else 0.0
            recipe = Recipe((), (length,), noise=noise, seed=int(random.integers(2**31)))
        else:
            count = int(random.choice((1, 2, 3), p=(0.4, 0.4, 0.2)))
            recipe = _recipe(random, tuple(texts[next(order)] for _ in range(count)), variants)
        recipes.append(recipe)
        seconds += _seconds(recipe)
    return recipes


def make(recipe: Recipe) -> Utterance:
    """The utterance of a recipe: its sentences spoken, with pauses around them.

    Raises:
        ValueError, InputError: as `speak`.
    """
    parts: list[np.ndarray] = []
    phonemes: list[Phoneme] = []
    samples = 0

    def pause(seconds: float) -> None:
        nonlocal samples
        count = round(seconds * SAMPLE_RATE)
        if not count:
            return
        start, samples = samples, samples + count
        parts.append(np.zeros(count, np.float32))
        phonemes.append(Phoneme(PAUSE, start / SAMPLE_RATE, samples / SAMPLE_RATE))

    pause(recipe.pauses[0])
    for sentence, after in zip(recipe.sentences, recipe.pauses[1:], strict=True):
        said = speak(
            sentence,
            voice=recipe.voice,
            variant=recipe.variant,
            rate=recipe.rate,
            pitch=recipe.pitch,
        )
        start = samples / SAMPLE_RATE
        phonemes += [Phoneme(p.name, start + p.start, start + p.end) for p in said.phonemes]
        parts.append(said.pcm * np.float32(recipe.gain / PEAK))
        samples += len(said.pcm)
        pause(after)
    pcm = np.concatenate(parts)
    if recipe.noise:
        random = np.random.default_rng(recipe.seed)
        pcm = pcm + np.float32(recipe.noise) * random.standard_normal(len(pcm), np.float32)
    return Utterance(np.clip(pcm, -1, 1), phonemes)
