"""The pipeline on a GPU: its frames against the CPU's, its allocations and its waits."""

import gc
import importlib
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

import kernels
from engine import Avatar, Pipeline
from engine.build import main as build
from engine.device.buffers import RING
from engine.device.cuda_graphs import WARM_UPS, CudaGraphs
from engine.device.host_copy import copy_to_host
from engine.device.stopwatch import Stopwatch
from engine.errors import DeviceError, InputError
from engine.loop import frame_numbers
from engine.media import images
from engine.plans.edition import EDITIONS, gpu_architecture
from engine.runtime import RUNTIMES
from engine.runtime.output_check import write_ranges
from tests.tolerances import TOLERANCES, assert_close

pytestmark = pytest.mark.gpu

WARM = 3 * RING  # batches until the graphs of full batches and of the encoder are captured


def test_streams_that_capture_are_nobody_elses():
    """PyTorch hands out each stream again and again."""
    device = torch.device("cuda", 0)
    others = {
        torch.cuda.Stream(device, priority=priority).cuda_stream
        for priority in (0, -1)
        for _ in range(100)
    }
    assert CudaGraphs(device)._stream.cuda_stream not in others


@pytest.fixture(scope="module")
def short(speech) -> torch.Tensor:
    """1.7 s: 42 frames, one batch of 40 and more."""
    return speech[16000:43200]


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """12 minutes: 18,000 frames."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(12 * 60 * 16000, generator=generator).clamp_(-1, 1) / 4


@pytest.fixture(scope="module")
def expected(native, fp16_safe_checkpoints, short) -> dict[str, torch.Tensor]:
    """The CPU's frames, by mode."""
    pipeline = Pipeline(Avatar.load(native, **fp16_safe_checkpoints))
    return {mode: finished(pipeline, short, mode=mode) for mode in kernels.COMPOSITE_MODES}


@pytest.fixture(scope="module", params=RUNTIMES)
def make(request, native, fp16_safe_checkpoints, halves, tmp_path_factory):
    """A function from batch size to a pipeline of the runtime; all share an avatar."""
    files = dict(fp16_safe_checkpoints)
    if request.param == "tensorrt":
        files = _plans(halves, tmp_path_factory.mktemp("plans"))
    avatar = Avatar.load(native, device="cuda", **files)
    try:
        kept = Pipeline(avatar, batch_size=1, runtime=request.param)
    except DeviceError as error:
        pytest.skip(str(error))
    # kept, so that later pipelines share its networks, and PyTorch compiles once
    yield lambda batch_size: Pipeline(avatar, batch_size=batch_size, runtime=request.param)
    del kept


def _plans(halves, folder) -> dict:
    architecture = gpu_architecture()
    for edition in EDITIONS.values():
        if edition.installed and not edition.why_not([architecture], architecture):
            break
    else:
        pytest.skip("no TensorRT for this GPU is installed")
    for kind, path in halves.items():
        shutil.copy(path, folder / f"{kind}.onnx")
        options = ["--edition", edition.name, "--batch", "1", "25", "40"]
        assert build([kind.replace("_", "-"), str(folder / f"{kind}.onnx"), *options]) == 0
    return {kind: folder / f"{kind}.plan" for kind in halves}


def finished(pipeline: Pipeline, speech, **options) -> torch.Tensor:
    """Return all frames on the CPU, copied batch by batch, because the ring overwrites them."""
    return torch.cat([frames.cpu() for frames in pipeline.render(speech, **options)])


def inside(pipeline: Pipeline, count: int) -> torch.Tensor:
    """Return the pixels of the face boxes, (count, H, W) bool."""
    avatar = pipeline.avatar
    mask = torch.zeros(count, avatar.height, avatar.width, dtype=torch.bool)
    for at, number in zip(mask, frame_numbers(len(avatar)), strict=False):
        x0, y0, x1, y1 = avatar.boxes[number].clamp(min=0).tolist()
        at[y0:y1, x0:x1] = True
    return mask


