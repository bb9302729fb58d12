"""espeak-ng through its C library: text in, speech and timed phonemes out."""

import _ctypes
import ctypes
import threading
import wave
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import resample_poly

from engine.errors import InputError

SAMPLE_RATE = 16000
PEAK = 0.8  # loudest sample; the level of espeak-ng depends on the voice
PAUSE = "_"
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT
_PHONEME_EVENTS = 1  # espeakINITIALIZE_PHONEME_EVENTS: espeak-ng's mnemonics, up to 4 letters
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report a missing data folder
_END, _PHONEME = 0, 7  # espeak_EVENT_TYPE
_UTF8 = 1
_SEED = 1
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_FILES = {"en-gb": "gmw/en"}  # the only English voice whose file is not named after its language
_CLOSURE = 0.06  # s; the longest silence that is counted as the start of the next sound
_MERGED = 0.08  # s; the most that a merged sound takes from the sound before it
_SHORTEST = 0.01  # s; a shorter sound counts as merged with the one before it
_SILENCE = 0.004  # silence is quieter than this fraction of the loudest sample,
_ECHO = 0.12  # or before p, t, k than this fraction of the previous sound's loudest
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
    """A sound, or a pause."""

    name: str  # espeak-ng's mnemonic with its stress mark, or PAUSE
    start: float  # seconds
    end: float


@dataclass(frozen=True)
class Utterance:
    """Speech and its phonemes."""

    pcm: np.ndarray  # (S,) float32 in [-1, 1], 16 kHz
    phonemes: list[Phoneme]  # in order, without gaps


def write_wav(path: Path, utterance: Utterance) -> None:
    """Write the speech as a 16 kHz mono 16-bit WAV file."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        out.writeframes(np.round(utterance.pcm * 32767).astype("<i2").tobytes())


def _library() -> tuple[str, str | None]:
    """Return the paths of the library and of its data (None: the library's default)."""
    try:
        import espeakng_loader
    except ImportError:
        return "libespeak-ng.so.1", None
    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


# Sample rate, int16 samples, phonemes with the indices of their first samples.
_Spoken = tuple[int, np.ndarray, list[tuple[str, int]]]


def _synthesise(text: str, voice: str, rate: int, pitch: int) -> _Spoken:
    path, data = _library()
    # The library is loaded anew for each utterance, because the state of its random numbers,
    # flutter and echo survives espeak_Terminate and would change the samples.
    try:
        library = ctypes.CDLL(path)
    except OSError:
        raise InputError(
            f"espeak-ng is not installed: {path} cannot be loaded; pip install espeakng-loader"
        ) from None
    try:
        return _run(library, data, text, voice, rate, pitch)
    finally:
        library.espeak_Terminate()
        _ctypes.dlclose(library._handle)


def _run(
    library: ctypes.CDLL, data: str | None, text: str, voice: str, rate: int, pitch: int
) -> _Spoken:
    options = _PHONEME_EVENTS | _DONT_EXIT
    sample_rate = library.espeak_Initialize(
        _SYNCHRONOUS, 0, None if data is None else str(Path(data)).encode(), options
    )
    if sample_rate <= 0:
        raise InputError(
            f"espeak-ng finds no voice data in {data}; reinstall it: pip install espeakng-loader"
        )
    if hasattr(library, "espeak_ng_SetRandSeed"):  # 1.52 and newer, which seed by the time of day
        library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
    parts: list[np.ndarray] = []
    marks: list[tuple[str, int]] = []

    @_CALLBACK  # type: ignore[untyped-decorator]  # a type of ctypes
    def collect(samples: Any, count: int, events: Any) -> int:
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
        raise ValueError(f"espeak-ng is silent for the text {text!r}")
    return sample_rate, samples, marks


def _phonemes(marks: list[tuple[str, int]], pcm: np.ndarray, rate: int) -> list[Phoneme]:
    """Convert espeak-ng's marks to phonemes that cover `pcm` without gaps.

    A mark is the first audible sample of its sound. The silence before it (the closure of a stop,
    or a short gap before another consonant) is moved to this sound, because the articulators are
    already in its position. An /l/ or /r/ that espeak-ng merges into the vowel before it has almost
    no length; it takes over the end of that vowel.
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
            # Some voices echo: ignore samples that are quiet compared to the previous sound.
            sound = level[starts[-1] : start].max(initial=0)
            silence = max(_SILENCE * level.max(), _ECHO * sound * (name.strip(_MARKS) in _MUTE))
            audible = np.flatnonzero(level[since:start] > silence)
            start = since + (int(audible[-1]) + 1 if len(audible) else 0)
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
    """Speak `text`. The same arguments give the same samples in every process.

    Args:
        text: English text.
        voice: a language of espeak-ng ("en-us", "en-gb", "en-gb-scotland", ...).
        variant: a voice variant of espeak-ng ("f4", "m3", ...), or None.
        rate: words per minute, 80 to 450.
        pitch: 0 to 99.

    Returns:
        The utterance; its loudest sample is 0.8.

    Raises:
        InputError: espeak-ng is not installed.
        ValueError: espeak-ng has no such voice or variant, or the text gives no sound.
    """
    data = _library()[1]
    # espeak-ng itself silently ignores an unknown variant.
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
