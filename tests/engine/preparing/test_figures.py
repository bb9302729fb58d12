"""The figures of a film, what is said of them, and from which value on."""

import re
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.filter import Graph

from engine.errors import InputError
from engine.faces import Boxes, Gap
from engine.preparing.figures import (
    FaceFigures,
    SoundFigures,
    errors_of,
    face_figures,
    frames_to_keep,
    sound_figures,
    warnings_of,
)
from engine.preparing.lips import Lips
from engine.preparing.sound import Survey

FPS = Fraction(25)
FACE = FaceFigures(
    frames_without=0, frames_missing=0, gaps=[], cuts=[], box_min=200, box_median=220, box_max=240,
    turned_min=0.45, turned_max=0.55, turned_frames=0, other_faces=0, chin_out=0, box_out=0,
    luma=120.0, luma_drift=0.05, repeated=0,
)  # fmt: skip
SOUND = SoundFigures(
    rate=48000, channels=2, seconds=120.0, peak=0.5, clipped=0.0, speech=0.8, compared=3000,
    lips=Lips(0, 0.6),
)  # fmt: skip


def said(face=FACE, sound=SOUND, frames=3000, doubled=0, own=FPS, fps=FPS, **more) -> list[str]:
    counts = {"frames": frames, "whole": frames, "doubled": doubled} | more
    return list(warnings_of(face, sound, own_rate=own, fps=fps, **counts))


def test_nothing_to_say():
    assert said() == [] and said(sound=None) == [] and list(errors_of("film", FACE)) == []


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ({"box_min": 160}, {"box_min": 159}, "the face box has 159 pixels at its smallest"),
        ({"luma": 40.0}, {"luma": 39.0}, "the face is dark: its luma is 39 of 255"),
        ({"luma_drift": 0.15}, {"luma_drift": 0.16}, "the light on the face changes by 16%"),
        ({"repeated": 60}, {"repeated": 61}, r"61 frames \(2.0%\) show what the one before shows;"),
        ({}, {"other_faces": 1}, "other faces are in 1 frames"),
        ({}, {"turned_frames": 2}, "the head is turned away in 2 frames"),
        ({}, {"chin_out": 3, "box_out": 4}, "the chin is out of the picture in 3 frames"),
        ({}, {"box_out": 4}, "the face is partly out of the picture in 4 frames"),
        ({}, {"cuts": [1510]}, "the picture jumps at 1:00.40; film without cuts"),
    ],
)  # fmt: skip
def test_where_warnings_of_the_face_begin(right, wrong, line):
    """At the values of docs/avatars.md."""
    assert said(replace(FACE, **right)) == []
    (found,) = said(replace(FACE, **wrong))
    assert re.match(line, found)


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [
        ({"clipped": 0.001}, {"clipped": 0.0012}, "0.1% of the sound is clipped"),
        ({"speech": 0.3}, {"speech": 0.29}, "there is speech in 29% of the film"),
        ({"seconds": 119.7}, {"seconds": 119.5}, "the sound ends 0.5 s before the picture"),
        ({"compared": 50}, {"compared": 49}, "the lips and the sound cannot be compared in 49"),
        ({"lips": Lips(0, 0.15)}, {"lips": Lips(0, 0.14)}, "the person does not seem to speak"),
        ({"lips": Lips(9, 0.3)}, {"lips": None}, "the person does not seem to speak.* nothing in"),
        ({"lips": Lips(1, 0.9)}, {"lips": Lips(2, 0.31)}, r"the sound is 2 frames \(80 ms\) later"),
        ({"lips": Lips(-1, 0.9)}, {"lips": Lips(-2, 0.31)}, "the sound is 2 .*earlier than the"),
    ],
)
def test_where_warnings_of_the_sound_begin(right, wrong, line):
    assert said(sound=replace(SOUND, **right)) == []
    (found,) = said(sound=replace(SOUND, **wrong))
    assert re.match(line, found)


def test_short_films_and_small_faces():
    minute = replace(SOUND, seconds=60.0)
    (found,) = said(frames=1499, sound=minute)
    assert found.startswith("the film has 60.0 s; ") and said(frames=1500, sound=minute) == []
    assert list(errors_of("film", replace(FACE, box_median=64))) == []
    (found,) = errors_of("film", replace(FACE, box_median=63))
    assert found.startswith("film: the face box has 63 pixels a side; expected at least 64")


@pytest.mark.parametrize("lag", [-5, 8])
def test_the_command_that_shifts_the_sound(lag):
    """Its first input is the sound's, whose times get the offset: late sound has to come earlier."""
    (found,) = said(sound=replace(SOUND, lips=Lips(lag, 0.7)))
    assert f"ffmpeg -itsoffset {-lag / 25:.3f} -i IN -i IN -map 1:v -map 0:a -c copy" in found


@pytest.mark.parametrize(
    ("own", "hint"),
    [(Fraction(24), "--fps source"), (None, " of them to get 25 a second;"), (FPS, "shows; ")],
)
def test_why_frames_are_repeated(own, hint):
    """`--fps source` takes constant rates only; at the same rate, damage is the reason."""
    (found,) = said(replace(FACE, repeated=120), doubled=120, own=own)
    assert hint in found and ("--fps source" in found) is (own == 24)


