"""Encoding of live frames: decoded again by FFmpeg and Pillow, in order, with the requested
keyframes."""

import io
import re
from fractions import Fraction
from threading import Event

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from engine.errors import InputError
from engine.media.encode import EncoderPool, H264Encoder, JpegEncoder
from engine.media.h264 import has_nvenc


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Return smooth pictures with a bright spot at different places."""
    y, x = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[..., 0] = 255 * x / width
        frame[..., 1] = 255 * y / height
        frame[..., 2] = 40 + 20 * (number % 8)
    return frames


def decode(packets: list[bytes]) -> list[np.ndarray]:
    codec = av.CodecContext.create("h264", "r")
    frames = [f for data in packets for f in codec.decode(av.Packet(data))]
    return [frame.to_ndarray(format="rgb24") for frame in [*frames, *codec.decode(None)]]


@pytest.mark.parametrize("size", [(64, 96), (63, 95)])
def test_h264(size):
    """Every frame is returned immediately, and decodes to the input."""
    frames = pictures(40, *size)
    encoder = H264Encoder(*size, Fraction(25), crf=12)
    encoded = [encoder.encode(frame, keyframe=number == 7) for number, frame in enumerate(frames)]
    assert [frame.number for frame in encoded] == list(range(40))
    assert [frame.number for frame in encoded if frame.keyframe] == [0, 7, 32]  # each second, asked
    assert all(frame.data.startswith(b"\0\0\0\1") for frame in encoded)
    decoded = decode([frame.data for frame in encoded])
    assert len(decoded) == 40
    for before, after in zip(frames, decoded, strict=True):
        after = after[: size[0], : size[1]].astype(int)
        assert (
            np.abs(after - before).mean() < 3
        )  # an inch off in range or matrix would be 8 and more


@pytest.mark.parametrize("format", ["i420", "nv12"])
def test_planes_are_encoded_as_they_are(format):
    """FFmpeg converts the same frames: the same packets, or nearly the same frames."""
    frames, size = pictures(8, 64, 96), (64, 96)
    of_rgb = H264Encoder(*size, Fraction(25), crf=5, codec="libx264")
    of_planes = H264Encoder(*size, Fraction(25), crf=5, format=format, codec="libx264")
    packets: list[list[bytes]] = [[], []]
    for frame in frames:
        reference = av.VideoFrame.from_ndarray(frame, "rgb24")
        name = "nv12" if format == "nv12" else "yuv420p"
        planes = reference.reformat(format=name, dst_colorspace=Colorspace.ITU709).to_ndarray()
        assert planes.shape == (96, 96)
        packets[0].append(of_rgb.encode(frame).data)
        packets[1].append(of_planes.encode(planes).data)
    if format == "i420":
        assert packets[0] == packets[1]
    for one, two in zip(*map(decode, packets), strict=True):
        assert np.abs(one.astype(int) - two).mean() < 1


@pytest.mark.parametrize(("format", "shape"), [("rgb", (64, 96, 3)), ("i420", (96, 96))])
def test_a_frame_of_another_size_is_an_error(format, shape):
    """It would be scaled, and the picture of a piece without one is empty."""
    encoder = H264Encoder(64, 96, Fraction(25), format=format, codec="libx264")
    for other in [(32, 48, 3), (48, 48), (0, 96, 3)]:
        with pytest.raises(InputError, match=f"shape {re.escape(f'{other}; expected {shape}')}"):
            encoder.encode(np.zeros(other, np.uint8))
    assert encoder.encode(np.zeros(shape, np.uint8)).number == 0


def test_nvenc_only_where_there_is_one(monkeypatch):
    """Told by name it is an error without; otherwise x264 takes its place."""
    encoder = H264Encoder(64, 96, Fraction(25))
    assert encoder.codec == ("h264_nvenc" if has_nvenc() else "libx264")
    if not has_nvenc():
        with pytest.raises(InputError, match="FFmpeg cannot open h264_nvenc for 96 x 64"):
            H264Encoder(64, 96, Fraction(25), codec="h264_nvenc")
        monkeypatch.setattr("engine.media.encode.has_nvenc", lambda: True)  # all streams are taken
        assert H264Encoder(64, 96, Fraction(25)).codec == "libx264"


@pytest.mark.gpu
def test_nvenc():
    if not has_nvenc():
        pytest.skip("this GPU does not encode")
    frames = pictures(40, 256, 256)
    encoder = H264Encoder(256, 256, Fraction(25), crf=12, codec="h264_nvenc")
    encoded = [encoder.encode(frame, keyframe=number == 7) for number, frame in enumerate(frames)]
    assert [frame.number for frame in encoded if frame.keyframe][:2] == [0, 7]
    for before, after in zip(frames, decode([frame.data for frame in encoded]), strict=True):
        assert np.abs(after.astype(int) - before).mean() < 3


def test_a_keyframe_needs_no_frames_before_it():
    frames = pictures(12, 64, 64)
    encoder = H264Encoder(64, 64, Fraction(25))
    encoded = [encoder.encode(frame, keyframe=number == 8) for number, frame in enumerate(frames)]
    (first, *_) = decode([frame.data for frame in encoded[8:]])
    assert np.abs(first.astype(int) - frames[8]).mean() < 6


def test_jpeg():
    (frame,) = pictures(1, 50, 70)
    encoded = JpegEncoder(quality=95).encode(frame)
    assert encoded.keyframe and encoded.number == 0
    decoded = np.asarray(Image.open(io.BytesIO(encoded.data)))
    assert np.abs(decoded.astype(int) - frame).mean() < 3


def test_a_frame_that_is_cancelled_is_left_out():
    """As `asyncio.wait_for` does when it gives up; the frames after it are encoded."""
    go = Event()

    class Waiting:
        def encode(self, rgb, *, keyframe=False):
            assert go.wait(60)
            return int(rgb[0, 0, 0])

    frames = [np.full((2, 2, 3), number, np.uint8) for number in range(5)]
    with EncoderPool(1) as pool:
        queue = pool.queue(Waiting())
        futures = [queue.submit(frame) for frame in frames]
        assert futures[2].cancel()
        go.set()
        assert [futures[number].result(60) for number in (0, 1, 3, 4)] == [0, 1, 3, 4]


def test_a_session_with_many_frames_does_not_hold_up_the_others():
    """With one thread, they take turns."""
    go, seen = Event(), []

    class Noted:
        def __init__(self, name):
            self.name = name

        def encode(self, rgb, *, keyframe=False):
            assert go.wait(60)
            seen.append(self.name)

    with EncoderPool(1) as pool:
        many, few = pool.queue(Noted("many")), pool.queue(Noted("few"))
        futures = [many.submit(np.zeros((2, 2, 3), np.uint8)) for _ in range(9)]
        futures += [few.submit(np.zeros((2, 2, 3), np.uint8)) for _ in range(2)]
        go.set()
        for future in futures:
            future.result(60)
    assert seen.index("few") <= 1 and seen.count("many") == 9


def test_a_pool_keeps_the_order_of_each_session():
    frames = pictures(30, 32, 32)

    class Slow:
        def __init__(self):
            self.seen = []

        def encode(self, rgb, *, keyframe=False):
            self.seen.append(int(rgb[0, 0, 2]))
            if len(self.seen) == 3:
                raise RuntimeError("broken")
            return len(self.seen)

    encoders = [Slow() for _ in range(5)]
    with EncoderPool(3) as pool:
        queues = [pool.queue(encoder) for encoder in encoders]
        futures = [[queue.submit(frame) for queue in queues] for frame in frames]
    for encoder in encoders:
        assert encoder.seen == [int(frame[0, 0, 2]) for frame in frames]
    with pytest.raises(RuntimeError, match="broken"):
        futures[2][0].result()
    assert [future.result() for future in futures[3]] == [4] * 5


def test_h264_keeps_a_bitrate_that_may_change():
    """Noise, which would take as much as there is: what two seconds of it take follows the bitrate,
    down and up again, and every change begins with a keyframe."""
    random, rates = np.random.default_rng(3), [400_000, 150_000, 400_000, None]
    small = random.integers(0, 256, (30, 160 // 4, 160 // 4, 3), np.uint8)
    frames = small.repeat(4, 1).repeat(4, 2)
    encoder = H264Encoder(160, 160, Fraction(25), bitrate=rates[0], codec="libx264")
    encoded, taken = [], []
    for rate in rates:
        encoder.bitrate = rate
        part = [encoder.encode(frames[number % 30]) for number in range(75)]
        assert [frame.keyframe for frame in part[:2]] == [True, False]
        taken.append(8 * sum(len(frame.data) for frame in part[25:]) / 2)  # a second
        encoded += part
    assert [frame.number for frame in encoded] == list(range(300))
    for rate, bits in zip(rates[:3], taken, strict=False):
        assert 0.7 * rate < bits < 1.2 * rate
    assert taken[3] > 2 * rates[0]
    assert len(decode([frame.data for frame in encoded])) == 300
