"""An mp4 that is whole at any time: after each fragment it can be played, in time with its sound."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.live.timing import frame_start
from engine.media.encode import H264Encoder
from engine.media.fragmented_mp4 import FragmentedMp4

FLASHES = (7, 30, 55, 81)  # frames


def film(count: int, *, fps: Fraction, rate: int, channels: int, skipped=(), size=(96, 80)):
    """Make a film that is dark and silent but for flashes with beeps; yield its parts."""
    encoder = H264Encoder(*size, fps)
    mp4 = FragmentedMp4(*size, fps, rate=rate, channels=channels)
    for number in range(count):
        level = 255 if number in FLASHES else 0
        encoded = None
        if number not in skipped:
            encoded = encoder.encode(np.full((*size, 3), level, np.uint8))
        start, stop = (frame_start(number + n, rate, fps) for n in (0, 1))
        sound = np.full((channels, stop - start), bool(level), np.float32)
        sound *= 0.5 * np.sin(np.arange(start, stop) * 2 * np.pi * 1000 / rate)
        picture, keyframe = (encoded.data, encoded.keyframe) if encoded else (b"", False)
        yield mp4.write(number, picture, keyframe=keyframe, sound=sound)
    yield mp4.finish()


def played(data: bytes) -> tuple[list[float], list[float], np.ndarray, int]:
    """Return the times and the brightness of the pictures, and the sound with its rate."""
    with av.open(io.BytesIO(data)) as file:
        frames = list(file.decode(video=0))
    with av.open(io.BytesIO(data)) as file:
        blocks = list(file.decode(audio=0))
        rate = blocks[0].sample_rate
        assert blocks[0].pts == 0
    sound = np.concatenate([block.to_ndarray() for block in blocks], axis=1)
    light = [frame.to_ndarray(format="gray").mean() for frame in frames]
    return [frame.time for frame in frames], light, sound, rate


@pytest.mark.parametrize(
    ("fps", "rate", "channels", "size"),
    [
        (Fraction(25), 48000, 1, (96, 80)),
        (Fraction(25), 24000, 2, (97, 81)),
        (Fraction(30000, 1001), 44100, 1, (96, 80)),
        (Fraction(25), 20000, 1, (96, 80)),  # which AAC does not have
    ],
)
def test_picture_and_sound_are_in_time(fps, rate, channels, size):
    parts = list(film(100, fps=fps, rate=rate, channels=channels, size=size))
    times, light, sound, played_rate = played(b"".join(parts))
    assert len(times) == 100
    assert np.abs(np.array(times) - [number / float(fps) for number in range(100)]).max() < 1e-3
    assert abs(sound.shape[1] / played_rate - 100 / float(fps)) < 0.06
    for number in FLASHES:
        assert [light[n] > 128 for n in (number - 1, number, number + 1)] == [False, True, False]
        around = slice(*(int((number + n) / float(fps) * played_rate) for n in (-5, 6)))
        loud = np.flatnonzero(np.abs(sound[0, around]) > 0.2) + around.start
        begin, end = loud[0] / played_rate, loud[-1] / played_rate
        assert abs(begin - number / fps) < 0.005 and abs(end - (number + 1) / fps) < 0.005


def test_each_part_ends_a_film_that_can_be_played():
    """Whatever follows does not have to come: no part has half a box."""
    data, seen = b"", 0
    for part in film(90, fps=Fraction(25), rate=48000, channels=1):
        data += part
        if not part:
            continue
        times, light, sound, rate = played(data)
        seen += 1
        assert len(times) in (25, 50, 75, 90) and len(light) == len(times)
        assert abs(sound.shape[1] / rate - len(times) / 25) < 0.06
        assert [n for n, value in enumerate(light) if value > 128] == [
            n for n in FLASHES if n < len(times)
        ]
    assert seen == 4


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.sets(st.integers(1, 24)))
def test_skipped_pictures_leave_the_others_in_time(skipped):
    parts = list(film(30, fps=Fraction(25), rate=16000, channels=1, skipped=skipped))
    times, _, sound, rate = played(b"".join(parts))
    expected = [number / 25 for number in range(30) if number not in skipped]
    assert np.allclose(times, expected, atol=1e-3)
    assert abs(sound.shape[1] / rate - 30 / 25) < 0.1


def test_packets_are_as_they_were():
    """No picture is encoded again."""
    encoder = H264Encoder(96, 80, Fraction(25))
    mp4 = FragmentedMp4(96, 80, Fraction(25), rate=48000, channels=1)
    random = np.random.default_rng(1)
    pictures, data = [], b""
    for number in range(30):
        made = encoder.encode(random.integers(0, 256, (96, 80, 3), np.uint8))
        pictures.append(made.data)
        sound = np.zeros((1, 1920), np.float32)
        data += mp4.write(number, made.data, keyframe=made.keyframe, sound=sound)
    data += mp4.finish()
    decoder = av.CodecContext.create("h264", "r")
    direct = [f for p in pictures for f in decoder.decode(av.Packet(p))] + decoder.decode(None)
    with av.open(io.BytesIO(data)) as file:
        for frame, other in zip(file.decode(video=0), direct, strict=True):
            assert np.array_equal(frame.to_ndarray(), other.to_ndarray())
