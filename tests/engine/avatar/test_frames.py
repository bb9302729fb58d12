"""Frames on demand: any order, bounded memory, damaged files."""

import random
import warnings
from fractions import Fraction
from threading import Thread

import av
import numpy as np
import pytest

from engine import InputError
from engine.avatar.frames import FrameCache, VideoFile
from engine.loop import frame_numbers
from tests.engine.files import write_video


@pytest.fixture(scope="module")
def numbered() -> np.ndarray:
    """60 frames that differ everywhere."""
    return np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)


def read(cache: FrameCache, numbers: list[int]) -> np.ndarray:
    out = np.empty((len(numbers), 48, 64, 3), np.uint8)
    cache.read(numbers, out)
    return out


ORDERS = {
    "forward": list(range(60)),
    "backward": list(range(59, -1, -1)),
    "pingpong": [n for n, _ in zip(frame_numbers(60), range(250), strict=False)],
    "random": random.Random(0).choices(range(60), k=150),
}


# Groups of pictures: short, as long as the video, with reordered frames, open. Caches: one frame,
# less than a group, everything.
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("frames_kept", [1, 9, 60])
@pytest.mark.parametrize(
    "options", [{"g": "7", "bf": "0"}, {"g": "250"}, {"g": "12", "bf": "3", "x264-params": "open-gop=1"}]
)  # fmt: skip
def test_video_in_any_order(tmp_path, numbered, order, frames_kept, options):
    path = write_video(tmp_path / "v.mp4", numbered, **options)
    source = VideoFile(path)
    frame_bytes = source.size(next(source.decode(0))[1])
    assert frame_bytes >= 48 * 64 * 3
    cache = FrameCache(source, frames_kept * frame_bytes)
    numbers = ORDERS[order]
    for first in range(0, len(numbers), 8):
        some = numbers[first : first + 8]
        assert np.array_equal(read(cache, some), numbered[some])
        assert len(cache._kept) <= frames_kept
        assert cache._bytes == len(cache._kept) * frame_bytes


def test_too_few_keyframes(tmp_path):
    frames = np.zeros((310, 48, 64, 3), np.uint8)
    message = "301 frames from one keyframe to the next, which makes backward playback slow"
    with pytest.warns(UserWarning, match=message) as caught:
        VideoFile(write_video(tmp_path / "few.mp4", frames, g="301"))
    (warning,) = caught
    assert str(warning.message).endswith(": ffmpeg -i IN -c:v libx264 -crf 12 -g 25 -an OUT.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VideoFile(write_video(tmp_path / "enough.mp4", frames, g="300"))


def test_forward_decodes_each_frame_once(tmp_path, numbered, monkeypatch):
    source = VideoFile(write_video(tmp_path / "v.mp4", numbered, g="10"))
    decoded = []
    advance = source._advance
    monkeypatch.setattr(source, "_advance", lambda: decoded.append(None) or advance())
    cache = FrameCache(source, 1)
    for number in range(60):
        read(cache, [number])
    assert len(decoded) == 60


def test_backward_decodes_little_more(tmp_path, numbered, monkeypatch):
    source = VideoFile(write_video(tmp_path / "v.mp4", numbered, g="10"))
    decoded = []
    advance = source._advance
    monkeypatch.setattr(source, "_advance", lambda: decoded.append(None) or advance())
    cache = FrameCache(source, 20 * source.size(next(source.decode(0))[1]))
    decoded.clear()
    for number in range(59, -1, -1):
        read(cache, [number])
    assert len(decoded) <= 70


def test_threads_share_a_cache(tmp_path, numbered):
    cache = FrameCache(VideoFile(write_video(tmp_path / "v.mp4", numbered)), 50000)
    wrong = []

    def play(seed: int) -> None:
        for number in random.Random(seed).choices(range(60), k=60):
            if not np.array_equal(read(cache, [number])[0], numbered[number]):
                wrong.append(number)

    threads = [Thread(target=play, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_video_that_changes_its_size(tmp_path, numbered):
    joined = b""
    for frames in (numbered[:5], numbered[:5, :24, :32]):
        part = write_video(tmp_path / "part.mp4", frames, codec="libx264", bf="0")
        with (
            av.open(str(part)) as source,
            av.open(str(tmp_path / "part.h264"), "w", format="h264") as bare,
        ):
            copy(source, bare)
        joined += (tmp_path / "part.h264").read_bytes()
    (tmp_path / "joined.h264").write_bytes(joined)
    with (
        av.open(str(tmp_path / "joined.h264")) as source,
        av.open(str(tmp_path / "v.mkv"), "w") as joined_video,
    ):
        copy(source, joined_video)
    cache = FrameCache(VideoFile(tmp_path / "v.mkv"))
    with pytest.raises(InputError, match="frame 5 is 32 x 24; expected 64 x 48, as the others"):
        read(cache, list(range(10)))


def copy(source: av.container.InputContainer, target: av.container.OutputContainer) -> None:
    """Copy the packets of a video, at 25 a second."""
    stream = target.add_stream_from_template(source.streams.video[0])
    packets = (packet for packet in source.demux(video=0) if packet.size)
    for number, packet in enumerate(packets):
        packet.stream, packet.time_base = stream, Fraction(1, 25)
        packet.pts = packet.dts = number
        target.mux(packet)


def test_a_damaged_video(tmp_path, numbered):
    path = write_video(tmp_path / "v.mp4", numbered, g="10")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 20000] = bytes(20000)
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read(FrameCache(VideoFile(path)), list(range(60)))
    assert "v.mp4" in str(caught.value) or "cannot be decoded" in str(caught.value)
    assert "\n" not in str(caught.value)
