"""Live sessions on a GPU: a CPU's frames, what they allocate, what they wait for."""

import gc
import threading
import weakref

import numpy as np
import pytest
import torch

import kernels
from engine import Avatar, Pipeline
from engine.live import Live, Scheduler
from engine.live.features import RING_ROWS, Window
from engine.live.gpu_renderer import GpuRenderer
from engine.live.job import Job
from engine.live.live import _picture_numbers
from engine.live.timing import WINDOW_SAMPLES
from tests.engine.live.stage import Stage, until_end, voice
from tests.engine.test_on_gpu import inside, psnr

pytestmark = pytest.mark.gpu

BATCH = 8


@pytest.fixture(scope="module")
def pipeline(native, fp16_safe_checkpoints) -> Pipeline:
    return Pipeline(Avatar.load(native, device="cuda", **fp16_safe_checkpoints), batch_size=BATCH)


def shown(stage: Stage, avatar: Avatar, speech: np.ndarray, count: int) -> torch.Tensor:
    """The first frames of a session, which others share batches with."""
    numbers = _picture_numbers(len(avatar), "pingpong", None)
    session, *others = [stage.open(picture=numbers) for _ in range(3)]
    frames = []
    for part in np.array_split(speech, 9):
        session.push(part)
        for seed, other in enumerate(others):
            other.push(voice(seed, len(part)))
            stage.take(other, 5)
        frames += [piece.frames for piece in stage.take(session, 10)]
    session.flush()
    while len(frames) < count:
        frames += [piece.frames for piece in stage.take(session, 10)]
    return torch.cat(frames)[:count].cpu()


class GpuStage(Stage):
    """A stage on which frames come later."""

    def settle(self) -> None:
        super().settle()
        while not self.scheduler._hand_out._made.empty():
            self.scheduler._hand_out.next()
            super().settle()


def test_the_cpus_frames(native, fp16_safe_checkpoints, pipeline, speech):
    pcm = speech[16000:43200].numpy()
    count = len(pcm) // 640 + 20  # and some in which nobody speaks
    frames = shown(GpuStage(GpuRenderer(pipeline)), pipeline.avatar, pcm, count)
    whole = torch.cat([torch.from_numpy(pcm), torch.zeros(32000)])
    wanted = torch.cat(list(Pipeline(Avatar.load(native, **fp16_safe_checkpoints)).render(whole)))[
        :count
    ]
    face = inside(pipeline, count)
    assert torch.equal(frames[~face], wanted[~face])
    assert psnr(frames[face], wanted[face]) >= 50


@pytest.mark.parametrize("on_host", [True, False])
@pytest.mark.parametrize("format", ["rgb", "i420", "nv12"])
def test_formats_and_places(native, fp16_safe_checkpoints, speech, format, on_host):
    avatar = Avatar.load(native, device="cuda", **fp16_safe_checkpoints)
    avatar.height -= avatar.height % 2
    avatar._frames = avatar.frames[:, : avatar.height].contiguous()
    pipeline, pcm = Pipeline(avatar, batch_size=BATCH), speech[16000:30000].numpy()
    rgb = shown(GpuStage(GpuRenderer(pipeline)), avatar, pcm, 30)
    stage = GpuStage(GpuRenderer(pipeline, format=format, on_host=on_host))
    session = stage.open(picture=_picture_numbers(len(avatar), "pingpong", None))
    session.push(pcm)
    piece = stage.take(session, 1)[0]
    assert piece.frames.is_cuda != on_host and piece.frames.is_pinned() == on_host
    stage = GpuStage(GpuRenderer(pipeline, format=format, on_host=on_host))
    wanted = rgb if format == "rgb" else kernels.convert_color(rgb, "rgb", format)
    assert torch.equal(shown(stage, avatar, pcm, 30), wanted)


def test_kept_mouths_are_the_same(pipeline):
    """Of frames in which nobody speaks, generated and then kept."""
    renderer = GpuRenderer(pipeline)
    renderer.warm_up()
    jobs = [Job(1, 20, picture, silent=True) for picture in range(BATCH)]
    found = []
    for _ in range(3):
        rendered = renderer.render(jobs)
        rendered.wait()
        found.append(torch.cat(rendered.frames).clone())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_nothing_is_allocated_or_waited_for(pipeline):
    """600 batches of new features and frames, once everything has run."""
    if not pipeline.generator.capturable:
        pytest.skip("ONNX Runtime may allocate")
    renderer = GpuRenderer(pipeline)
    renderer.warm_up()
    slots = [renderer.rings.open() for _ in range(BATCH)]
    samples = voice(1, WINDOW_SAMPLES)

    def batch(number: int) -> None:
        renderer.hear(
            [
                Window(slot * RING_ROWS + (number + k) % RING_ROWS, samples if k else None)
                for k, slot in enumerate(slots)
            ]
        )
        jobs = [Job(slot, 100 + number, number % 12, silent=k < 3) for k, slot in enumerate(slots)]
        rendered.append(renderer.render(jobs))
        if len(rendered) > 2:  # as the thread that hands them out
            rendered.pop(0).wait()

    rendered: list = []
    for number in range(40):
        batch(number)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(600):
            batch(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    after = torch.cuda.memory_stats()
    for what in ("allocation.all.allocated", "segment.all.allocated", "num_device_alloc"):
        assert after[what] == before[what], what


def test_one_device_has_two_names(native, fp16_safe_checkpoints):
    scheduler = Scheduler()
    for name in ("cuda", "cuda:0"):
        avatar = Avatar.load(native, device=name, **fp16_safe_checkpoints)
        with Live(avatar, batch_size=1, scheduler=scheduler) as live:
            kept = weakref.ref(live._renderer)
        del live
        gc.collect()
        assert kept() is None


def test_many_sessions_from_threads(native, fp16_safe_checkpoints):
    """As fast as they are taken, each with its own sound and its own frames."""
    avatar = Avatar.load(native, device="cuda", **fp16_safe_checkpoints)
    results: dict[int, tuple[np.ndarray, torch.Tensor]] = {}

    def client(live: Live, number: int, seed: int) -> None:
        with live.open(clock="taken") as session:
            session.push(voice(seed, 20_000))
            session.flush()
            pieces = until_end(session)
            sound = np.concatenate([piece.sound[0] for piece in pieces])[:20_000]
            results[number] = sound, torch.cat([piece.frames for piece in pieces])

    with Live(avatar, batch_size=BATCH) as live:
        clients = [threading.Thread(target=client, args=(live, n, n % 4)) for n in range(16)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(60)
        assert live.capacity() > 1
    for number in range(16):
        sound, frames = results[number]
        assert np.array_equal(sound, voice(number % 4, 20_000))
        same = (frames.int() - results[number % 4][1].int()).abs()
        assert same.max() <= 2 and (same == 0).float().mean() >= 0.99