def test_places_and_their_times():
    gaps = [(1500 * n - 1, 1500 * n, n == 2) for n in range(1, 9)]
    filled, lost = said(replace(FACE, gaps=gaps))
    assert filled.startswith("no face was found in 1 frame at 1:59.96; ")
    expected = ", ".join(f"1 frame at {n - 1}:59.96" for n in (1, 3, 4, 5, 6))
    assert f"found in {expected} and 2 more; left out, with the sound" in lost
    # 299.9997 s are not "4:60.00"
    (found,) = said(replace(FACE, cuts=[8991]), frames=30000, fps=Fraction(30000, 1001), sound=None)
    assert "jumps at 5:00.00;" in found


def measured(count=100, **changes) -> SimpleNamespace:
    """Frames of a face in the middle of a picture of 640 x 480."""
    values = {
        "boxes": np.tile([200.0, 100, 400, 300], (count, 1)),
        "turned": np.full(count, 0.5),
        "chin": np.tile([300.0, 320], (count, 1)),
        "luma": np.full(count, 120.0),
        "others": np.zeros(count, int),
        "repeated": np.zeros(count, bool),
        "missing": np.zeros(count, bool),
    }
    return SimpleNamespace(**(values | changes))


def figures(measures, kept=None, boxes=None, gaps=()) -> FaceFigures:
    count = len(measures.turned)
    kept = np.ones(count, bool) if kept is None else kept
    whole = measures.boxes.astype(np.int32) if boxes is None else boxes
    return face_figures(measures, Boxes(whole, kept, list(gaps), []), kept, 480, 640, FPS)


def test_frames_that_are_left_out_do_not_count():
    bad = np.arange(100) < 20
    measures = measured(
        turned=np.where(bad, 0.1, 0.5), luma=np.where(bad, 10, 120), others=bad.astype(int),
        chin=np.where(bad[:, None], -50, [300, 320]), repeated=bad,
    )  # fmt: skip
    found = figures(measures, ~bad)
    assert found == figures(measured(80)) and figures(measures).turned_frames == 20


@pytest.mark.parametrize(
    ("box", "chin", "out"),
    [
        ((-2, 100, 198, 300), (300, 480), (0, 0)),
        ((-3, 100, 197, 300), (-1, 300), (1, 1)),
        ((442, 100, 642, 300), (640, 300), (0, 0)),
        ((443, 100, 643, 300), (641, 300), (1, 1)),
        ((200, -3, 400, 197), (300, -1), (1, 1)),
        ((200, 282, 400, 482), (0, 0), (0, 0)),
        ((200, 283, 400, 483), (300, 481), (1, 1)),
    ],
)
def test_what_is_out_of_the_picture(box, chin, out):
    """Of a box, up to 2 pixels may be."""
    boxes = np.tile([200, 100, 400, 300], (100, 1))
    boxes[7] = box
    measures = measured()
    measures.chin[7] = chin
    found = figures(measures, boxes=boxes)
    assert (found.box_out, found.chin_out) == out


def test_frames_without_a_picture_are_counted_where_they_are_left_out():
    """The others have interpolated boxes."""
    missing = np.isin(np.arange(100), [10, 11, 50, 51, 52])
    gaps = [Gap(10, 12, True), Gap(48, 58, False)]
    measures, kept = measured(missing=missing), np.ones(100, bool)
    for gap in gaps:
        measures.boxes[gap.start : gap.stop] = np.nan
    kept[48:58] = False
    boxes = np.tile(np.int32([200, 100, 400, 300]), (100, 1))
    found = figures(measures, kept, boxes, gaps)
    assert found.frames_without == 12
    _, lost = said(found, frames=1500, whole=3000)
    assert "in 10 frames at 0:01.92 (3 of them have no picture near their time); left out" in lost


def test_the_light_is_that_of_parts_of_two_seconds():
    """A part that is shorter than one second is none."""
    luma = np.repeat([100.0, 120, 110, 30], [50, 50, 50, 24])
    assert figures(measured(174, luma=luma)).luma_drift == pytest.approx(20 / 110, abs=0.001)
    luma = np.append(luma, 30)
    assert figures(measured(175, luma=luma)).luma_drift == pytest.approx(90 / 105, abs=0.001)


def test_the_sound_of_frames_that_are_left_out_does_not_count():
    rng = np.random.default_rng(3)
    loudness = np.convolve(rng.normal(-20, 15, 300), np.ones(4) / 4, mode="same")
    openness = loudness / 100
    openness[100:], kept = rng.normal(size=200), np.arange(300) < 100
    loudness[120:] = -60
    survey = Survey(48000, 1, 12.0, 0.5, 0.0, None)
    found = sound_figures(survey, openness, loudness, kept, FPS)
    assert found.speech > 0.9 and found.compared == 100
    assert found.lips.lag == 0 and found.lips.correlation > 0.99


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_filter_that_turns_a_film(turns):
    """FFmpeg's own filters turn a picture as `numpy.rot90` does it."""
    measures = measured(boxes=np.full((100, 4), np.nan))
    with pytest.raises(InputError, match="turn the film") as error:
        frames_to_keep("film", Boxes(measures.boxes, None, [], []), measures, "cut", FPS, turns)
    filters = re.search(r"-vf (\S+)", str(error.value))[1].split(",")
    picture = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    graph = Graph()
    nodes = [graph.add_buffer(width=10, height=6, format="rgb24", time_base=1 / FPS)]
    nodes += [graph.add(*one.split("=")) for one in filters] + [graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    graph.push(av.VideoFrame.from_ndarray(picture, "rgb24"))
    assert np.array_equal(graph.pull().to_ndarray(), np.rot90(picture, turns))
