"""The demo avatar: the drawing, and the files in examples/demo."""

import json
import wave
from dataclasses import replace

import av
import numpy as np
import pytest

from examples import DEMO
from examples.make_demo import FPS, FRAMES, MANIFEST, SPOKEN, main
from examples.person import SIZE, Mouth, Pose, draw, face_box, idle, idle_mouth, mouth_box
from examples.speech import make

TURNED = Pose(x=6, y=-4, tilt=2.0, yaw=0.6, blink=0.3, brow=0.4, gaze_x=0.5, breath=0.7)
WIDE_OPEN = Mouth(openness=1)


def lips(mouth: Mouth, pose: Pose = TURNED) -> np.ndarray:
    """Return the drawing inside the mouth box, without its sides, where hair and neck are:
    int32."""
    x0, y0, x1, y1 = mouth_box(pose)
    return draw(pose, mouth, region=(x0 + 10, y0, x1 - 10, y1)).astype(np.int32)


def interior(picture: np.ndarray) -> np.ndarray:
    """Return where the inside of the mouth shows, which is darker than the lips and the line
    between them."""
    return picture.sum(axis=2) < 150


def bared(picture: np.ndarray) -> np.ndarray:
    """Return where teeth show, which are bright, and far less red than lips, skin and
    highlights."""
    return (picture.min(axis=2) > 140) & (picture[..., 0] - picture[..., 2] < 40)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    return draw(TURNED, Mouth(openness=0.5, teeth=0.3))


@pytest.fixture(scope="module")
def video() -> list[np.ndarray]:
    with av.open(DEMO / "frames.mp4") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_same_parameters_same_pixels(whole):
    assert whole.shape == (1280, 720, 3)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(whole, draw(TURNED, Mouth(openness=0.5, teeth=0.3)))


@pytest.mark.parametrize(
    "region",
    [
        face_box(TURNED),
        mouth_box(TURNED),
        (250, 380, 480, 480),  # eyes and brows
        (61, 700, 403, 1280),  # hair on the shoulder, collar, the lower edge of the frame
        (0, 0, 33, 17),  # background only
        (371, 633, 372, 634),  # one pixel of the chin
    ],
)
def test_region_is_the_crop_of_the_frame(whole, region):
    x0, y0, x1, y1 = region
    part = draw(TURNED, Mouth(openness=0.5, teeth=0.3), region=region)
    assert part.shape == (y1 - y0, x1 - x0, 3)
    # One level, because float rounding may depend on the memory layout of the rows.
    assert np.abs(part.astype(int) - whole[y0:y1, x0:x1]).max() <= 1


@pytest.mark.parametrize("region", [(0, 0, 721, 10), (-1, 0, 5, 5), (5, 5, 5, 9), (9, 5, 5, 9)])
def test_region_outside_the_frame(region):
    with pytest.raises(ValueError, match="not inside a frame of 720x1280"):
        draw(TURNED, region=region)


