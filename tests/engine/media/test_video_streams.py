"""The properties of video streams, and the policy for those that cannot be used as they are."""

import warnings
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest

from engine import InputError
from engine.media.policy import POLICY, check_damage, check_video
from engine.media.video import Video
from tests.engine.videos import CASES, encode, hide_first, moving, plain_decode, planes, set_matrix

LIMITED, FULL = 1, 2
BT709, BT470BG, SMPTE170M, SMPTE240M, BT2020 = 1, 5, 6, 7, 9


def judged(path, purpose="avatar") -> list[str]:
    """Return the warnings of `check_video`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_video(path, Video(path).stream, purpose)
    return [str(warning.message) for warning in caught]


def refusal(path, purpose="avatar") -> str:
    with pytest.raises(InputError) as caught:
        judged(path, purpose)
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said
    return said


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.flv", "a.avi", "a.mpg"])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), 60])
def test_constant_rates_are_exact(tmp_path, name, rate):
    codec = "mpeg2video" if name == "a.mpg" else "libx264"
    video = Video(encode(tmp_path / name, moving(70), codec, rate=rate, options={"b": "800k"}))
    assert video.fps == rate and len(video) == 70
    assert judged(video.path) == []


def test_a_last_frame_of_another_duration(tmp_path):
    """FFmpeg's average rate includes it."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        packets = []
        for rgb in moving(20):
            packets += stream.encode(av.VideoFrame.from_ndarray(rgb, "rgb24"))
        packets += stream.encode(None)
        packets[-1].duration = 40
        output.mux(packets)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate < 10
    assert Video(path).fps == 25


def test_times_are_on_the_containers_clock(tmp_path):
    times = [7 + i for i in range(30)]
    path = encode(tmp_path / "a.mkv", moving(30), times=times)
    stream = Video(path).stream
    assert stream.start == Fraction(7, 25)
    assert [time * stream.time_base for time in stream.times] == [Fraction(t, 25) for t in times]
    assert Video(CASES / "transport_stream.ts").stream.start == Fraction(133200, 90000)


def test_hidden_frames_are_no_part_of_the_rate(tmp_path):
    path = hide_first(encode(tmp_path / "a.mp4", moving(40)), 7)
    stream = Video(path).stream
    assert (stream.fps, len(stream.times), stream.start) == (25, 33, 0)
    assert stream.hidden >= 7
    assert Video(CASES / "trimmed.mp4").stream.hidden == 3


def test_a_variable_rate():
    path = CASES / "variable_rate.mp4"
    said = refusal(path)
    for part in ("variable frame rate (40 to 80 ms", "ffmpeg -i IN -vf fps=25 OUT.mp4"):
        assert part in said
    assert judged(path, "film") == []  # that is what can be prepared
    stream = Video(path).stream
    assert stream.fps is None and not stream.constant
    # every second frame is missing from 2 to 6 s
    seconds = [float(time * stream.time_base) for time in stream.times]
    assert np.allclose(np.diff(seconds), [0.04] * 50 + [0.08] * 50 + [0.04] * 99, atol=1e-9)


def test_a_frame_that_is_missing(tmp_path):
    times = [i for i in range(41) if i != 20]
    path = encode(tmp_path / "a.mkv", moving(40), times=times, options={"bf": "0"})
    assert "variable frame rate (40 to 80 ms" in refusal(path)


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (Fraction(1, 5), "0.2 frames a second; expected 1 to 240"),
        (Fraction(1000), "1000 frames a second; expected 1 to 240"),
        (Fraction(1), None),
        (Fraction(240), None),
    ],
)
def test_rates_that_an_avatar_may_have(tmp_path, rate, said):
    path = encode(tmp_path / "a.mp4", moving(9), rate=rate)
    assert Video(path).fps == rate
    if said is None:
        assert judged(path) == []
    else:
        assert said in refusal(path)
    assert judged(path, "film") == []


def test_one_frame(tmp_path):
    """Its rate is the one that the file states, if an avatar may have it."""
    assert Video(encode(tmp_path / "a.mp4", moving(1))).fps == 25
    path = encode(tmp_path / "b.mp4", moving(1), rate=Fraction(1, 5))
    assert Video(path).fps is None and judged(path) == []


# --- orientation ---------------------------------------------------------------------------------

