"""The parts of a GPU render, tested on a CPU: batch sizes, buffers, the ring. For an avatar whose
frames are all decoded, the pipeline uses a GPU's buffers, and calls the stages."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import kernels
from engine import Avatar, InputError, Pipeline
from engine.device.batch_sizes import batch_sizes, round_up_to
from engine.device.buffers import RING, BufferPool, buffer_shapes, ring_shapes
from engine.device.executor import CpuExecutor
from engine.device.memory import allocate, check_fits, free_bytes, memory_bytes
from engine.device.stopwatch import Stopwatch
from engine.errors import DeviceError
from engine.pipeline import LOOK_AHEAD
from kernels.fused.log_mel import block_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def short(speech) -> torch.Tensor:
    """0.5 s: 12 frames."""
    return speech[16000:24000]


class Networks:
    """Cheap networks whose outputs depend on every input, frame by frame."""

    dtype, capturable, stream = torch.float32, True, None
    graph_bytes = 0
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
    """An avatar whose frames are all decoded, as on a GPU."""
    avatar = Avatar.load(native)
    avatar._frames = avatar.batch(list(range(len(avatar))))[0]
    return avatar


def finished(pipeline, speech, **options) -> torch.Tensor:
    return torch.cat([frames.clone() for frames in pipeline.render(speech, **options)])


# --- sizes and memory ----------------------------------------------------------------------------


def test_batch_sizes():
    assert batch_sizes(1) == (1,)
    assert batch_sizes(25) == (1, 4, 8, 16, 25)
    assert batch_sizes(40) == (1, 4, 8, 16, 25, 40)
    assert batch_sizes(10) == (1, 4, 8, 10)
    assert batch_sizes(100) == (1, 4, 8, 16, 25, 40, 100)
    sizes = batch_sizes(40)
    for n in range(1, 41):
        size = round_up_to(sizes, n)
        assert size >= n and not any(n <= smaller < size for smaller in sizes)
    with pytest.raises(ValueError, match="batch size is 41; expected at most 40"):
        round_up_to(sizes, 41)


def test_allocation_by_hand():
    shapes = {
        "a": ((3, 5), torch.uint8),  # 15 bytes: 256
        "b": ((129, 1), torch.float16),  # 258 bytes: 512
        "c": ((2,), torch.int64),
    }
    assert memory_bytes(shapes) == 256 + 512 + 256
    memory, buffers = allocate(shapes, CPU)
    assert memory.shape == (1024,) and memory.dtype == torch.uint8
    assert [buffers[name].data_ptr() - memory.data_ptr() for name in "abc"] == [0, 256, 768]
    for value, (name, (shape, dtype)) in enumerate(shapes.items(), 1):
        assert buffers[name].shape == shape and buffers[name].dtype == dtype
        assert buffers[name].is_contiguous() and not buffers[name].any()
        buffers[name].fill_(value)
    for value, name in enumerate(shapes, 1):  # no buffer overlaps its neighbour
        assert (buffers[name] == value).all()


def test_buffer_bytes_by_hand():
    """25 frames of 720 x 1280 in float16, and the ring of 3."""
    shapes = buffer_shapes(25, generator=torch.float16, audio_encoder=torch.float16)
    shapes |= ring_shapes(25, 1280, 720)
    ring = RING * 25 * 1280 * 720 * 3
    batch = 25 * (9 * 320 * 320 * 2 + 328 * 328 * 3 + 32 * 256 * 2 + 3 * 8)
    encoder = 32 * (80 * 16 * 4 + 512 * 2)
    ranges = 2 * (25 * 3 * 2 + 32 * 2)
    assert 0 <= memory_bytes(shapes) - (ring + batch + encoder + ranges) < 256 * len(shapes)
    assert 0.2e9 < memory_bytes(shapes) < 0.3e9


def test_buffers_that_do_not_fit():
    check_fits(2 << 30, 2 << 30, CPU)
    message = r"need 3\.00 GiB on cpu, of which 2\.00 GiB are free; a smaller batch size needs less"
    with pytest.raises(DeviceError, match=message):
        check_fits(3 << 30, 2 << 30, CPU)


def test_memory_of_the_graphs_is_left_free(stand_ins, held, monkeypatch):
    """Also that of graphs that other buffers of the pipeline have yet to capture."""
    needed = []

    def watched(shapes, device, besides=0):
        needed.append(besides)
        return allocate(shapes, device, besides)

    monkeypatch.setattr("engine.device.buffers.allocate", watched)
    monkeypatch.setattr(Networks, "graph_bytes", 1000)
    pipeline = Pipeline(held, batch_size=4)
    one = 4 * 1000 + 32 * 1000
    assert pipeline.graph_bytes == one and needed == [one]
    with pipeline._pool.take() as buffers, pipeline._pool.take(), pipeline._pool.take():
        assert needed == [one, 2 * one, 3 * one]
        before = pipeline.buffer_bytes
        buffers.executor.graph_bytes = 5000  # captured
        assert pipeline.buffer_bytes == before + 5000
        with pipeline._pool.take():
            assert needed[3] == 3 * one


def test_caches_are_emptied_only_for_what_does_not_fit(monkeypatch):
    """It waits for the GPU, and so for other renders."""
    free, emptied = [500], []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 4000))

    def empty():
        emptied.append(1)
        free[0] = 2000

    monkeypatch.setattr(torch.cuda, "empty_cache", empty)
    device = torch.device("cuda", 0)
    assert free_bytes(device, 500) == 500 and emptied == []
    assert free_bytes(device, 501) == 2000 and emptied == [1]
    with pytest.raises(DeviceError, match="the buffers of a render need"):
        allocate({"a": ((1500,), torch.uint8)}, device, 600)


def test_a_pool_lends_and_takes_back():
    shapes = buffer_shapes(2, generator=torch.float32, audio_encoder=torch.float32)
    frames, boxes = torch.zeros(5, 8, 8, 3, dtype=torch.uint8), torch.zeros(5, 4).int()
    pool = BufferPool(shapes | ring_shapes(2, 8, 8), frames, boxes)
    one = pool.bytes
    with pool.take() as a:
        with pool.take() as b:
            assert a is not b and pool.bytes == 2 * one
            assert a.tensors["inputs"].data_ptr() != b.tensors["inputs"].data_ptr()
        with pool.take() as c:
            assert c is b
    with pytest.raises(KeyError), pool.take() as d:
        assert d is a
        raise KeyError
    with pool.take() as e:
        assert e is a
    batches = [e.next_slot(2) for _ in range(2 * RING)]
    assert [batch.slot for batch in batches] == [*range(RING)] * 2
    assert len({batch.finished.data_ptr() for batch in batches}) == RING
    assert all(batch.frames is frames and batch.boxes is boxes for batch in batches)


# --- the pipeline with fixed buffers -------------------------------------------------------------


def test_frames_equal_those_without_fixed_buffers_with_real_networks(native, held, short):
    expected = finished(Pipeline(Avatar.load(native)), short)
    assert torch.equal(finished(Pipeline(held, batch_size=8), short), expected)


WRAPPED = {"loop": "wrap", "start_frame": 5}


@pytest.fixture(scope="module")
def decoded(native, speech) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Speech of 43 frames, and its frames from a pipeline without fixed buffers, by mode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.pipeline.open_network", lambda s, *_, **__: Networks(s.kind))
        pipeline, pcm = Pipeline(Avatar.load(native)), speech[:28000]
    modes = kernels.COMPOSITE_MODES
    return pcm, {mode: finished(pipeline, pcm, mode=mode, **WRAPPED) for mode in modes}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 25, 40, 41])
@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
def test_frames_equal_those_without_fixed_buffers(stand_ins, held, decoded, batch_size, mode):
    pcm, expected = decoded[0], decoded[1][mode]
    pipeline = Pipeline(held, batch_size=batch_size)
    for _ in range(2):  # also with the data that the first render left in the buffers
        batches = [frames.clone() for frames in pipeline.render(pcm, mode=mode, **WRAPPED)]
        assert torch.equal(torch.cat(batches), expected)
    total = len(expected)
    assert total == 43
    assert [len(frames) for frames in batches[:-1]] == [batch_size] * (-(-total // batch_size) - 1)
    # only these sizes ran, the last one as small as possible
    assert set(pipeline.generator.batches) <= set(batch_sizes(batch_size))
    last = total % batch_size or batch_size
    assert pipeline.generator.batches[-1] == round_up_to(batch_sizes(batch_size), last)
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
    # the fourth batch is in the slot of the first
    assert kept[0][0].data_ptr() == kept[RING][0].data_ptr()
    assert len({view.data_ptr() for view, _ in kept}) == RING


def test_threads_have_separate_buffers(stand_ins, native, held, speech):
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


def test_warm_up_runs_every_size(stand_ins, held, native, monkeypatch):
    """And the stages that no graph has: `log_mel` with blocks of both sizes, and the windows."""
    seen: dict[str, list] = {"log_mel": [], "mel_windows": []}
    for name, calls in seen.items():
        original = getattr(kernels, name)

        def watched(first, *rest, original=original, calls=calls, **options):
            calls.append(first)
            return original(first, *rest, **options)

        monkeypatch.setattr(kernels, name, watched)
    pipeline = Pipeline(held, batch_size=5)
    pipeline.warm_up(mode="direct")
    blocks = {block_rows(kernels.mel_rows(pcm.numel())) for pcm in seen["log_mel"]}
    assert blocks == {16, 32} and seen["mel_windows"]
    assert pipeline.generator.batches == [5] * RING + [4] * RING + [1] * RING
    assert pipeline.audio_encoder.batches == [32, 8]
    one = pipeline.buffer_bytes
    pipeline.warm_up(renders=3)
    assert pipeline.buffer_bytes == 3 * one and pipeline.audio_encoder.batches == [32, 8] * 4
    with pytest.raises(InputError, match="renders is 0; expected at least 1"):
        pipeline.warm_up(renders=0)
    on_cpu = Pipeline(Avatar.load(native))
    on_cpu.warm_up()
    assert on_cpu.buffer_bytes == 0 and on_cpu.generator.batches == []


@pytest.mark.parametrize(
    ("batch_size", "first"),
    [(1, [8]), (2, [8]), (3, [32]), (26, [32]), (27, [32, 32]), (40, [32, 32])],
)
def test_the_first_frames_wait_for_few_windows(stand_ins, held, speech, batch_size, first):
    """Six windows beyond the last frame, rounded up: 2 frames need 8, and 26 need 32. One window
    more would be noticed."""
    pipeline = Pipeline(held, batch_size=batch_size)
    next(pipeline.render(speech))
    assert pipeline.audio_encoder.batches == first


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 27])
def test_features_are_encoded_before_they_are_read(
    stand_ins, native, held, speech, monkeypatch, on_gpu, batch_size
):
    """A batch of 3 needs 9 windows, and one of 27 needs 33. The ring wraps several times."""
    monkeypatch.setattr("engine.device.buffers.FEATURE_ROWS", 0)
    pipeline = Pipeline(held if on_gpu else Avatar.load(native), batch_size=batch_size)
    pcm, found = speech[:60000], []

    def watched(features, frames, sources, *, out):
        gather(features, frames, sources, out=out)
        found.append(out.clone())

    gather = kernels.ring_feature_windows
    monkeypatch.setattr(kernels, "ring_feature_windows", watched)
    for skip in (0, 30):
        found.clear()
        counts = [len(frames) for frames in pipeline.render(pcm, skip=skip)]
        windows = kernels.mel_windows(kernels.log_mel(pcm), fps=float(pipeline.avatar.fps))
        features = windows.flatten(1)[:, : kernels.FEATURE_DIM]  # as `Networks` makes them
        expected = kernels.feature_windows(features, start=skip)
        parts = [audio[:n] for audio, n in zip(found, counts, strict=True)]
        assert torch.equal(torch.cat(parts), expected)


def test_little_is_launched_besides_the_graphs(stand_ins, held, speech, monkeypatch):
    """For each batch a copy that says where its frames and features are, and one of the ranges to
    the host; for each call of the encoder a kernel before it, and two copies after it."""
    launches: list[str] = []
    pipeline = Pipeline(held, batch_size=2)
    with pipeline._pool.take() as buffers:
        memory = buffers.tensors["places"].untyped_storage().data_ptr()

    class Launches(TorchDispatchMode):
        """Notes what reads or writes the buffers."""

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            result = function._schema.returns[0].alias_info
            tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
            used = any(value.untyped_storage().data_ptr() == memory for value in tensors)
            if used and (result is None or result.is_write):
                launches.append(str(function.overloadpacket))
            return function(*arguments, **options or {})

    def one(name, work):
        def noted(*arguments, **options):
            launches.append(name)
            with _disable_current_modes():
                return work(*arguments, **options)

        return noted

    monkeypatch.setattr(CpuExecutor, "run", one("graph", CpuExecutor.run))
    monkeypatch.setattr(kernels, "mel_windows", one("mel_windows", kernels.mel_windows))
    batches = pipeline.render(speech)
    next(batches)  # with what is done once
    seen = set()
    for _ in range(40):
        launches.clear()
        with Launches():
            next(batches)
        seen.add(tuple(launches))
    batch = "aten.copy_", "graph", "aten.copy_"
    assert seen == {batch, ("mel_windows", "graph", "aten.copy_", "aten.copy_", *batch)}


def test_look_ahead():
    """Frame 20 reads the feature `LOOK_AHEAD` after it, and none beyond."""
    features = torch.zeros(60, kernels.FEATURE_DIM)
    features[20 + LOOK_AHEAD + 1 :] = torch.nan
    assert kernels.feature_windows(features, start=20, count=1).isfinite().all()
    features[20 + LOOK_AHEAD] = torch.nan
    assert not kernels.feature_windows(features, start=20, count=1).isfinite().all()


def test_stages_are_measured_one_by_one(stand_ins, held, short):
    pipeline = Pipeline(held, batch_size=4)
    stopwatch = Stopwatch(CPU)
    assert torch.equal(finished(pipeline, short, stopwatch=stopwatch), finished(pipeline, short))
    stages = ["log_mel", "windows", "audio encoder", "face_input", "generator", "composite"]
    assert list(stopwatch.seconds()) == stages
    measured = pipeline.stats(seconds=0.5)
    assert list(measured) == stages and all(s > 0 for s in measured.values())


def test_a_cpu_avatar_keeps_no_decoded_frames(native):
    with pytest.raises(RuntimeError, match="decoded as needed"):
        _ = Avatar.load(native).frames


def test_arguments_are_checked_before_buffers_are_taken(stand_ins, held, short):
    pipeline = Pipeline(held, batch_size=4)
    with pytest.raises(InputError, match="start frame is 12"):
        pipeline.render(short, start_frame=12)


def test_finished_frames_are_dlpack(stand_ins, native, held, short):
    """They can be given to other libraries without a copy."""
    for avatar in (Avatar.load(native), held):
        frames = next(Pipeline(avatar).render(short))
        array = np.from_dlpack(frames)
        assert array.ctypes.data == frames.data_ptr() and np.array_equal(array, frames.numpy())
        again = torch.from_dlpack(frames)
        assert again.data_ptr() == frames.data_ptr() and torch.equal(again, frames)
