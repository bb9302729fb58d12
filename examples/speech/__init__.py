"""Speech with known mouth shapes: espeak-ng speaks, and its phonemes give the shapes."""

from .corpus import Recipe, corpus, make
from .espeak import PAUSE, Phoneme, Utterance, speak, write_wav
from .visemes import FIELDS, REST, closing, mouths

__all__ = [
    "FIELDS",
    "PAUSE",
    "REST",
    "Phoneme",
    "Recipe",
    "Utterance",
    "closing",
    "corpus",
    "make",
    "mouths",
    "speak",
    "write_wav",
]
