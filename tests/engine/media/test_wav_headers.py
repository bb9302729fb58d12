"""Headers of wav files that are odd, as streams and large files have them, or wrong."""

import struct
from pathlib import Path

import numpy as np
import pytest

from engine import InputError
from engine.media.speech import audio_blocks, read_speech

RATE = 16000
SAMPLES = np.random.default_rng(0).integers(-9999, 9999, RATE, np.int16)
DATA = SAMPLES.tobytes()
FMT = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
# WAVE_FORMAT_EXTENSIBLE: 22 more bytes, with the valid bits, the speakers and the GUID of PCM
PCM, FLOAT = 1, 3
GUID = b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"


def extensible(kind: int = PCM, bits: int = 16, valid: int | None = None) -> bytes:
    size = bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE, 1, RATE, size * RATE, size, bits)
    form += (
        struct.pack("<HHI", 22, bits if valid is None else valid, 4)
        + struct.pack("<H", kind)
        + GUID
    )
    return b"fmt " + struct.pack("<I", len(form)) + form


UNKNOWN = 0xFFFFFFFF  # what a program writes that cannot return to the header, as in a pipe


def chunk(name: bytes, size: int, data: bytes = DATA) -> bytes:
    return name + struct.pack("<I", size) + data


def wav(*chunks: bytes, name: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return name + struct.pack("<I", len(body) if size is None else size) + body


def ds64(data: int) -> bytes:
    """Return the chunk with the sizes of a file of 4 GB and more (EBU Tech 3306)."""
    return b"ds64" + struct.pack("<IQQQI", 28, data + 72, data, data // 2, 0)


SIZE = len(DATA)
WHOLE = {
    "right": wav(FMT, chunk(b"data", SIZE)),
    "a stream": wav(FMT, chunk(b"data", UNKNOWN), size=UNKNOWN),
    "a stream of ffmpeg": wav(
        FMT, b"LIST" + struct.pack("<I", 4) + b"INFO", chunk(b"data", UNKNOWN), size=UNKNOWN
    ),
    "no sizes": wav(FMT, chunk(b"data", 0), size=0),
    "a wrong size of the file": wav(FMT, chunk(b"data", SIZE), size=7),
    "cut at its end": wav(FMT, chunk(b"data", 3 * SIZE)),
    "cut, of 4 GB": wav(FMT, chunk(b"data", 0xFFFFFFFE)),
    "RF64": wav(ds64(SIZE), FMT, chunk(b"data", UNKNOWN), name=b"RF64", size=UNKNOWN),
    "BW64": wav(ds64(SIZE), FMT, chunk(b"data", UNKNOWN), name=b"BW64", size=UNKNOWN),
    "RF64, cut": wav(ds64(1 << 40), FMT, chunk(b"data", UNKNOWN), name=b"RF64", size=UNKNOWN),
    "the format behind the data": wav(chunk(b"data", SIZE), FMT),
    "extensible": wav(extensible(), chunk(b"data", SIZE)),
    "extensible, of unknown length": wav(extensible(), chunk(b"data", UNKNOWN), size=UNKNOWN),
    "extensible, of 4 bytes": wav(
        extensible(bits=32), chunk(b"data", 2 * SIZE, (SAMPLES.astype(np.int32) << 16).tobytes())
    ),
    "extensible, 13 of 16 bits valid": wav(extensible(valid=13), chunk(b"data", SIZE)),
    "extensible, of no valid bits": wav(extensible(valid=0), chunk(b"data", SIZE)),
    "extensible, of floats": wav(
        extensible(FLOAT, 32),
        chunk(b"data", 2 * SIZE, (SAMPLES / np.float32(32768)).astype("<f4").tobytes()),
    ),
    "an odd chunk before the data": wav(
        FMT, b"LIST" + struct.pack("<I", 5) + b"INFO\0" + b"\0", chunk(b"data", SIZE)
    ),
    "an odd chunk behind the data": wav(FMT, chunk(b"data", SIZE), chunk(b"note", 3, b"abc\0")),
    "half a sample more": wav(FMT, chunk(b"data", SIZE + 1, DATA + b"\1")),
}


@pytest.mark.parametrize("case", WHOLE)
def test_all_samples_are_read(tmp_path, case):
    path = tmp_path / "a.wav"
    path.write_bytes(WHOLE[case])
    expected = SAMPLES.astype(np.float32) / 32768
    assert np.array_equal(read_speech(path).numpy(), expected)
    blocks = [samples for samples, _, _ in audio_blocks(path)]
    assert np.array_equal(np.concatenate(blocks, axis=1)[0], expected)


WRONG = {
    "no format": wav(chunk(b"data", SIZE)),
    "RF64 of no size": wav(ds64(0), FMT, chunk(b"data", UNKNOWN), name=b"RF64", size=UNKNOWN),
    "no data": wav(FMT),
    "a chunk of 4 GB before the data": wav(
        FMT, b"junk" + struct.pack("<I", UNKNOWN), chunk(b"data", SIZE)
    ),
    "RF64 without its sizes": wav(FMT, chunk(b"data", UNKNOWN), name=b"RF64", size=UNKNOWN),
    "RF64 of negative sizes": wav(
        ds64((1 << 64) - 100), FMT, chunk(b"data", UNKNOWN), name=b"RF64", size=UNKNOWN
    ),
    "extensible, of no kind": wav(extensible(kind=0xABCD), chunk(b"data", SIZE)),
    "a header alone": wav(FMT, chunk(b"data", SIZE, b"")),
    "a cut header": wav(FMT)[:30],
    "no channels": wav(
        b"fmt " + struct.pack("<IHHIIHH", 16, 1, 0, RATE, 0, 0, 16), chunk(b"data", SIZE)
    ),
    "samples of no bits": wav(
        b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 0, 0, 0), chunk(b"data", SIZE)
    ),
}


@pytest.mark.parametrize("name", [b"RIFF", b"RF64"])
@pytest.mark.parametrize(("bits", "valid"), [(32, 24), (32, 16), (24, 16), (16, 24)])
@pytest.mark.parametrize("before", [b"", b"LIST\5\0\0\0INFO\0\0"], ids=["", "an odd chunk before"])
def test_samples_that_ffmpeg_reads_as_noise(tmp_path, name, bits, valid, before):
    path = tmp_path / "a.wav"
    data = chunk(b"data", SIZE // 6 * 6)
    path.write_bytes(wav(before, extensible(bits=bits, valid=valid), data, name=name))
    with pytest.raises(InputError, match=f"has {valid} valid bits in samples of {bits} bits"):
        read_speech(path)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_headers_are_one_line(tmp_path: Path, case):
    path = tmp_path / "a.wav"
    path.write_bytes(WRONG[case])
    with pytest.raises(InputError, match=r"a\.wav") as caught:
        read_speech(path)
    assert "\n" not in str(caught.value)
