"""Utterances for training and, held out, for evaluation: recipes drawn from a seed."""

from dataclasses import dataclass
from itertools import cycle

import numpy as np

from .espeak import PAUSE, PEAK, SAMPLE_RATE, Phoneme, Utterance, speak
from .texts import HELD_OUT, TRAINING

SEED = 2026
MINUTES = 24.0
HELD_OUT_MINUTES = 1.6
VOICES = ("en-us", "en-us", "en-us", "en-gb", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029")
VARIANTS = (
    *("f1", "f2", "f4", "m1", "m3", "m4", "m5", "m7"),
    *("Andy", "Alicia", "Michael", "adam", "belinda", "linda", "quincy", "steph2", "zac"),
)
HELD_OUT_VARIANTS = ("f3", "f5", "m2", "m6", "m8")
_SILENT = 0.05  # share of utterances without speech
_NOISY = 0.3  # share with background noise
_CUT = 0.25  # share that starts without a pause, and share that ends without one
_LETTERS_PER_WORD = 6.1  # with the space; `_seconds` slightly underestimates


@dataclass(frozen=True)
class Recipe:
    """One utterance. Without sentences it is `pauses[0]` seconds of silence."""

    sentences: tuple[str, ...]
    pauses: tuple[float, ...]  # seconds; pauses[i] precedes sentence i, the last one ends it
    voice: str = "en-us"
    variant: str | None = "f4"
    rate: int = 160  # words per minute
    pitch: int = 46
    gain: float = PEAK  # absolute value of the loudest sample of the speech
    noise: float = 0.0  # standard deviation of the background noise
    seed: int = 0  # of the noise


def _seconds(recipe: Recipe) -> float:
    """Estimate the length of the utterance without synthesizing it."""
    words = sum(map(len, recipe.sentences)) / _LETTERS_PER_WORD
    return words * 60 / recipe.rate + sum(recipe.pauses)


def _pause(random: np.random.Generator) -> float:
    """Draw a pause of 0.3 to 2.5 s in whole milliseconds, short ones more often."""
    return round(0.3 + 2.2 * random.random() ** 6, 3)


def _recipe(
    random: np.random.Generator, sentences: tuple[str, ...], variants: tuple[str, ...]
) -> Recipe:
    gain = round(random.uniform(0.3, 1.0), 3)
    noise = 0.0
    if random.random() < _NOISY:
        # 30 to 50 dB below speech, whose standard deviation is about 1/7 of its peak.
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


def corpus(seed: int = SEED, minutes: float | None = None, held_out: bool = False) -> list[Recipe]:
    """Draw the recipes of a corpus. A seed always gives the same ones.

    Every text is used once before any is used again. The two corpora share no text and no voice
    variant.

    Args:
        seed: seed of all random choices.
        minutes: minimum length; by default 24 for training and 1.6 held out.
        held_out: draw the corpus for evaluation instead of the one for training.
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
    """Speak the sentences of a recipe, with its pauses and noise.

    Raises:
        ValueError, InputError: see `speak`.
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
