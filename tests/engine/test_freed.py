"""What nobody uses any more is freed at once: it does not wait for the garbage collector, which in a
server may not come for hours."""

import gc
import time
import weakref
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from engine import Avatar
from engine.live import Live, Scheduler
from engine.media.video import Video
from tests.engine.files import write_video
from tests.engine.tiny import write_avatar


@contextmanager
def nothing_left():
    """Check that the block leaves no garbage of ours or of PyAV."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.garbage)
        assert not [kind for kind in kinds if kind.split(".")[0] in ("av", "engine", "torch")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize("taken", [0, 3, 12])
def test_a_video(tmp_path, taken):
    path = write_video(tmp_path / "film.mp4", np.zeros((12, 48, 64, 3), np.uint8), codec="libx264")
    with nothing_left():
        video = Video(path)
        frames = video.frames()
        for _ in range(taken):
            video.pixels(next(frames)[1])
        reader = weakref.ref(video._reader)
        del video, frames
        assert reader() is None


def test_an_avatar_with_a_video(folders):
    folder = folders.native("freed", video=True)
    with nothing_left():
        avatar = Avatar.load(folder)
        assert len(avatar.batch([3, 4, 0])[0]) == 3
        freed = weakref.ref(avatar)
        del avatar
        assert freed() is None


def test_an_avatar_with_live_sessions(tmp_path):
    """Its device's scheduler goes on."""
    folder, scheduler = write_avatar(tmp_path / "avatar"), Scheduler()
    scheduler.start()
    try:
        with nothing_left():
            live = Live(Avatar.load(folder), scheduler=scheduler)
            session = live.open(clock="taken")
            session.push(np.zeros(16000, np.float32))
            session.flush()
            assert all(session.take(30) is not None for _ in range(5))
            renderer = weakref.ref(live._renderer)
            live.close()
            del live, session
            ends = time.monotonic() + 30
            while renderer() is not None and time.monotonic() < ends:  # a thread may hold it yet
                time.sleep(0.01)
            assert renderer() is None
    finally:
        scheduler.close()