def test_other_frame_size():
    """Half the size is the same picture, and its boxes are half as large."""
    small = draw(TURNED, size=(360, 640)).astype(float)
    large = draw(TURNED).reshape(640, 2, 360, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 1.5
    np.testing.assert_allclose(
        np.array(face_box(TURNED, size=(360, 640))) * 2, face_box(TURNED), atol=3
    )


def test_mouth_moves_only_what_the_face_box_holds():
    x0, y0, x1, y1 = face_box(TURNED)
    shut = draw(TURNED)
    for mouth in (WIDE_OPEN, Mouth(0.8, 1.0), Mouth(1, -1, 1, 1, 1), Mouth(0, 1, 0, 1, 0)):
        changed = (draw(TURNED, mouth) != shut).any(axis=2)
        assert changed[y0:y1, x0:x1].mean() > 0.05
        changed[y0:y1, x0:x1] = False
        assert not changed.any()


@pytest.mark.parametrize("mouth", [WIDE_OPEN, Mouth(1, 0, 1), Mouth(0.5, 1, 0, 1), Mouth(0, 1)])
def test_lips_stay_in_the_mouth_box(mouth):
    """Lips are redder than any skin; none of that colour may appear outside the mouth box."""
    x0, y0, x1, y1 = face_box(TURNED)
    left, top, right, bottom = np.array(mouth_box(TURNED)) - (x0, y0, x0, y0)
    picture = draw(TURNED, mouth, region=(x0, y0, x1, y1)).astype(int)
    red = (picture[..., 0] > 150) & (picture[..., 0] - picture[..., 1] > 72)
    assert red[top:bottom, left:right].sum() > 800
    red[top:bottom, left:right] = False
    assert not red.any()


@pytest.mark.parametrize("mouth", [Mouth(), Mouth(width=1), Mouth(width=-1), idle_mouth(3)])
def test_closed_lips_show_no_inside(mouth):
    picture = lips(mouth)
    assert not bared(picture).any()
    assert not interior(picture).any()


def test_opening_shows_more_and_more_of_the_inside():
    areas = [interior(lips(Mouth(openness=o))).sum() for o in np.linspace(0.1, 1, 7)]
    assert np.diff(areas).min() > 50


def test_chin_follows_the_opening():
    """The lower edge of the jaw against the neck's shadow moves down."""
    x0, _, x1, _ = face_box(Pose())
    column = (x0 + x1) // 2
    edges = []
    for openness in (0, 0.5, 1):
        strip = draw(Pose(), Mouth(openness=openness), region=(column - 3, 610, column + 3, 680))
        edges.append(int(np.argmin(np.diff(strip.sum(axis=2).mean(axis=1)))))
    assert edges[0] + 4 < edges[1]
    assert edges[1] + 4 < edges[2] < edges[0] + 26


def test_rounding_narrows_the_mouth():
    def breadth(mouth: Mouth) -> int:
        picture = draw(Pose(), mouth, region=face_box(Pose())).astype(int)
        red = (picture[..., 0] > 150) & (picture[..., 0] - picture[..., 1] > 72)
        return int(np.ptp(np.flatnonzero(red.any(axis=0))))

    breadths = [breadth(Mouth(openness=0.2, rounding=r)) for r in (0, 0.35, 0.7, 1)]
    assert np.diff(breadths).max() < -5
    assert breadth(Mouth(width=1)) > breadth(Mouth()) + 5 > breadth(Mouth(width=-1)) + 10


@pytest.mark.parametrize("openness", [0, 0.3])
def test_teeth_and_tongue_on_demand(openness):
    base = Mouth(openness=openness)
    teeth = [bared(lips(replace(base, teeth=amount))).sum() for amount in (0, 0.7, 1)]
    assert teeth[0] + 40 < teeth[1] < teeth[2] - 40
    # The raised tongue takes the place of the dark.
    low, high = (lips(Mouth(0.35, tongue=amount)) for amount in (0, 1))
    assert interior(high).sum() < 0.8 * interior(low).sum()


def test_shapes_blend():
    """A small step of any parameter, from any shape, is a small step of every pixel."""
    for mouth in (Mouth(), Mouth(0.1, teeth=0.2), Mouth(0.5, 0.5, 0.5, 0.5, 0.5)):
        before = lips(mouth)
        for name in ("openness", "width", "rounding", "teeth", "tongue"):
            after = lips(replace(mouth, **{name: getattr(mouth, name) + 0.005}))
            assert 0 < np.abs(after - before).max() < 50, name


def test_boxes_follow_the_head():
    x0, y0, x1, y1 = face_box(Pose())
    assert x1 - x0 == y1 - y0
    assert 182 <= x1 - x0 <= 260
    assert face_box(Pose(x=9, y=-7)) == (x0 + 9, y0 - 7, x1 + 9, y1 - 7)
    assert face_box(Pose(blink=1, brow=1, gaze_x=1, breath=1)) == (x0, y0, x1, y1)
    # The face, not just its box, moved: the same pixels but for dither.
    here = draw(Pose(), region=(x0 + 70, y0, x1 - 70, y1 - 110)).astype(int)
    there = draw(Pose(x=9, y=-7), region=(x0 + 79, y0 - 7, x1 - 61, y1 - 117)).astype(int)
    assert np.abs(here - there).max() <= 4


def test_idle_loops_and_moves():
    assert idle(0) == idle(10) == idle(20)
    assert idle_mouth(0) == idle_mouth(10)
    poses = [idle(i / FPS) for i in range(FRAMES)]
    steps = [
        abs(a.x - b.x) + abs(a.y - b.y) for a, b in zip(poses, [*poses[1:], poses[0]], strict=True)
    ]
    assert max(steps) < 1.0  # pixels a frame, the seam of the loop included
    assert np.ptp([pose.x for pose in poses]) > 6
    blinking = [pose.blink > 0.5 for pose in poses]
    assert 2 <= sum(b and not a for a, b in zip([False, *blinking], blinking, strict=False)) <= 5
    assert sum(blinking) < 0.1 * FRAMES
    assert all(idle_mouth(pose).openness == 0 for pose in range(10))


def test_folder_is_complete():
    assert json.loads((DEMO / "avatar.json").read_text()) == MANIFEST
    boxes = json.loads((DEMO / "boxes.json").read_text())
    assert boxes == [list(face_box(idle(i / FPS))) for i in range(FRAMES)]
    for x0, y0, x1, y1 in boxes:
        assert x1 - x0 == y1 - y0
        assert 0 <= x0 < x1 <= SIZE[0] and 0 <= y0 < y1 <= SIZE[1]


def test_video_stream():
    with av.open(DEMO / "frames.mp4") as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.width, context.height) == SIZE
        assert stream.average_rate == stream.base_rate == FPS
        assert stream.frames == FRAMES
        assert context.pix_fmt == "yuv420p"
        # 1 is BT.709 in all three, and limited range.
        assert (
            context.colorspace,
            context.color_primaries,
            context.color_trc,
            context.color_range,
        ) == (1, 1, 1, 1)
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == list(
        range(0, FRAMES, 25)
    )
    assert all(packet.pts == packet.dts for packet in packets)  # no frame waits for a later one
    assert (DEMO / "frames.mp4").stat().st_size < 5e6


