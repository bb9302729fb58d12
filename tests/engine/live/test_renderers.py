"""Frames of live sessions are a render's, whichever renderer makes them.

The GPU's renderer runs here on the CPU's memory: the same steps on the same buffers, in order.
"""

from copy import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kernels
from engine import Avatar, Pipeline
from engine.device import buffers
from engine.device.executor import CpuExecutor
from engine.errors import InputError
from engine.live import gpu_renderer, renderer, rings
from engine.live.features import RING_ROWS, Window
from engine.live.gpu_renderer import GpuRenderer
from engine.live.job import Job
from engine.live.live import _picture_numbers
from engine.live.renderer import CpuRenderer
from engine.live.session import Session
from engine.live.timing import WINDOW_SAMPLES
from tests.conftest import ROOT
from tests.engine.files import Folders
from tests.engine.live.stage import Stage, voice

CASES = ROOT / "tests" / "cases"
NETWORKS = {
    "generator": CASES / "meter.onnx",
    "audio_encoder": CASES / "loudness_encoder.onnx",
}


@pytest.fixture(scope="module")
def tiny(small, networks, tmp_path_factory):
    """An avatar of 7 frames of 200 x 140."""
    frames, _ = small
    folders = Folders(
        tmp_path_factory.mktemp("live"), frames[:7, :140, :200], [[20, 30, 120, 130]] * 7, networks
    )
    return folders.native("tiny")


@pytest.fixture(scope="module", params=["meter", "identity"])
def generator(request):
    """One shows how loud the speech is; the other gives its picture back."""
    return {"generator": CASES / f"{request.param}.onnx"}


@pytest.fixture(scope="module")
def pipeline(tiny, generator) -> Pipeline:
    return Pipeline(Avatar.load(tiny, **NETWORKS | generator), batch_size=4)


@pytest.fixture(scope="module")
def resident(tiny, generator) -> Pipeline:
    """The same, with all frames of the avatar in memory, as on a GPU."""
    avatar = Avatar.load(tiny, **NETWORKS | generator)
    avatar._frames = avatar.batch(list(range(len(avatar))))[0]
    return Pipeline(avatar, batch_size=4)


@pytest.fixture(params=[CpuRenderer, GpuRenderer])
def make(request, pipeline, resident):
    kind = request.param
    return lambda **options: kind(pipeline if kind is CpuRenderer else resident, **options)


def rendered(pipeline: Pipeline, pcm: np.ndarray, count: int) -> torch.Tensor:
    """The first frames of a render of a session's whole stream."""
    pcm = np.concatenate([pcm, np.zeros(16_000, np.float32)])
    frames = torch.cat(list(pipeline.render(torch.from_numpy(pcm))))
    return frames[:count]


def taken(stage: Stage, session: Session, most: int) -> tuple[np.ndarray, torch.Tensor]:
    """The sound and the frames of up to that many pieces."""
    pieces = stage.take(session, most)
    if not pieces:
        return np.empty(0, np.float32), torch.empty(0)
    frames = torch.cat([piece.frames for piece in pieces])
    return np.concatenate([piece.sound[0] for piece in pieces]), frames


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cuts=st.lists(st.integers(1, 9_000), min_size=1, max_size=8), turns=st.integers(1, 7))
def test_frames_of_two_sessions_are_those_of_renders(make, pipeline, cuts, turns):
    """In one batch, from speech in pieces, with silence before and after it."""
    stage = Stage(make())
    numbers = _picture_numbers(len(pipeline.avatar), "pingpong", None)
    sessions = [stage.open(picture=numbers) for _ in range(2)]
    got: list[list] = [[], []]
    for step, samples in enumerate(cuts):
        for seed, session in enumerate(sessions):
            session.push(voice(10 * step + seed, samples))
            got[seed].append(taken(stage, session, turns))
    for seed, session in enumerate(sessions):
        session.flush()
        got[seed].append(taken(stage, session, 40))
        pcm = np.concatenate([sound for sound, _ in got[seed] if len(sound)])
        frames = torch.cat([frames for sound, frames in got[seed] if len(sound)])
        expected = rendered(pipeline, pcm, len(frames))
        assert torch.equal(frames[:-15], expected[: len(frames) - 15])


def test_idle_frames_are_the_same_when_they_come_again(make, pipeline):
    """The avatar's frames three times forth and back: generated once, then kept."""
    stage = Stage(make())
    calls = counted_generator(stage.renderer)
    count = 3 * (2 * len(pipeline.avatar) - 2)
    session = stage.open(picture=_picture_numbers(len(pipeline.avatar), "pingpong", None))
    pcm, frames = taken(stage, session, count)
    assert torch.equal(frames[:-8], rendered(pipeline, pcm, count)[:-8])
    first = 9  # these see zeros before the stream's beginning
    twice = 2  # where the avatar turns, a batch of four may show a picture twice
    assert 0 <= sum(calls) - first - len(pipeline.avatar) <= twice


