"""Speech whose mouth shapes are known: espeak-ng speaks, and its phonemes move the mouth."""

from .corpus import Recipe, corpus, make
from .espeak import PAUSE, Phoneme, Utterance, speak
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
]