def test_video_shows_the_drawing(video):
    assert len(video) == FRAMES
    for i in (0, 37, 116, 249):  # 37 and 116: in the middle of a blink
        drawn = draw(idle(i / FPS), idle_mouth(i / FPS)).astype(float)
        error = np.mean((drawn - video[i]) ** 2)
        assert 10 * np.log10(255**2 / error) > 35, f"frame {i}"


def test_speech():
    with wave.open(str(DEMO / "speech.wav")) as speech:
        assert (speech.getnchannels(), speech.getframerate(), speech.getsampwidth()) == (
            1,
            16000,
            2,
        )
        pcm = np.frombuffer(speech.readframes(speech.getnframes()), "<i2")
    assert 5.5 <= len(pcm) / 16000 <= 6.5
    assert 0.3 * 32767 < np.abs(pcm).max() < 32767
    assert np.sqrt(np.mean(pcm.astype(float) ** 2)) > 1000


def test_speech_agrees_with_its_phonemes():
    """Both files are what espeak-ng gives."""
    said = make(SPOKEN)
    with wave.open(str(DEMO / "speech.wav")) as speech:
        pcm = np.frombuffer(speech.readframes(speech.getnframes()), "<i2")
    np.testing.assert_allclose(pcm, said.pcm * 32767, atol=1.01)
    phonemes = json.loads((DEMO / "phonemes.json").read_text())
    assert [p[0] for p in phonemes] == [p.name for p in said.phonemes]
    times = [[p.start, p.end] for p in said.phonemes]
    np.testing.assert_allclose([p[1:] for p in phonemes], times, atol=1e-3)


def test_the_folder_is_what_the_command_writes(tmp_path, monkeypatch):
    """Everything but the film, which takes minutes."""
    monkeypatch.setattr("examples.make_demo.write_frames", lambda path: path.write_bytes(b"film"))
    assert main(["-o", str(tmp_path), "--speech"]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"avatar.json", "boxes.json", "frames.mp4", "phonemes.json", "speech.wav"}
    for name in ("avatar.json", "boxes.json"):
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()
    assert (tmp_path / "speech.wav").stat().st_size == (DEMO / "speech.wav").stat().st_size


def test_speech_without_espeak(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("examples.speech.espeak._library", lambda: ("libnot-there.so", None))
    assert main(["-o", str(tmp_path / "out"), "--speech"]) == 2
    said = capsys.readouterr().err
    assert "error: espeak-ng is not installed: libnot-there.so cannot be loaded" in said
    assert said.endswith("pip install espeakng-loader\n")
    assert list((tmp_path / "out").iterdir()) == []