def counted_generator(renderer) -> list[int]:
    """How many frames each call of the generator makes from here on."""
    calls = []
    finish = renderer._pipeline.finish

    def counting(buffers, batch, n, *rest, **options):
        if options.get("generate") is None:
            calls.append(n)
        return finish(buffers, batch, n, *rest, **options)

    renderer._pipeline = copy(renderer._pipeline)
    renderer._pipeline.finish = counting
    return calls


def test_kept_mouths_have_bounded_memory(make, pipeline, monkeypatch):
    """With room for few, the oldest go, and come again as they were."""
    monkeypatch.setattr(gpu_renderer, "IDLE_BYTES", 0)  # as many as a batch has
    monkeypatch.setattr(renderer, "IDLE_BYTES", 100_000)
    stage = Stage(make())
    count = 3 * (2 * len(pipeline.avatar) - 2)
    session = stage.open(picture=_picture_numbers(len(pipeline.avatar), "pingpong", None))
    pcm, frames = taken(stage, session, count)
    assert torch.equal(frames[:-8], rendered(pipeline, pcm, count)[:-8])
    made = stage.renderer
    if isinstance(made, CpuRenderer):
        assert made._bytes == sum(box.numel() for box in made._boxes.values())
        assert made._bytes <= 100_000 or len(made._boxes) == 1
    else:
        assert len(made._rows) == 4 and sorted(made._rows.values()) == [0, 1, 2, 3]


@pytest.mark.parametrize("format", ["nv12", "bgr", "rgba"])
def test_formats(tiny, format):
    avatar = Avatar.load(tiny, **NETWORKS)
    avatar._frames = avatar.batch(list(range(len(avatar))))[0]
    pipeline = Pipeline(avatar, batch_size=4)
    found = {}
    for name in ("rgb", format):
        stage = Stage(GpuRenderer(pipeline, format=name))
        session = stage.open(picture=_picture_numbers(len(avatar), "pingpong", None))
        session.push(voice(1, 12_000))
        session.flush()
        found[name] = taken(stage, session, 40)[1]
    assert torch.equal(found[format], kernels.convert_color(found["rgb"], "rgb", format))


def test_a_generator_that_returns_nan_ends_the_sessions(tiny):
    avatar = Avatar.load(tiny, **NETWORKS | {"generator": CASES / "nan.onnx"})
    with pytest.raises(InputError, match=r"nan\.onnx: the generator returns NaN in a video frame"):
        CpuRenderer(Pipeline(avatar, batch_size=1)).warm_up()


def test_no_graph_is_captured_after_the_warm_up(resident, monkeypatch):
    """Generated and kept mouths, in batches of each size, in each place of the ring."""
    ran = set()

    def run(_, key, parts, __):
        ran.add((key, *(part.name for part in parts)))
        for part in parts:
            part.work()

    monkeypatch.setattr(CpuExecutor, "run", run)
    renderer = GpuRenderer(resident)
    renderer.warm_up()
    warm = set(ran)
    for silent in (False, True, True):
        for size in (1, 2, 4):
            for _ in range(3):
                renderer.render([Job(0, 20, picture, silent) for picture in range(size)])
    for windows in (1, 9):
        renderer.hear([Window(RING_ROWS, np.zeros(WINDOW_SAMPLES, np.float32))] * windows)
    assert ran == warm


def test_a_batch_is_one_upload_and_one_graph(resident, monkeypatch):
    """Of frames in which somebody speaks."""
    calls = []

    def run(_, key, parts, __):
        calls.append([part.name for part in parts])
        for part in parts:
            part.work()

    def noted(values, out):
        calls.append("upload")
        return upload(values, out)

    upload = buffers.copy_to_device
    monkeypatch.setattr(CpuExecutor, "run", run)
    for module in (buffers, gpu_renderer, rings):
        monkeypatch.setattr(module, "copy_to_device", noted)
    renderer = GpuRenderer(resident)
    calls.clear()
    renderer.render([Job(0, 20, picture, silent=False) for picture in range(3)])
    assert calls == ["upload", ["windows", "face_input", "generator", "composite"]]


def test_everything_runs_before_the_first_session(make):
    """Warming up leaves no ring taken, and sessions find what they would have found."""
    warm = make()
    free = len(warm.rings._free)
    warm.warm_up()
    assert len(warm.rings._free) == free