TURN = {
    "as stored": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "turned by 180": (-1, 0, 0, -1),
    "turned by 90": (0, 1, -1, 0),
    "turned by 270": (0, -1, 1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def shown_by_ffmpeg(rgb: np.ndarray, matrix: tuple[float, ...], angle: float) -> np.ndarray:
    """Rotate as `ffmpeg` does before its filters (fftools, configure_input_video_filter)."""
    a, _, c, d = matrix[0], matrix[1], matrix[2], matrix[3]
    filters: list[tuple[str, str]] = []
    if abs(angle - 90) < 1:
        filters = [("transpose", "cclock_flip" if c > 0 else "clock")]
    elif abs(angle - 180) < 1:
        filters = [("hflip", "")] * (a < 0) + [("vflip", "")] * (d < 0)
    elif abs(angle - 270) < 1:
        filters = [("transpose", "clock_flip" if c < 0 else "cclock")]
    elif d < 0:
        filters = [("vflip", "")]
    graph = av.filter.Graph()
    height, width = rgb.shape[:2]
    nodes = [
        graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 25))
    ]
    nodes += [graph.add(name, arguments) for name, arguments in filters]
    nodes += [graph.add("copy"), graph.add("buffersink")]  # vflip only counts rows the other way
    for one, other in pairwise(nodes):
        one.link_to(other)
    graph.configure()
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
    frame.pts = 0
    graph.push(frame)
    return graph.pull().to_ndarray(format="rgb24")


@pytest.mark.parametrize("turn", TURN)
@pytest.mark.parametrize("scale", [1, 0.5])
def test_turned_and_mirrored(tmp_path, turn, scale):
    """All eight orientations equal FFmpeg's, and the matrix: (x, y) -> (ax + cy, bx + dy)."""
    path = encode(tmp_path / "a.mp4", moving(3))
    stored = plain_decode(path)
    matrix = tuple(scale * value for value in TURN[turn])
    set_matrix(path, *matrix)
    video = Video(path)
    with av.open(str(path)) as container:
        # FFmpeg's program rotates in the direction opposite to PyAV's angle
        angle = -next(container.decode(video=0)).rotation % 360
    for (_, frame), before in zip(video.frames(), stored, strict=True):
        shown = video.pixels(frame)
        assert shown.shape == (video.height, video.width, 3)
        assert np.array_equal(shown, shown_by_ffmpeg(before, matrix, angle))
        a, b, c, d = TURN[turn]
        height, width = before.shape[:2]
        for column, row in ((0, 0), (width - 1, 0), (3, 17), (width - 1, height - 1)):
            x, y = column + 0.5, row + 0.5  # of its centre
            to_x, to_y = (a * x + c * y) % video.width, (b * x + d * y) % video.height
            assert np.array_equal(shown[int(to_y), int(to_x)], before[row, column])
    assert judged(path) == []


def test_an_odd_angle_is_refused(tmp_path):
    path = set_matrix(encode(tmp_path / "a.mp4", moving(3)), 0.866, 0.5, -0.5, 0.866)
    for purpose in ("avatar", "film"):
        assert "a rotation that is not a multiple of 90 degrees" in refusal(path, purpose)


@pytest.mark.parametrize("turn", ["as stored", "turned by 90"])
def test_wide_pixels(tmp_path, turn):
    path = encode(
        tmp_path / "a.mp4", moving(3), tags={"sample_aspect_ratio": Fraction(4, 3)}, rate=25
    )
    set_matrix(path, *TURN[turn])
    stream = Video(path).stream
    assert stream.pixel_aspect == (Fraction(4, 3) if turn == "as stored" else Fraction(3, 4))
    assert judged(path) == []
    assert Video(encode(tmp_path / "b.mp4", moving(3))).stream.pixel_aspect == 1


def test_interlaced(tmp_path):
    options = {"x264-params": "tff=1"}
    (said,) = judged(encode(tmp_path / "a.mp4", moving(5), options=options))
    assert "a.mp4 is interlaced" in said and "bwdif" in said
    assert judged(encode(tmp_path / "b.mp4", moving(5))) == []


# --- colors --------------------------------------------------------------------------------------

KR_KB = {
    BT709: (0.2126, 0.0722),
    BT470BG: (0.299, 0.114),
    SMPTE170M: (0.299, 0.114),
    SMPTE240M: (0.212, 0.087),
    BT2020: (0.2627, 0.0593),
}


def rgb_by_hand(y, u, v, matrix: int, full: bool, bits: int) -> np.ndarray:
    """Convert to RGB by ITU-T H.273, equations 41 to 43 and 20 to 25."""
    kr, kb = KR_KB[matrix]
    step = 1 << (bits - 8)
    if full:
        luma, chroma, zero = 256 * step - 1, 256 * step - 1, 0
    else:
        luma, chroma, zero = 219 * step, 224 * step, 16 * step
    light, blue, red = (y - zero) / luma, (u - 128 * step) / chroma, (v - 128 * step) / chroma
    r, b = light + 2 * (1 - kr) * red, light + 2 * (1 - kb) * blue
    return np.clip([r, (light - kr * r - kb * b) / (1 - kr - kb), b], 0, 1) * 255


COLOURS = [(126, 128, 128), (180, 90, 160), (90, 150, 110), (200, 120, 140), (60, 120, 145)]


