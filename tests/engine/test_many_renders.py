"""Many renders at a time, one after another, and abandoned."""

import gc
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import engine.admission
from engine import Avatar, InputError, Pipeline
from tests.engine import tiny


@pytest.fixture(scope="module")
def avatar(tmp_path_factory) -> Avatar:
    folder = tmp_path_factory.mktemp("avatars") / "tiny"
    return Avatar.load(tiny.write_avatar(folder))


@pytest.fixture(scope="module")
def short(speech) -> torch.Tensor:
    """0.5 s: 11 frames."""
    return speech[16000:24000]


def test_eight_threads_render_as_if_alone(avatar, speech):
    """32 renders of other speech, from other frames, in other loops and modes."""
    pipeline = Pipeline(avatar, batch_size=3)

    def finished(job: int) -> torch.Tensor:
        pcm = speech[1000 * job : 1000 * job + 8000]
        loop, mode = ("pingpong", "wrap")[job % 2], ("crop", "direct")[job % 3 % 2]
        options = {"loop": loop, "mode": mode, "start_frame": job % 6}
        return torch.cat(list(pipeline.render(pcm, **options)))

    alone = [finished(job) for job in range(32)]
    assert len({frames.sum().item() for frames in alone}) == 32  # the renders differ
    with ThreadPoolExecutor(8) as threads:
        for job, frames in enumerate(threads.map(finished, range(32))):
            assert torch.equal(frames, alone[job]), job


def delete(render):
    next(render)
    del render


def close(render):
    next(render)
    render.close()


def throw(render):
    next(render)
    with pytest.raises(KeyError):
        render.throw(KeyError("of the caller"))


def leave_unstarted(render):
    pass


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="other systems have no /proc")
def test_abandoned_renders_leave_nothing(avatar, short):
    """Neither threads nor memory: 200 of them would be 1 GB."""
    pipeline, ways = Pipeline(avatar, batch_size=1), (delete, close, throw, leave_unstarted)

    def abandon(count: int) -> tuple[int, int, int]:
        for number in range(count):
            ways[number % 4](pipeline.render(short))
        gc.collect()
        return threading.active_count(), len(os.listdir("/proc/self/task")), resident()

    others = set(threading.enumerate())  # of a session in another test that is being closed
    before, after = abandon(20), abandon(200)
    assert after[:2] <= before[:2]
    new = set(threading.enumerate()) - others
    assert not [thread for thread in new if thread.name.startswith("viseme")]
    assert after[2] - before[2] < 100e6
    assert pipeline._admission._running == 0


# --- the limit -----------------------------------------------------------------------------------


def test_one_render_too_many(avatar, short):
    pipeline = Pipeline(avatar, batch_size=4, max_renders=2)
    first, second, third = (pipeline.render(short) for _ in range(3))
    next(first), next(second)
    message = r"^2 renders are running, which is max_renders of this pipeline; wait for one to end"
    with pytest.raises(InputError, match=message):
        next(third)
    first.close()
    begun = pipeline.render(short)
    next(begun)
    with pytest.raises(InputError, match=message):
        next(pipeline.render(short))
    assert sum(map(len, second)) == 7  # the last batches, 4 frames were taken before
    assert sum(map(len, pipeline.render(short))) == 11
    next(pipeline.render(short))  # and is deleted
    assert sum(map(len, pipeline.render(short))) == 11


def test_a_render_that_fails_is_not_counted_any_more(avatar, short, monkeypatch):
    pipeline = Pipeline(avatar, max_renders=1)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(pipeline.render(short))
    assert sum(map(len, pipeline.render(short))) == 11


def test_the_limit_is_positive(avatar):
    with pytest.raises(InputError, match="max_renders is 0; expected at least 1"):
        Pipeline(avatar, max_renders=0)


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        # A frame takes 4.11 MB: the generator's 6 + 3 planes of 320 x 320 and 8192 features in
        # float32, a face crop of 328 x 328 x 3, and three of the avatar's frames of 96 x 80 x 3.
        # Eight of them, 32 windows of the audio encoder, and 1024 features take 35.2 MB. Half of
        # 10 GB is 141.98 times that.
        (10e9, 141),
        (1e9, 14),
        (1e6, 1),
        (0, 1),
        (None, None),
    ],
)
def test_the_limit_comes_from_the_memory(avatar, monkeypatch, available, expected):
    memory = None if available is None else int(available)
    monkeypatch.setattr(engine.admission, "available_bytes", lambda: memory)
    assert Pipeline(avatar, batch_size=8)._admission.limit == expected


def test_the_limit_is_enough_here(avatar):
    assert Pipeline(avatar)._admission.limit >= 1
