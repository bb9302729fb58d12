"""What a GPU's pipeline is made of, on the CPU: sizes, buffers, the ring; and the same code there,
where a graph is but a call."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import kernels
from engine import Avatar, InputError, Pipeline
from engine.device.arena import Arena, arena_bytes, ladder, refuse, rung
from engine.device.graphs import Graphs
from engine.device.lane import RING, Lane, Lanes, Part, _joined, lane_shapes
from engine.device.stopwatch import Stopwatch
from engine.errors import DeviceError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def short(speech) -> torch.Tensor:
    """0.5 s: 12 frames."""
    return speech[16000:24000]


class Networks:
    """Stand-ins whose outputs depend on every input, frame by frame, and cost nothing."""

    dtype, recordable, stream = torch.float32, True, None
    description = reason = "stand-in"

    def __init__(self, kind: str):
        self.kind, self.batches = kind, []

    def __call__(self, *inputs, out):
        self.batches.append(len(out))
        if self.kind == "audio_encoder":
            (windows,) = inputs
            return out.copy_(windows.flatten(1)[:, :512])
        picture, audio = inputs
        mean = audio.flatten(1).mean(1)[:, None, None, None]
        return out.copy_((picture[:, :3].flip(2) * 0.8 + mean / 10).clamp(0, 1))


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr("engine.pipeline.open_network", lambda s, *_, **__: Networks(s.kind))


@pytest.fixture
def held(native) -> Avatar:
    """An avatar all of whose frames are held, as on a GPU."""
    avatar = Avatar.load(native)
    avatar._resident = avatar.batch(list(range(len(avatar))))[0]
    return avatar


def finished(pipeline, speech, **options) -> torch.Tensor:
    return torch.cat([frames.clone() for frames in pipeline.render(speech, **options)])


# --- sizes and memory ----------------------------------------------------------------------------


def test_the_ladder():
    assert ladder(1) == (1,)
    assert ladder(25) == (1, 4, 8, 16, 25)
    assert ladder(40) == (1, 4, 8, 16, 25, 40)
    assert ladder(10) == (1, 4, 8, 10)
    assert ladder(100) == (1, 4, 8, 16, 25, 40, 100)
    for n in range(1, 41):
        size = rung(ladder(40), n)
        assert size >= n and not any(n <= smaller < size for smaller in ladder(40))
    with pytest.raises(ValueError, match="41 items do not fit"):
        rung(ladder(40), 41)


def test_an_arena_by_hand():
    shapes = {
        "a": ((3, 5), torch.uint8),  # 15 bytes: 256
        "b": ((129, 1), torch.float16),  # 258 bytes: 512
        "c": ((2,), torch.int64),
    }
    assert arena_bytes(shapes) == 256 + 512 + 256
    arena = Arena(shapes, CPU)
    assert arena.bytes == 1024
    start = arena["a"].data_ptr()
    assert [arena[name].data_ptr() - start for name in "abc"] == [0, 256, 768]
    for value, (name, (shape, dtype)) in enumerate(shapes.items(), 1):
        assert arena[name].shape == shape and arena[name].dtype == dtype
        assert arena[name].is_contiguous() and not arena[name].any()
        arena[name].fill_(value)
    for value, name in enumerate(shapes, 1):  # and nobody wrote on his neighbour
        assert (arena[name] == value).all()


def test_the_lanes_bytes_by_hand():
    """25 frames of 720 x 1280 in float16, and the ring of 3."""
    shapes = lane_shapes(25, 1280, 720, torch.float16, torch.float16)
    ring = RING * 25 * 1280 * 720 * 3
    batch = 25 * (9 * 320 * 320 * 2 + 328 * 328 * 3 + 32 * 256 * 2 + 8)
    encoder = 32 * (80 * 16 * 4 + 512 * 2)
    ranges = 2 * (25 * 3 * 2 + 32 * 2)
    assert 0 <= arena_bytes(shapes) - (ring + batch + encoder + ranges) < 256 * len(shapes)
    assert 0.2e9 < arena_bytes(shapes) < 0.3e9


def test_what_does_not_fit_is_refused():
    refuse(2 << 30, 2 << 30, CPU)
    with pytest.raises(DeviceError, match=r"need 3\.00 GiB on cpu, 2\.00 GiB are free: a smaller"):
        refuse(3 << 30, 2 << 30, CPU)


# --- graphs and lanes ----------------------------------------------------------------------------


def test_parts_are_joined_where_they_can_be_recorded():
    done = []
    parts = [
        Part("a", partial(done.append, "a")),
        Part("b", partial(done.append, "b"), stream="b's"),
        Part("c", partial(done.append, "c"), record=False),
        Part("d", partial(done.append, "d")),
    ]
    joined = _joined(parts)
    assert [(part.name, part.record, part.stream) for part in joined] == [
        ("a, b", True, "b's"),
        ("c", False, None),
        ("d", True, None),
    ]
    for part in joined:
        part.work()
    assert done == ["a", "b", "c", "d"]


def test_a_cpus_graphs_are_calls():
    graphs, calls = Graphs(CPU), []
    for _ in range(3):
        graphs.run("key", lambda: calls.append(1))
    assert len(calls) == 3 and len(graphs) == 0


def test_stages_show_in_a_profiler(monkeypatch):
    """On a GPU, with or without a stopwatch."""
    lane, names = object.__new__(Lane), []
    lane._device = torch.device("cuda")

    @contextmanager
    def noted(name):
        names.append(f"{name} {{")
        yield
        names.append("}")

    monkeypatch.setattr(torch.cuda.nvtx, "range", noted)
    lane._graphs = SimpleNamespace(run=lambda key, *_, **__: names.append(key))
    lane.run((4, 0), [Part("a", print), Part("b", print), Part("c", print, record=False)])
    assert names == ["a, b {", ("a, b", 4, 0), "}", "c {", ("c", 4, 0), "}"]
    names.clear()
    lane.run((4, 0), [Part("a", print), Part("b", print)], noted)
    assert names == ["a {", "a {", ("a", 4, 0), "}", "}", "b {", "b {", ("b", 4, 0), "}", "}"]


def test_lanes_are_taken_and_given_back():
    lanes = Lanes(lane_shapes(2, 8, 8, torch.float32, torch.float32), CPU)
    one = lanes.bytes
    with lanes.take() as a:
        with lanes.take() as b:
            assert a is not b and lanes.bytes == 2 * one
            assert a.inputs.data_ptr() != b.inputs.data_ptr()
        with lanes.take() as c:
            assert c is b
    with pytest.raises(KeyError), lanes.take() as d:
        assert d is a
        raise KeyError
    with lanes.take() as e:
        assert e is a
    slots = [e.next_slot() for _ in range(2 * RING)]
    assert [slot for slot, _ in slots] == [*range(RING)] * 2
    assert len({buffer.data_ptr() for _, buffer in slots}) == RING


# --- the pipeline with buffers that stay ---------------------------------------------------------


def test_the_same_frames_with_real_networks(native, held, short):
    expected = finished(Pipeline(Avatar.load(native)), short)
    assert torch.equal(finished(Pipeline(held, batch_size=8), short), expected)


WRAPPED = {"loop": "wrap", "start_frame": 5}


@pytest.fixture(scope="module")
def decoded(native, speech) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Speech of 43 frames, and what a pipeline without buffers that stay makes of it, by mode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.pipeline.open_network", lambda s, *_, **__: Networks(s.kind))
        pipeline, pcm = Pipeline(Avatar.load(native)), speech[:28000]
    modes = kernels.COMPOSITE_MODES
    return pcm, {mode: finished(pipeline, pcm, mode=mode, **WRAPPED) for mode in modes}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 25, 40, 41])
@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
def test_the_same_frames(stand_ins, held, decoded, batch_size, mode):
    pcm, expected = decoded[0], decoded[1][mode]
    pipeline = Pipeline(held, batch_size=batch_size)
    for _ in range(2):  # with what the first one left in the buffers, too
        batches = [frames.clone() for frames in pipeline.render(pcm, mode=mode, **WRAPPED)]
        assert torch.equal(torch.cat(batches), expected)
    total = len(expected)
    assert total == 43
    assert [len(frames) for frames in batches[:-1]] == [batch_size] * (-(-total // batch_size) - 1)
    # only sizes of the ladder were run, the last one no larger than it takes
    assert set(pipeline.generator.batches) <= set(ladder(batch_size))
    last = total % batch_size or batch_size
    assert pipeline.generator.batches[-1] == rung(ladder(batch_size), last)
    assert set(pipeline.audio_encoder.batches) <= {8, 32}


def test_a_batch_is_valid_while_two_more_are_taken(stand_ins, held, speech):
    pipeline = Pipeline(held, batch_size=4)
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for pcm in (speech[:30000], speech[30000:50000]):  # across renders too
        for frames in pipeline.render(pcm):
            kept.append((frames, frames.clone()))
            for view, copy in kept[-RING:]:
                assert torch.equal(view, copy)
    assert len(kept) > 8
    # and a ring it is: the fourth is where the first was
    assert kept[0][0].data_ptr() == kept[RING][0].data_ptr()
    assert len({view.data_ptr() for view, _ in kept}) == RING


def test_threads_have_lanes_of_their_own(stand_ins, native, held, speech):
    pieces = [speech[start : start + 20000] for start in (0, 20000, 40000)]
    alone = Pipeline(Avatar.load(native))
    expected = [finished(alone, pcm) for pcm in pieces]
    pipeline = Pipeline(held, batch_size=4)
    one = pipeline.buffer_bytes
    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            for frames, wanted in zip(
                threads.map(lambda pcm: finished(pipeline, pcm), pieces), expected, strict=True
            ):
                assert torch.equal(frames, wanted)
    assert one <= pipeline.buffer_bytes <= 3 * one


def test_interleaved_and_abandoned_renders(stand_ins, held, speech):
    pipeline = Pipeline(held, batch_size=4)
    expected = finished(pipeline, speech[:20000])
    one = pipeline.render(speech[:20000])
    two = pipeline.render(speech[:20000])
    pairs = [(a.clone(), b.clone()) for a, b in zip(one, two, strict=True)]
    assert torch.equal(torch.cat([a for a, _ in pairs]), expected)
    assert torch.equal(torch.cat([b for _, b in pairs]), expected)
    taken = pipeline.buffer_bytes
    left = pipeline.render(speech[:20000])
    next(left)
    left.close()
    assert torch.equal(finished(pipeline, speech[:20000]), expected)
    assert pipeline.buffer_bytes == taken


def test_warm_up_runs_every_size(stand_ins, held, native):
    pipeline = Pipeline(held, batch_size=5)
    pipeline.warm_up(mode="direct")
    assert pipeline.generator.batches == [5] * RING + [4] * RING + [1] * RING
    assert pipeline.audio_encoder.batches == [32, 8]
    one = pipeline.buffer_bytes
    pipeline.warm_up(renders=3)
    assert pipeline.buffer_bytes == 3 * one and pipeline.audio_encoder.batches == [32, 8] * 4
    with pytest.raises(InputError, match="renders is 0, it must be at least 1"):
        pipeline.warm_up(renders=0)
    on_cpu = Pipeline(Avatar.load(native))
    on_cpu.warm_up()
    assert on_cpu.buffer_bytes == 0 and on_cpu.generator.batches == []


@pytest.mark.parametrize(("batch_size", "first"), [(1, [8]), (4, [32]), (25, [32]), (40, [32, 32])])
def test_the_first_frames_wait_for_few_windows(stand_ins, held, speech, batch_size, first):
    pipeline = Pipeline(held, batch_size=batch_size)
    next(pipeline.render(speech))
    assert pipeline.audio_encoder.batches == first


def test_stages_are_measured_one_by_one(stand_ins, held, short):
    pipeline = Pipeline(held, batch_size=4)
    stopwatch = Stopwatch(CPU)
    assert torch.equal(finished(pipeline, short, stopwatch=stopwatch), finished(pipeline, short))
    stages = ["log_mel", "windows", "audio encoder", "face_input", "generator", "composite"]
    assert list(stopwatch.seconds()) == stages
    measured = pipeline.stats(seconds=0.5)
    assert list(measured) == stages and all(0 < s < 1 for s in measured.values())


def test_frames_of_a_cpus_avatar_are_not_held(native):
    with pytest.raises(RuntimeError, match="decoded as needed"):
        _ = Avatar.load(native).frames


def test_arguments_are_checked_before_a_lane_is_taken(stand_ins, held, short):
    pipeline = Pipeline(held, batch_size=4)
    with pytest.raises(InputError, match="start frame is 12"):
        pipeline.render(short, start_frame=12)


def test_finished_frames_are_dlpack(stand_ins, native, held, short):
    """To NumPy and back, and between libraries, without a copy."""
    for avatar in (Avatar.load(native), held):
        frames = next(Pipeline(avatar).render(short))
        array = np.from_dlpack(frames)
        assert array.ctypes.data == frames.data_ptr() and np.array_equal(array, frames.numpy())
        again = torch.from_dlpack(frames)
        assert again.data_ptr() == frames.data_ptr() and torch.equal(again, frames)