@pytest.mark.parametrize("matrix", KR_KB)
@pytest.mark.parametrize("color_range", [LIMITED, FULL])
@pytest.mark.parametrize("bits", [8, 10])
def test_colours_as_the_stream_says(tmp_path, matrix, color_range, bits):
    pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
    stored = [tuple(value << (bits - 8) for value in colour) for colour in COLOURS]
    path = encode(
        tmp_path / "a.mkv",
        [planes(pix_fmt, 48, 64, colour) for colour in stored],
        "ffv1",
        pix_fmt=pix_fmt,
        tags={"colorspace": matrix, "color_range": color_range},
    )
    video = Video(path)
    assert (video.stream.matrix, video.stream.bits) == (matrix, bits)
    assert judged(path) == []
    for (_, frame), colour in zip(video.frames(), stored, strict=True):
        expected = rgb_by_hand(*colour, matrix, color_range == FULL, bits)
        # FFmpeg's quick conversion is up to three levels dark; BT.601 for BT.709 is ten off
        assert np.abs(video.pixels(frame)[20, 30] - expected).max() < 3


@pytest.mark.parametrize("bits", [8, 10])
def test_colours_of_no_name_are_those_of_bt601(tmp_path, bits):
    """FFmpeg and OpenCV assume the same."""
    pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
    stored = [tuple(value << (bits - 8) for value in colour) for colour in COLOURS]
    frames = [planes(pix_fmt, 48, 64, colour) for colour in stored]
    video = Video(encode(tmp_path / "a.mkv", frames, "ffv1", pix_fmt=pix_fmt))
    for (_, frame), colour in zip(video.frames(), stored, strict=True):
        expected = rgb_by_hand(*colour, SMPTE170M, False, bits)
        assert np.abs(video.pixels(frame)[20, 30] - expected).max() < 3


def tagged(path, pix_fmt="yuv420p10le", **tags):
    frames = [planes(pix_fmt, 48, 64, (500, 512, 512)) for _ in range(3)]
    return encode(path, frames, pix_fmt=pix_fmt, tags=tags)


def test_hdr_is_refused(tmp_path):
    said = refusal(CASES / "hlg.mp4")
    assert "is HDR (HLG, ARIB STD-B67)" in said and "zscale" in said and "tonemap" in said
    assert judged(CASES / "hlg.mp4", "film") == []  # that is what can be prepared
    pq = tagged(tmp_path / "pq.mp4", color_trc=16, color_primaries=9, colorspace=9)
    assert "is HDR (PQ, SMPTE ST 2084)" in refusal(pq)


@pytest.mark.parametrize("trc", [1, 13, 14])
def test_ten_bits_of_bt709_are_taken(tmp_path, trc):
    assert judged(tagged(tmp_path / "a.mp4", color_trc=trc, color_primaries=1, colorspace=1)) == []


@pytest.mark.parametrize(
    ("primaries", "name"), [(9, "BT.2020"), (11, "DCI-P3"), (12, "Display P3")]
)
@pytest.mark.parametrize("trc", [1, 2])
def test_wide_gamuts_are_refused(tmp_path, primaries, name, trc):
    matrix = 9 if primaries == 9 else 1
    path = tagged(tmp_path / "a.mp4", color_trc=trc, color_primaries=primaries, colorspace=matrix)
    said = refusal(path)
    assert f"has the colors of {name}" in said
    # the command of the error works
    name, arguments = said.partition("-vf ")[2].partition(" OUT")[0].split("=", 1)
    arguments, *more = arguments.split(",")
    frame = next(Video(path).frames())[1]
    graph = av.filter.Graph()
    source = graph.add_buffer(template=av.open(str(path)).streams.video[0])
    convert, sink = graph.add(name, arguments), graph.add("buffersink")
    source.link_to(convert)
    convert.link_to(sink)
    graph.configure()
    graph.push(frame)
    converted = graph.pull()
    assert more == [] and converted.format.name == "yuv420p" and converted.colorspace == BT709


def test_a_matrix_that_cannot_be_converted(tmp_path):
    path = tagged(tmp_path / "a.mp4", color_trc=1, color_primaries=1, colorspace=8)  # YCgCo
    assert "color matrix (number 8" in refusal(path)


# --- damage --------------------------------------------------------------------------------------


def test_the_warning_about_damage():
    with pytest.warns(UserWarning) as caught:
        check_damage("a.mp4", [7, 3, 4, 5, 12, 13], 50, "avatar")
        check_damage("b.mp4", range(0, 60, 2), 60, "film")
    first, second = (str(warning.message) for warning in caught)
    assert first == (
        "a.mp4 is damaged; frames that are broken, or predicted from broken ones: "
        "3-5, 7, 12-13 (6 of 50)"
    )
    assert second.endswith("0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and 20 more (30 of 60)")


def test_every_fault_has_an_action_for_every_purpose():
    for actions in POLICY.values():
        assert set(actions) == {"avatar", "film"}
        assert set(actions.values()) <= {"refuse", "warn", "take"}
