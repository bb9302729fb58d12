"""Videos with broken packets: a warning names the damaged frames once, and the others are exact."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from engine import InputError
from engine.avatar.frames import FrameCache, VideoFile
from engine.media.video import Video
from tests.engine.videos import change_packet, encode, packets_of, plain_decode

COUNT = 40
OPTIONS = {"g": "10", "bf": "2", "qp": "24", "threads": "1", "x264-params": "b-adapt=0"}


def textured() -> np.ndarray:
    """Return frames whose packets are large: noise that moves irregularly."""
    noise = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    shifts = np.random.default_rng(2).integers(0, 40, (COUNT, 2))
    frames = [np.roll(noise, tuple(shift), (0, 1))[:36, :48] for shift in shifts]
    return np.stack([np.kron(frame, np.ones((4, 4, 1), np.uint8)) for frame in frames])


def ending_in_zeros(data: bytearray) -> bytes:
    """Replace the end of a packet with zeros, as a lost sector does. Every H.264 decoder detects
    that, but other bytes may be valid."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def emptied(data: bytearray) -> bytes:
    return bytes(len(data))


def read_all(path: Path, numbers: list[int]) -> tuple[dict[int, np.ndarray], list[str]]:
    """Return the frames that can be read, and all warnings and errors."""
    frames = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = VideoFile(path)
        cache = FrameCache(source, 1)
        for number in numbers:
            out = np.empty((1, source.height, source.width, 3), np.uint8)
            try:
                cache.read([number], out)
            except InputError as error:
                assert str(error) == f"{path}: frame {number} cannot be decoded; it is damaged"
                continue
            frames[number] = out[0]
    return frames, [str(warning.message) for warning in caught]


def named(message: str) -> set[int]:
    numbers: set[int] = set()
    for part in message.partition("broken ones: ")[2].partition(" (")[0].split(", "):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("packet", [1, 7, 15, 22, 39])
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_damaged_frames_are_named_and_the_others_are_right(tmp_path, name, packet, order):
    path = encode(tmp_path / name, textured(), options=OPTIONS)
    sound = plain_decode(path)
    change_packet(path, packet, ending_in_zeros)
    numbers = range(COUNT) if order == "forward" else range(COUNT - 1, -1, -1)
    frames, said = read_all(path, [*numbers])
    assert len(Video(path)) == COUNT
    other = {number for number in frames if not np.array_equal(frames[number], sound[number])}
    assert other | (set(range(COUNT)) - frames.keys())  # the damage shows
    (message,) = said  # once
    assert message.startswith(f"{path} is damaged; frames that are broken, or predicted from")
    assert other <= named(message)
    # at least one frame of the group, at most the whole group
    assert len(named(message)) <= 12 and message.endswith(f"({len(named(message))} of {COUNT})")


@pytest.mark.parametrize("packet", [25, 37, 38, 39])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_frame_that_is_lost_does_not_shift_the_others(tmp_path, name, packet):
    path = encode(tmp_path / name, textured(), options=OPTIONS)
    sound, packets = plain_decode(path), list(packets_of(path))
    lost = sorted(packet.pts for packet in packets).index(packets[packet].pts)
    change_packet(path, packet, emptied)
    frames, (message,) = read_all(path, [*range(COUNT)])
    assert set(range(COUNT)) - frames.keys() == {lost}
    other = {number for number in frames if not np.array_equal(frames[number], sound[number])}
    assert other | {lost} <= named(message) and len(named(message)) <= 10


def test_a_packet_that_is_cut_short(tmp_path):
    """The container marks it as damaged, although the decoder decodes the rest without an error."""
    path = encode(
        tmp_path / "a.mp4",
        textured(),
        "mjpeg",
        pix_fmt="yuvj420p",
        movflags="frag_keyframe+empty_moov",
    )
    last, data = bytes(list(packets_of(path))[-1]), path.read_bytes()
    path.write_bytes(data[: data.index(last) + len(last) - 200])
    frames, (message,) = read_all(path, [*range(COUNT)])
    assert len(Video(path)) == len(frames) == COUNT
    assert named(message) == {COUNT - 1}


def test_a_transport_stream_that_lost_bytes(tmp_path):
    path = encode(tmp_path / "a.ts", textured(), options=OPTIONS)
    sound = plain_decode(path)
    data = bytearray(path.read_bytes())
    at = next(n for n in range(188 * 600, len(data), 188) if not data[n + 1] & 0x40)  # no start
    del data[at : at + 188 * 3]
    path.write_bytes(data)
    frames, (message,) = read_all(path, [*range(COUNT)])
    other = {n for n in range(COUNT) if n not in frames or not np.array_equal(frames[n], sound[n])}
    assert other and other <= named(message)


@pytest.mark.parametrize("codec", ["mpeg4", "mpeg2video", "prores_ks"])
def test_other_codecs(tmp_path, codec):
    options = {"g": "10", "b": "3M"} if codec != "prores_ks" else {}
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    path = encode(tmp_path / "a.mov", textured(), codec, options=options, pix_fmt=pix_fmt)
    sound = plain_decode(path)
    change_packet(path, 14, ending_in_zeros)
    frames, (message,) = read_all(path, [*range(COUNT)])
    other = {n for n in range(COUNT) if n not in frames or not np.array_equal(frames[n], sound[n])}
    assert 14 in other and other <= named(message)
    assert len(named(message)) <= (1 if codec == "prores_ks" else 12)


def test_a_first_keyframe_that_is_broken(tmp_path):
    """Nothing can be decoded before the next keyframe. Frame 0 is there, and a warning says so."""
    path = encode(tmp_path / "a.mp4", textured(), options=OPTIONS)
    sound = plain_decode(path)
    second = Video(path).keyframes[1]
    change_packet(path, 0, emptied)
    frames, (message,) = read_all(path, [*range(COUNT - second)])
    assert f"{path} begins with {second} frames that cannot be decoded" in message
    assert all(np.array_equal(frames[n], sound[n + second]) for n in range(COUNT - second))


def test_first_frames_that_are_lost(tmp_path):
    """The container lists them."""
    path = encode(tmp_path / "a.webm", textured(), "libvpx-vp9", options={"g": "10", "crf": "30"})
    sound = plain_decode(path)
    end = Video(path).keyframes[1]
    change_packet(path, 0, emptied)
    frames, (message,) = read_all(path, [*range(COUNT)])
    assert sorted(frames) == [*range(end, COUNT)] and named(message) == {*range(end)}
    assert all(np.array_equal(frames[n], sound[n]) for n in frames)
    assert read_all(path, [end + 3])[1] == []  # what is damaged is not needed
    assert read_all(path, [1]) == ({}, [message])


def test_no_warning_for_undamaged_or_unread_parts(tmp_path):
    path = encode(tmp_path / "a.mp4", textured(), options=OPTIONS)
    assert read_all(path, [*range(COUNT)])[1] == []
    change_packet(path, 35, ending_in_zeros)
    assert read_all(path, [*range(20)])[1] == []
    assert len(read_all(path, [*range(COUNT), *range(COUNT)])[1]) == 1