def psnr(one: torch.Tensor, two: torch.Tensor) -> float:
    squares = (one.double() - two.double()).square().mean()
    return float(10 * torch.log10(255**2 / squares.clamp(min=1e-9)))


# 1 and 25 are batch sizes with graphs; 2, 3 and 7 are padded when the last batch is smaller; 40
# leaves a rest of 2, and is the largest
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 25, 40])
@pytest.mark.parametrize("mode", kernels.COMPOSITE_MODES)
def test_frames_equal_the_cpus(make, expected, short, batch_size, mode):
    pipeline = make(batch_size)
    frames = finished(pipeline, short, mode=mode)
    face = inside(pipeline, len(frames))
    assert frames.shape == expected[mode].shape
    assert torch.equal(frames[~face], expected[mode][~face])
    tolerance = TOLERANCES["frames", torch.uint8, "those of a CPU"]
    assert_close(frames[face], expected[mode][face], tolerance)


def test_batch_size_does_not_change_frames(make, short):
    first = finished(make(1), short)
    for batch_size in (4, 5, 16, 40):
        tolerance = TOLERANCES["frames", torch.uint8, "those of other batches"]
        assert_close(finished(make(batch_size), short), first, tolerance)


def test_renders_are_reproducible(make, short):
    pipeline = make(25)
    first = finished(pipeline, short)
    assert torch.equal(finished(pipeline, short), first)
    stopwatch = Stopwatch(pipeline.device)  # with other graphs, one for each stage
    assert torch.equal(finished(pipeline, short, stopwatch=stopwatch), first)
    stages = ["log_mel", "windows", "audio encoder", "face_input", "generator", "composite"]
    assert list(stopwatch.seconds()) == stages and min(stopwatch.seconds().values()) > 0


def test_a_batch_is_valid_while_two_more_are_taken(make, short):
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for frames in make(4).render(short):
        kept.append((frames, frames.clone()))
        for view, copy in kept[-RING:]:
            assert torch.equal(view, copy)


def test_nothing_is_allocated_or_waited_for(make, noise):
    """Over 1,000 batches, after all graphs are captured."""
    for batch_size in (1, 16):
        pipeline = make(batch_size)
        if not pipeline.generator.capturable:
            pytest.skip("ONNX Runtime is waited for")
        pipeline.warm_up()
        batches = pipeline.render(noise)
        assert sum(1 for _ in islice(batches, WARM)) == WARM
        torch.cuda.synchronize()
        before = torch.cuda.memory_stats()
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert sum(1 for _ in islice(batches, 1000)) == 1000
        finally:
            torch.cuda.set_sync_debug_mode("default")
        after = torch.cuda.memory_stats()
        for what in ("allocation.all.allocated", "segment.all.allocated", "num_device_alloc"):
            assert after[what] == before[what], what
        batches.close()


