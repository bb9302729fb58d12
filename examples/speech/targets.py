"""Mouth shapes of the English phonemes of espeak-ng.

Shapes and strengths are in the order of `examples.person.Mouth`: openness, width, rounding, teeth,
tongue. Phonemes that speechreaders confuse share a shape (C. G. Fisher, "Confusions among visually
perceived consonants", 1968). Phonemes are named by the mnemonics of espeak-ng's tables en, en-us,
en-us-nyc, en-rp, en-sc, en-n, en-wm, en-wi and the tables that they include.
"""

from functools import cache

Fields = tuple[float, float, float, float, float]
Part = tuple[Fields, Fields]  # shape, strengths

# Strengths of vowels: lower for teeth and tongue, which adjacent consonants determine.
_VOWEL: Fields = (1.0, 1.0, 1.0, 0.7, 0.6)
_WEAK = 0.75  # factor on the openness, and on its strength, of an unstressed vowel
_VOWEL_SHAPES: dict[str, Fields] = {
    "ah": (0.64, 0.15, 0.00, 0.10, 0.00),  # father
    "a": (0.58, 0.35, 0.00, 0.20, 0.00),  # cat
    "uh": (0.46, 0.20, 0.00, 0.10, 0.00),  # cut
    "e": (0.42, 0.45, 0.00, 0.20, 0.00),  # bet
    "er": (0.29, 0.00, 0.35, 0.15, 0.10),  # bird
    "schwa": (0.30, 0.20, 0.05, 0.10, 0.00),  # about
    "i": (0.27, 0.55, 0.00, 0.25, 0.00),  # bit
    "ee": (0.19, 0.90, 0.00, 0.30, 0.00),  # beat
    "o'": (0.56, 0.00, 0.18, 0.00, 0.00),  # pot, round in Britain only
    "aw": (0.48, -0.10, 0.50, 0.00, 0.00),  # thought
    "o": (0.35, -0.20, 0.78, 0.00, 0.00),  # boat
    "u": (0.25, -0.15, 0.70, 0.00, 0.00),  # book
    "oo": (0.15, -0.20, 1.00, 0.00, 0.00),  # boot
}
# The shapes that a vowel passes through, each for the same time.
_VOWELS: dict[str, str] = {
    **dict.fromkeys(("A:", "A", "A#", "aa", "A~", "Q"), "ah"),
    **dict.fromkeys(("a", "a/", "&"), "a"),
    **dict.fromkeys(("V", "a2", "a#", "a#2", "0#"), "uh"),
    **dict.fromkeys(("E", "E#", "E2", "e", "e:", "e#"), "e"),
    **dict.fromkeys(("3", "3:", "R"), "er"),
    **dict.fromkeys(("@", "@2", "@5", "@#", "#@", "@-"), "schwa"),
    **dict.fromkeys(("I", "I2", "I#", "I2#"), "i"),
    **dict.fromkeys(("i", "i:", "#i"), "ee"),
    **dict.fromkeys(("0", "02"), "o'"),
    **dict.fromkeys(("O", "O2", "O:", "o:", "O~"), "aw"),
    "o": "o",
    **dict.fromkeys(("U", "U#"), "u"),
    **dict.fromkeys(("u", "u:", "#u"), "oo"),
    "A@": "ah ah er",
    "VR": "uh er",
    "IR": "i er",
    "e@": "e e schwa",
    "i@": "i schwa",
    "i@3": "i er",
    "U@": "u schwa",
    "O@": "aw aw er",
    "o@": "aw aw er",
    "OI": "aw aw i",
    "aI": "ah ah i",
    "aI2": "uh i",
    "aI@": "ah i schwa",
    "aI3": "ah i er",
    "aU": "ah ah u",
    "aU@": "ah u schwa",
    "eI": "e e ee",
    "oU": "o o oo",
    "oU#": "o oo",
}
# Consonants are strong in the fields that define them and weak in the others.
_CONSONANT_SHAPES: dict[str, Part] = {
    "p": ((0.00, 0.15, 0.05, 0.00, 0.00), (0.7, 0.3, 0.25, 0.7, 0.6)),
    "f": ((0.03, 0.20, 0.00, 0.60, 0.00), (1.6, 0.5, 0.35, 2.2, 0.8)),
    "th": ((0.16, 0.25, 0.00, 0.35, 0.90), (0.9, 0.4, 0.20, 0.8, 2.8)),
    "s": ((0.06, 0.45, 0.00, 0.75, 0.05), (1.4, 0.6, 0.30, 2.4, 0.8)),
    "sh": ((0.12, -0.10, 0.60, 0.65, 0.05), (1.2, 0.6, 1.00, 2.0, 0.8)),
    "t": ((0.13, 0.30, 0.00, 0.35, 0.45), (0.8, 0.25, 0.08, 0.7, 1.3)),
    "l": ((0.24, 0.20, 0.00, 0.15, 0.80), (0.6, 0.3, 0.15, 0.5, 2.2)),
    "r": ((0.17, -0.10, 0.50, 0.20, 0.10), (0.8, 0.6, 0.80, 0.4, 0.6)),
    "w": ((0.08, -0.25, 1.00, 0.00, 0.00), (1.3, 1.0, 1.80, 0.8, 0.6)),
    "y": ((0.15, 0.70, 0.00, 0.30, 0.10), (0.7, 0.7, 0.50, 0.6, 0.4)),
    "k": ((0.20, 0.20, 0.00, 0.15, 0.00), (0.4, 0.15, 0.05, 0.4, 0.6)),
    "h": ((0.30, 0.20, 0.00, 0.10, 0.00), (0.1, 0.05, 0.03, 0.1, 0.3)),
    "pause": ((0.04, 0.30, 0.00, 0.00, 0.00), (0.4, 0.2, 0.20, 0.3, 0.3)),
}
_CONSONANTS: dict[str, str] = {
    **dict.fromkeys(("p", "p-", "ph", "b", "m", "m-"), "p"),
    **dict.fromkeys(("f", "v", "v#", "v##"), "f"),
    **dict.fromkeys(("T", "D"), "th"),
    **dict.fromkeys(("s", "s2", "z", "z#", "z/2", "ts", "dz"), "s"),
    **dict.fromkeys(("S", "Z", "tS", "dZ"), "sh"),
    **dict.fromkeys(("t", "t-", "t2", "t#", "t[", "d", "d#", "d[", "n", "n-", "*"), "t"),
    **dict.fromkeys(("l", "l-", "l/", "l/2", "l/3", "L"), "l"),
    **dict.fromkeys(("r", "r-", "r/", "**"), "r"),
    **dict.fromkeys(("w", "w#", "w2"), "w"),
    **dict.fromkeys(("j", ";", "C"), "y"),
    **dict.fromkeys(("k", "k-", "k#", "kh", "c", "c2", "g", "N", "N-", "x", "X", "Q^"), "k"),
    **dict.fromkeys(("h", "?", "?-"), "h"),
    "_": "pause",
}
# Fraction of the sound, from its start, during which the lips are closed.
CLOSED = {**dict.fromkeys(("p", "p-", "ph", "b"), 0.6), "m": 0.85, "m-": 0.85}
_STRESS = "'\","  # espeak-ng's marks of stressed vowels; "%" and "=" mark unstressed ones


def bare(name: str) -> str:
    """Return the phoneme without its stress marks."""
    return name.lstrip("'\",%=")


@cache
def target(name: str) -> tuple[Part, ...]:
    """Return the shapes that a phoneme passes through, each for the same time.

    Raises:
        ValueError: the phoneme has no mouth shape.
    """
    sound = bare(name)
    if sound == "@L":
        return (*target("@"), *target("l"))
    if sound in _CONSONANTS:
        return (_CONSONANT_SHAPES[_CONSONANTS[sound]],)
    if sound not in _VOWELS:
        raise ValueError(f"no mouth shape for the phoneme {name!r}")
    shapes = [_VOWEL_SHAPES[vowel] for vowel in _VOWELS[sound].split()]
    if name[0] in _STRESS:
        return tuple((shape, _VOWEL) for shape in shapes)
    return tuple(((_WEAK * shape[0], *shape[1:]), (_WEAK, *_VOWEL[1:])) for shape in shapes)
