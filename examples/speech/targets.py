"""What the mouth does for each English phoneme of espeak-ng.

Shapes and strengths are in the order of `examples.person.Mouth`: openness, width, rounding, teeth,
tongue. They follow the viseme classes that speechreaders tell apart (C. G. Fisher, "Confusions
among visually perceived consonants", 1968): what looks alike has one shape. Phonemes are the
mnemonics of espeak-ng: its tables en, en-us, en-us-nyc, en-rp, en-sc, en-n, en-wm, en-wi and what
they include.
"""

from functools import cache

Fields = tuple[float, float, float, float, float]
Part = tuple[Fields, Fields]  # shape, strengths

# Vowels pull on everything; teeth and tongue have to give way to the consonants around.
_VOWEL: Fields = (1.0, 1.0, 1.0, 0.7, 0.6)
_WEAK = 0.75  # of the openness without stress, of the strength as well
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
# What a vowel is made of, in even parts of its time.
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
# Consonants pull on what makes them and leave the rest to the vowels around.
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
# Share of the sound, from its start, for which the lips are pressed together: then they burst open.
CLOSED = {**dict.fromkeys(("p", "p-", "ph", "b"), 0.6), "m": 0.85, "m-": 0.85}
_STRESS = "'\","  # marks of espeak-ng; others ("%", "=") say that there is none


def bare(name: str) -> str:
    """The phoneme without marks of stress."""
    return name.lstrip("'\",%=")


@cache
def target(name: str) -> tuple[Part, ...]:
    """Shapes that the phoneme `name` goes through, in even parts of its time.

    Raises:
        ValueError: nobody knows what the mouth does for `name`.
    """
    sound = bare(name)
    if sound == "@L":
        return (*target("@"), *target("l"))
    if sound in _CONSONANTS:
        return (_CONSONANT_SHAPES[_CONSONANTS[sound]],)
    if sound not in _VOWELS:
        raise ValueError(f"no mouth shape for the phoneme {name!r}")
    strong = name[0] in _STRESS
    parts = []
    for vowel in _VOWELS[sound].split():
        openness, *others = _VOWEL_SHAPES[vowel]
        strengths = _VOWEL if strong else (_WEAK, *_VOWEL[1:])
        parts.append(((openness * (1 if strong else _WEAK), *others), strengths))
    return tuple(parts)
