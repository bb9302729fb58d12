"""Frame-exact reading in any container and codec: every frame, read in any order, equals the one
that decoding from the beginning gives."""

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from engine import InputError
from engine.avatar.frames import FrameCache, VideoFile
from engine.loop import frame_numbers
from engine.media.video import Video
from tests.engine.videos import (
    CASES,
    change_packet,
    copy_packets,
    encode,
    hide_first,
    moving,
    packets_of,
    plain_decode,
)

COUNT = 60
B_FRAMES = {"g": "12", "bf": "3"}
OPEN = {**B_FRAMES, "x264-params": "open-gop=1:b-pyramid=normal"}
ONE_KEYFRAME = {"g": "500", "bf": "2"}
ALL_KEYFRAMES = {"g": "1"}
NO_B_FRAMES = {"g": "9", "bf": "0"}
REFRESH = {"g": "12", "bf": "0", "x264-params": "intra-refresh=1"}
OPEN_265 = {"g": "12", "x265-params": "log-level=none:open-gop=1:keyint=12:bframes=3:b-adapt=0"}
MPEG = {"g": "12", "bf": "2", "b": "800k"}

# file name, encoder, its options, other arguments of `encode`
H264 = [
    (f"{name}.{container}", "libx264", options, {})
    for container in ("mp4", "mov", "mkv", "avi", "ts", "flv")
    for name, options in {
        "b": B_FRAMES,
        "open": OPEN,
        "one": ONE_KEYFRAME,
        "all": ALL_KEYFRAMES,
        "none": NO_B_FRAMES,
        "refresh": REFRESH,
    }.items()
]
OTHERS = [
    ("a.3gp", "libx264", B_FRAMES, {}),
    ("fragments.mp4", "libx264", B_FRAMES, {"movflags": "frag_keyframe+empty_moov"}),
    ("a.m2ts", "libx264", B_FRAMES, {"container": "mpegts"}),
    ("a.asf", "libx264", B_FRAMES, {"container": "asf"}),
    ("a.mp4", "libx265", OPEN_265, {}),
    ("a.mkv", "libx265", OPEN_265, {}),
    ("a.ts", "libx265", B_FRAMES, {}),
    ("vp8.webm", "libvpx", {"g": "12", "b": "800k"}, {}),
    ("vp8.ogv", "libvpx", {"g": "12", "b": "800k"}, {"container": "ogg"}),
    ("vp9.webm", "libvpx-vp9", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16"}, {}),
    ("vp9.mp4", "libvpx-vp9", {"g": "12"}, {}),
    ("av1.webm", "libsvtav1", {"g": "12", "preset": "12", "crf": "30"}, {}),
    ("av1.mp4", "libsvtav1", {"g": "12", "preset": "12", "crf": "30"}, {}),
    ("mpeg2.mpg", "mpeg2video", MPEG, {}),
    ("mpeg1.mpg", "mpeg1video", MPEG, {}),
    ("interlaced.mpg", "mpeg2video", {**MPEG, "flags": "+ildct+ilme"}, {}),
    ("mpeg2.vob", "mpeg2video", MPEG, {"container": "vob"}),
    ("mpeg2.ts", "mpeg2video", MPEG, {}),
    ("mpeg2.mxf", "mpeg2video", MPEG, {"container": "mxf"}),
    ("mpeg4.avi", "mpeg4", MPEG, {}),
    ("mpeg4.mp4", "mpeg4", MPEG, {}),
    ("mjpeg.avi", "mjpeg", {}, {"pix_fmt": "yuvj420p"}),
    ("mjpeg.mov", "mjpeg", {}, {"pix_fmt": "yuvj420p"}),
    ("prores.mov", "prores_ks", {}, {"pix_fmt": "yuv422p10le"}),
    ("ffv1.avi", "ffv1", {"g": "12"}, {}),
    ("raw.avi", "rawvideo", {}, {}),
    ("sorenson.flv", "flv", {"g": "12"}, {}),
    ("a.gif", "gif", {}, {"pix_fmt": "rgb8"}),
    ("wmv.wmv", "wmv2", {"g": "12"}, {"container": "asf"}),
]
RATES = [
    ("ntsc.mkv", "libx264", B_FRAMES, {"rate": Fraction(30000, 1001)}),
    ("film.flv", "libx264", B_FRAMES, {"rate": Fraction(24000, 1001)}),
    ("fast.ts", "libx264", B_FRAMES, {"rate": Fraction(60000, 1001)}),
]


def orders(count: int) -> dict[str, list[int]]:
    pingpong = [number for number, _ in zip(frame_numbers(count), range(2 * count), strict=False)]
    return {
        "forward": list(range(count)),
        "backward": list(range(count - 1, -1, -1)),
        "pingpong": pingpong,
        "random": random.Random(0).choices(range(count), k=count),
    }


def wrong_frames(path: Path, expected: list[np.ndarray], frames_kept: int) -> dict[str, list[int]]:
    """Return, for each order of reading, the numbers of the frames that differ."""
    wrong = {}
    for order, numbers in orders(len(expected)).items():
        source = VideoFile(path)
        assert len(source) == len(expected)
        cache = FrameCache(source, frames_kept * source.size(next(source.decode(0))[1]))
        out = np.empty((1, *expected[0].shape), np.uint8)
        wrong[order] = []
        for number in numbers:
            cache.read([number], out)
            if not np.array_equal(out[0], expected[number]):
                wrong[order].append(number)
    return {order: numbers for order, numbers in wrong.items() if numbers}


@pytest.mark.filterwarnings("ignore:.*is interlaced")
@pytest.mark.parametrize(
    ("name", "codec", "options", "more"), H264 + OTHERS + RATES, ids=lambda v: str(v)[:20]
)
def test_every_frame_in_any_order(tmp_path, name, codec, options, more):
    frames = moving(COUNT, 96, 128) if codec == "libsvtav1" else moving(COUNT)
    path = encode(tmp_path / name, frames, codec, options=options, **more)
    expected = plain_decode(path)
    assert len(expected) == COUNT
    assert VideoFile(path).fps == more.get("rate", 25)
    assert wrong_frames(path, expected, 1) == {}
    assert wrong_frames(path, expected, 9) == {}


@pytest.mark.parametrize("name", ["trimmed.mp4", "transport_stream.ts"])
def test_common_film_formats(name):
    expected = plain_decode(CASES / name)
    assert len(expected) == {"trimmed.mp4": 37, "transport_stream.ts": 50}[name]
    assert VideoFile(CASES / name).fps == 25
    assert wrong_frames(CASES / name, expected, 9) == {}


@pytest.mark.parametrize("options", [B_FRAMES, ONE_KEYFRAME, NO_B_FRAMES])
@pytest.mark.parametrize("hidden", [1, 5, 12, 30])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_an_edit_list_hides_frames(tmp_path, name, hidden, options):
    """The frames that are left are those of the whole film, in order."""
    path = encode(tmp_path / name, moving(COUNT), options=options)
    whole = plain_decode(path)
    hide_first(path, hidden)
    assert bool(Video(path).stream.hidden) == (hidden != 12 or options != B_FRAMES)
    assert wrong_frames(path, whole[hidden:], 9) == {}


@pytest.mark.parametrize(
    ("whole", "codec", "options", "bytes_lost"),
    [
        ("b.ts", "libx264", B_FRAMES, 188 * 60),
        ("open.ts", "libx264", OPEN, 188 * 60),
        ("hevc.ts", "libx265", OPEN_265, 188 * 60),
        ("mpeg2.ts", "mpeg2video", MPEG, 188 * 60),
        ("mpeg2.mpg", "mpeg2video", MPEG, 2048 * 4),
    ],
)
def test_a_recording_that_begins_in_the_middle(tmp_path, whole, codec, options, bytes_lost):
    """Packets before the first keyframe cannot be decoded, and do not count as frames."""
    path = encode(tmp_path / whole, moving(COUNT), codec, options=options)
    path.write_bytes(path.read_bytes()[bytes_lost:])
    expected = plain_decode(path)
    assert 10 < len(expected) < COUNT
    with pytest.warns(UserWarning, match=r"begins with \d+ frames that cannot be decoded"):
        assert wrong_frames(path, expected, 9) == {}


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("lost", [1, 4, "all before the second keyframe"])
@pytest.mark.filterwarnings("ignore:.*begins with")
def test_a_copy_without_its_first_packets(tmp_path, name, codec, lost):
    """The first frames of an open group of pictures are predicted from the group before it."""
    options = OPEN if codec == "libx264" else OPEN_265
    path = encode(tmp_path / "whole.mp4", moving(COUNT), codec, options=options)
    if isinstance(lost, str):
        packets = list(packets_of(path))
        lost = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        assert min(packet.pts for packet in packets[lost:]) < packets[lost].pts
    path = copy_packets(path, tmp_path / name, lost)
    expected = plain_decode(path)
    assert 30 < len(expected) < COUNT
    assert wrong_frames(path, expected, 9) == {}
    left_out = sum(not packet.is_discard for packet in packets_of(path)) - len(expected)
    assert Video(path).stream.left_out == left_out


def test_joined_recordings_are_refused(tmp_path):
    """Their timestamps start again in the middle."""
    path = encode(tmp_path / "a.ts", moving(COUNT), options=B_FRAMES)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(InputError, match="has frames without timestamps"):
        VideoFile(path)


def test_frames_that_only_others_are_predicted_from(tmp_path):
    """VP8's alternate reference frames are separate packets, and are not displayed."""

    def hide(data: bytearray) -> bytearray:
        assert data[0] & 0x11 == 0x11  # predicted, and shown
        data[0] &= ~0x10
        return data

    path = encode(tmp_path / "a.webm", moving(20), "libvpx", options={"g": "12", "b": "800k"})
    change_packet(path, 5, hide)
    expected = plain_decode(path)
    assert len(expected) == 19 and len(list(packets_of(path))) == 20
    video = Video(path)
    assert len(video) == 19
    for start in (0, 7, 15):
        for number, frame in video.frames(start):
            assert np.array_equal(video.pixels(frame), expected[number])


def test_a_cover_is_not_a_film(tmp_path):
    """Cover art is a video stream too."""
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as output:
        sound, cover = output.add_stream("aac", rate=16000), output.add_stream("mjpeg", rate=25)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        image = av.VideoFrame.from_ndarray(moving(1)[0], "rgb24").reformat(format="yuvj420p")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        samples.sample_rate = 16000
        for stream, frame in ((cover, image), (sound, samples)):
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    with av.open(str(path)) as written:
        assert [stream.type for stream in written.streams] == ["audio", "video"]
    with pytest.raises(InputError, match="song.m4a has no video stream"):
        VideoFile(path)


@pytest.mark.parametrize(
    ("name", "codec", "message"),
    [
        ("a.h264", "libx264", "has frames without timestamps; make an mp4 of it"),
        ("a.avi", "mjpeg", "has a video stream of a codec that FFmpeg does not know"),
        (
            "b.avi",
            "libx264",
            "damaged: 1 of its frames cannot be .* have no timestamps; make an mp4 of it",
        ),
    ],
)
def test_unreadable_files_are_one_line_errors(tmp_path, name, codec, message):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / name, moving(COUNT), codec, pix_fmt=pix_fmt)
    path.write_bytes(path.read_bytes().replace(b"MJPG", b"QJPG"))
    if name == "b.avi":
        change_packet(path, 20, lambda data: bytes(len(data)))
    with pytest.raises(InputError, match=message) as caught:
        VideoFile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_replaced_while_it_is_read(tmp_path):
    path = encode(tmp_path / "a.mpg", moving(COUNT), "mpeg2video", options=MPEG)
    source = VideoFile(path)
    other = encode(tmp_path / "b.mpg", moving(COUNT) // 3, "mpeg2video", options=MPEG)
    other.rename(path)
    with pytest.raises(InputError, match="changed while it was in use"):
        for number in range(COUNT - 1, -1, -1):
            list(source.decode(number))
