"""espeak-ng through its C library: text in, speech and the times of its phonemes out."""

import _ctypes
import ctypes
import threading
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from engine.errors import InputError

SAMPLE_RATE = 16000
PEAK = 0.8  # espeak-ng leaves its level to the voice
PAUSE = "_"
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT
_PHONEME_EVENTS = 1  # espeakINITIALIZE_PHONEME_EVENTS: names as espeak writes them, 4 letters
_DONT_EXIT = 0x8000  # a missing data folder is an error of ours, not the end of the process
_END, _PHONEME = 0, 7  # espeak_EVENT_TYPE
_UTF8 = 1
_SEED = 1
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_FILES = {"en-gb": "gmw/en"}  # the one English voice that has another name than its language
_CLOSURE = 0.06  # s; the longest silence that belongs to the sound after it
_MERGED = 0.08  # s; what a sound without time of its own takes, at most, of the one before
_SHORTEST = 0.01  # s; anything shorter has no time of its own
_SILENCE = 0.004  # of the loudest sample
_ECHO = 0.12  # of the loudest sample of the sound before
_MUTE = {"p", "t", "k", "tS"}
_MARKS = "'\",%="
_LOCK = threading.Lock()  # the library keeps its state in globals


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Phoneme:
    """A sound as espeak-ng writes it, stress mark included, or PAUSE; times in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """Speech: `pcm` (S,) float32 in [-1, 1], 16 kHz; `phonemes` cover it without gaps."""

    pcm: np.ndarray
    phonemes: list[Phoneme]


def _library() -> tuple[str, str | None]:
    """Paths of the library and its data; None where the library knows the latter itself."""
    try:
        import espeakng_loader
    except ImportError:
        return "libespeak-ng.so.1", None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def _synthesise(text: str, voice: str, rate: int, pitch: int):
    """(sample rate, int16 samples, [(phoneme, its first sample)]) as the library gives them."""
    path, data = _library()
    # Random numbers, flutter and echo go on from one utterance to the next, through
    # espeak_Terminate too. Only a library that has just been loaded always says the same.
    try:
        library = ctypes.CDLL(path)
    except OSError:
        raise InputError("needs espeak-ng: pip install espeakng-loader") from None
    try:
        return _run(library, data, text, voice, rate, pitch)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _run(library: ctypes.CDLL, data: str | None, text: str, voice: str, rate: int, pitch: int):
    options = _PHONEME_EVENTS | _DONT_EXIT
    sample_rate = library.espeak_Initialize(
        _SYNCHRONOUS, 0, None if data is None else str(Path(data)).encode(), options
    )
    if sample_rate <= 0:
        raise InputError(f"espeak-ng does not start: no voice data in {data}")
    if hasattr(library, "espeak_ng_SetRandSeed"):  # since 1.52, which starts from the time of day
        library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
    parts, marks = [], []

    @_CALLBACK
    def collect(samples, count, events):
        if samples and count:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _END:
            if events[i].type == _PHONEME:
                marks.append((events[i].id.string.decode(), events[i].sample))
            i += 1
        return 0

    library.espeak_SetSynthCallback(collect)
    if library.espeak_SetVoiceByName(voice.encode()):
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    library.espeak_SetParameter(_RATE, rate, 0)
    library.espeak_SetParameter(_PITCH, pitch, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    samples = np.concatenate(parts) if parts else np.zeros(0, np.int16)
    if not samples.any():
        raise ValueError(f"espeak-ng says nothing for {text!r}")
    return sample_rate, samples, marks


def _phonemes(marks: list[tuple[str, int]], pcm: np.ndarray, rate: int) -> list[Phoneme]:
    """Marks -> phonemes that cover `pcm`.

    A mark is the first sample its sound is heard in, to the sample. What the ear does not hear
    precedes it: the silent closure of a stop (and a short gap before other consonants) lies in the
    time of the sound before. It goes to the sound after, whose articulators are there already.
    Where an /l/ or /r/ is merged into the vowel before it, espeak-ng gives it next to no time: it
    takes the end of that vowel.
    """
    level = np.abs(pcm.astype(np.int32))
    names, starts = [PAUSE], [0]
    for name, sample in marks:
        name = PAUSE if name.startswith("_") or not name else name
        start = min(max(sample, starts[-1]), len(pcm))
        if name == PAUSE == names[-1]:
            continue
        if name != PAUSE:
            kept = 0 if names[-1] == PAUSE else (start - starts[-1]) // 2
            since = max(starts[-1] + kept, start - int(_CLOSURE * rate))
            # Some voices echo: what is soft beside the sound before it is no sound.
            sound = level[starts[-1] : start].max(initial=0)
            silence = max(_SILENCE * level.max(), _ECHO * sound * (name.strip(_MARKS) in _MUTE))
            heard = np.flatnonzero(level[since:start] > silence)
            start = since + (int(heard[-1]) + 1 if len(heard) else 0)
        if names[-1] == PAUSE and start == starts[-1]:
            names.pop(), starts.pop()
        elif names[-1] != PAUSE and start - starts[-1] < _SHORTEST * rate and len(starts) > 1:
            starts[-1] = start - int(min(_MERGED * rate, (start - starts[-2]) / 3))
        names.append(name)
        starts.append(start)
    ends = [*starts[1:], len(pcm)]
    return [
        Phoneme(name, start / rate, end / rate)
        for name, start, end in zip(names, starts, ends, strict=True)
        if end > start
    ]


def speak(
    text: str,
    *,
    voice: str = "en-us",
    variant: str | None = "f4",
    rate: int = 160,
    pitch: int = 46,
) -> Utterance:
    """Speak `text`; the same arguments give the same samples, in every process.

    Args:
        text: English.
        voice: language of espeak-ng ("en-us", "en-gb", "en-gb-scotland", ...).
        variant: one of its voice variants ("f4", "m3", ...), or None.
        rate: words a minute, 80 to 450.
        pitch: 0 to 99.

    Returns:
        Utterance whose loudest sample is 0.8.

    Raises:
        InputError: there is no espeak-ng.
        ValueError: it knows no such voice or variant, or has nothing to say.
    """
    data = _library()[1]
    # The library takes an unknown variant for none.
    if variant and data is not None and not (Path(data) / "voices" / "!v" / variant).is_file():
        raise ValueError(f"espeak-ng has no variant {variant!r}")
    full = _FILES.get(voice, voice) + (f"+{variant}" if variant else "")
    with _LOCK:
        source_rate, samples, marks = _synthesise(text, full, rate, pitch)
    divisor = gcd(SAMPLE_RATE, source_rate)
    pcm = resample_poly(samples.astype(np.float64), SAMPLE_RATE // divisor, source_rate // divisor)
    phonemes = _phonemes(marks, samples, source_rate)
    last = phonemes[-1]  # resampling rounds the length up
    phonemes[-1] = Phoneme(last.name, last.start, len(pcm) / SAMPLE_RATE)
    return Utterance((pcm * (PEAK / np.abs(pcm).max())).astype(np.float32), phonemes)