def test_the_host_never_waits_during_a_render(make, short):
    """The speech is uploaded from pinned memory, because the host would wait for any other copy."""
    pipeline = make(16)
    if not pipeline.generator.capturable:
        pytest.skip("ONNX Runtime is waited for")
    pipeline.warm_up()
    wanted = finished(pipeline, short)  # compiles the kernels for speech
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [frames.clone() for frames in pipeline.render(short)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.cat(batches).cpu(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ranges_equal_the_cpus(dtype):
    torch.manual_seed(1)
    for shape, rows in [((25, 3, 320, 320), (25, 3)), ((32, 512), (32,))]:
        output = torch.randn(shape).to(dtype)
        output.flatten(1)[3, 100], output.flatten(1)[7, 9] = float("nan"), float("-inf")
        ranges = {}
        for device in ("cpu", "cuda"):
            ranges[device] = [torch.zeros(rows, dtype=dtype, device=device) for _ in range(2)]
            write_ranges(output.to(device), *ranges[device])
        for ours, theirs in zip(*ranges.values(), strict=True):
            assert torch.equal(ours.nan_to_num(7), theirs.cpu().nan_to_num(7))


class Breaks:
    """Fake networks: the encoder returns the mel, the generator NaN where it is loud."""

    dtype, capturable, stream = torch.float16, True, None
    graph_bytes = 0
    description = reason = "stand-in"

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, *inputs, out):
        if self.kind == "audio_encoder":
            return out.copy_(inputs[0].flatten(1)[:, :512])
        picture, audio = inputs
        loud = audio.flatten(1).float().mean(1)[:, None, None, None] > -2
        return out.copy_(torch.where(loud, torch.nan, picture[:, :3]))


def test_nan_is_found_in_the_frame_where_it_begins(native, monkeypatch):
    """The GPU finds it in the same frame as the CPU, and its buffers can be used again."""
    monkeypatch.setattr("engine.pipeline.open_network", lambda s, *_, **__: Breaks(s.kind))
    noise = torch.randn(32000, generator=torch.Generator().manual_seed(4)).clamp_(-1, 1) / 4
    speech = torch.cat([torch.zeros(32000), noise])
    errors, counts = [], []
    for device in ("cpu", "cuda"):
        pipeline = Pipeline(Avatar.load(native, device=device), batch_size=8)
        quiet = finished(pipeline, speech[:32000])
        counts.append(0)
        with pytest.raises(InputError) as caught:
            for frames in pipeline.render(speech):
                counts[-1] += len(frames)
        errors.append(str(caught.value))
        assert torch.equal(finished(pipeline, speech[:32000]), quiet)
    assert "the generator returns NaN in video frame " in errors[0] and errors[1] == errors[0]
    assert 30 < counts[0] <= counts[1]


def test_memory_is_constant(make, noise):
    """10,000 frames."""
    batches = make(25).render(noise)
    assert sum(1 for _ in islice(batches, WARM)) == WARM
    torch.cuda.synchronize()
    reserved, (free, _) = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()
    assert sum(map(len, islice(batches, 400))) == 10000
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == reserved
    assert free - torch.cuda.mem_get_info()[0] < 16 << 20  # other processes may use the GPU
    batches.close()


def test_warm_up_leaves_nothing_to_capture(make, short):
    pipeline = make(25)
    pipeline.warm_up()
    with pipeline._pool.take() as buffers:
        graphs = buffers.executor._graphs
    captured = len(graphs)
    for start in (0, 3000, 12000):
        finished(pipeline, short[start:])
    assert len(graphs) == captured > 0


def test_two_pipelines_on_two_streams(make, speech):
    """They run at the same time without waiting, and give the frames of separate runs."""
    pieces = [speech[16000:56000], speech[40000:80000]]
    pipelines = [make(8), make(8)]
    alone = [finished(*pair) for pair in zip(pipelines, pieces, strict=True)]
    for _ in range(5):
        streams = [torch.cuda.Stream() for _ in pipelines]
        renders = [p.render(pcm) for p, pcm in zip(pipelines, pieces, strict=True)]
        taken: list[list[torch.Tensor]] = [[], []]
        for _ in range(-(-len(alone[0]) // 8)):
            for stream, render, copies in zip(streams, renders, taken, strict=True):
                with torch.cuda.stream(stream):
                    copies.append(next(render).clone())
        torch.cuda.synchronize()
        for copies, wanted in zip(taken, alone, strict=True):
            assert torch.equal(torch.cat(copies).cpu(), wanted)


def test_threads_and_streams_of_one_pipeline(make, speech):
    pieces = [speech[start : start + 30000] for start in (0, 20000, 40000)]
    pipeline = make(8)
    alone = [finished(pipeline, pcm) for pcm in pieces]

    def work(pcm):
        with torch.cuda.stream(torch.cuda.Stream()):
            return finished(pipeline, pcm)

    with ThreadPoolExecutor(3) as threads:
        for _ in range(3):
            for frames, wanted in zip(threads.map(work, pieces), alone, strict=True):
                assert torch.equal(frames, wanted)


def test_an_error_during_a_capture_leaves_nothing_behind():
    device, calls = torch.device("cuda", torch.cuda.current_device()), []
    graphs, counted = CudaGraphs(device), torch.zeros(1, device=device)

    def work():
        counted.add_(1)
        calls.append(1)
        if len(calls) == WARM_UPS + 1:  # during the capture
            raise KeyError("work")

    stream = torch.cuda.current_stream(device)
    with pytest.raises(KeyError, match="work"):
        graphs.run("counted", work)
    assert torch.cuda.current_stream(device) == stream and gc.isenabled() and len(graphs) == 0
    counted.zero_()
    for _ in range(3):
        graphs.run("counted", work)
    assert counted.item() == WARM_UPS + 3 and len(graphs) == 1


def test_a_pool_can_be_used_after_a_first_capture_that_failed():
    """What the work had allocated is still alive, in the exception that is kept."""
    device, fail = torch.device("cuda", torch.cuda.current_device()), [True]
    graphs, out = CudaGraphs(device), torch.zeros(1 << 20, device=device)

    def work():
        made = out + 1
        if fail and torch.cuda.is_current_stream_capturing():
            raise KeyError(made)
        out.copy_(made)

    kept = []
    for _ in range(2):
        out.zero_()
        try:
            graphs.run("key", work)
        except KeyError as error:
            kept.append(error)
            fail.clear()
    assert len(kept) == 1 and len(graphs) == 1
    assert out.unique().tolist() == [WARM_UPS + 1]


def test_a_device_that_is_waited_for_during_a_capture():
    """By another thread, as `torch.cuda.synchronize` does. Either CUDA allows it, or the capture is
    repeated. What is captured afterwards, and what is freed, is as always."""
    device = torch.device("cuda", torch.cuda.current_device())
    graphs, counted, waited = CudaGraphs(device), torch.zeros(1, device=device), []

    def wait():
        torch.cuda.set_device(device)
        try:
            torch.cuda.synchronize(device)
            waited.append(None)
        except RuntimeError as error:
            waited.append(error)

    def work():
        counted.add_(1)
        if torch.cuda.is_current_stream_capturing() and not waited:
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join(20)
        counted.add_(torch.ones_like(counted))  # allocates from the graphs' pool

    graphs.run("counted", work)
    print("torch.cuda.synchronize in another thread during a capture:", waited)
    counted.zero_()
    for key in ("counted", "counted", "other"):
        graphs.run(key, work)
    assert counted.item() == 2 * (2 + WARM_UPS + 1) and len(waited) == 1
    torch.cuda.synchronize()
    # Memory that another stream has used is free again once it is done.
    side = torch.cuda.Stream()
    for _ in range(8):
        used = torch.empty(64 << 20, dtype=torch.uint8, device=device)
        used.record_stream(side)
        del used
        torch.cuda.synchronize()
    torch.empty(1 << 20, device=device)  # looks which memory is free
    assert (
        torch.cuda.memory_stats()["active_bytes.all.current"]
        < (256 << 20) + torch.cuda.memory_allocated()
    )


def test_the_avatar_is_held_by_the_stream_that_reads_it(native, monkeypatch):
    """It was loaded on another stream, and is dropped right after the last batch was taken."""
    monkeypatch.setattr("engine.pipeline.open_network", lambda s, *_, **__: Breaks(s.kind))
    loading, reading = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(loading):
        avatar = Avatar.load(native, device="cuda")
        shape = avatar.frames.shape
    speech = torch.zeros(8000)
    with torch.cuda.stream(reading):
        pipeline = Pipeline(avatar, batch_size=25)
        expected = finished(pipeline, speech, mode="direct")  # captures
        batches = pipeline.render(speech, mode="direct")
        torch.cuda._sleep(int(2e9))  # about a second, so that the frames are read later
        frames = next(batches)
        batches.close()  # taken to its end, it would wait
    del avatar, pipeline, batches
    gc.collect()
    with torch.cuda.stream(loading):
        taken = [torch.full(shape, 255, dtype=torch.uint8, device="cuda") for _ in range(3)]
    with torch.cuda.stream(reading):
        assert torch.equal(frames.cpu(), expected)
    del taken


@pytest.mark.parametrize("runtime", ["fused", "torch"])
def test_memory_of_graphs_is_counted_and_within_the_estimate(
    native, fp16_safe_checkpoints, runtime
):
    avatar = Avatar.load(native, device="cuda", **fp16_safe_checkpoints)
    try:
        pipeline = Pipeline(avatar, batch_size=8, runtime=runtime)
    except DeviceError as error:
        pytest.skip(str(error))
    before, reserved = pipeline.buffer_bytes, torch.cuda.memory_reserved()
    pipeline.warm_up()
    graphs = pipeline.buffer_bytes - before
    assert 0 < graphs <= pipeline.graph_bytes
    torch.cuda.empty_cache()
    assert graphs <= torch.cuda.memory_reserved() - reserved + (64 << 20)


def test_warm_up_leaves_nothing_to_compile(native, fp16_safe_checkpoints, speech):
    """Speech of less than 6.4 s and of more compiles no kernel and pins no memory."""
    avatar = Avatar.load(native, device="cuda", **fp16_safe_checkpoints)
    pipeline = Pipeline(avatar, batch_size=4, runtime="torch")
    pipeline.warm_up()
    device = torch.cuda.current_device()
    kernels_of = [
        value
        for module in ("log_mel", "windows", "face_input", "composite")
        for value in vars(importlib.import_module(f"kernels.fused.{module}")).values()
        if hasattr(value, "device_caches")
    ]
    before = [len(kernel.device_caches[device][0]) for kernel in kernels_of]
    assert len(kernels_of) >= 5
    pinned = torch.cuda.host_memory_stats()["num_host_alloc"]
    for pcm in (speech[:16000], speech.repeat(4)[: 10 * 16000]):
        finished(pipeline, pcm)
    assert [len(kernel.device_caches[device][0]) for kernel in kernels_of] == before
    assert torch.cuda.host_memory_stats()["num_host_alloc"] == pinned


def test_buffers_that_do_not_fit_are_an_early_error(make):
    with pytest.raises(DeviceError, match="the buffers of a render need .* a smaller batch size"):
        make(1_000_000)


def test_copies_on_the_host(make, short):
    pipeline = make(8)
    wanted = finished(pipeline, short)
    first = 0
    for frames, pixels in copy_to_host(pipeline.render(short)):
        assert np.array_equal(pixels, wanted[first : first + len(pixels)].numpy())
        assert torch.equal(frames.cpu(), torch.from_numpy(pixels))
        first += len(pixels)
    assert first == len(wanted)


def test_dlpack(make, short):
    frames = next(make(4).render(short))
    again = torch.from_dlpack(frames)
    assert again.data_ptr() == frames.data_ptr() and torch.equal(again, frames)


def test_jpegs_of_the_gpu(make, short, tmp_path):
    """nvImageCodec's JPEGs are as close to the frames as Pillow's."""
    pipeline = make(8)
    with warnings.catch_warnings(record=True) as said:
        if not images.on_gpu(pipeline.device):
            pytest.skip(str(said[0].message) if said else "nvImageCodec does not work")
    with images.ImageWriter(tmp_path / "jpegs", "jpg", quality=95) as writer:
        for frames, pixels in copy_to_host(pipeline.render(short)):
            writer.write(frames, pixels)
    wanted = finished(pipeline, short)
    files = sorted((tmp_path / "jpegs").iterdir())
    assert len(files) == len(wanted)
    for path, frame in zip(files, wanted, strict=True):
        Image.fromarray(frame.numpy()).save(tmp_path / "cpu.jpg", quality=95, subsampling=0)
        decoded = []
        for file in (path, tmp_path / "cpu.jpg"):
            with Image.open(file) as image:
                decoded.append(torch.from_numpy(np.asarray(image.convert("RGB")).copy()))
        assert psnr(decoded[0], frame) > psnr(decoded[1], frame) - 1
