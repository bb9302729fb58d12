"""What `Live` lets in, and several avatars on one device."""

import gc
import threading
import time
import weakref
from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest
import torch

from engine import Avatar
from engine.errors import DeviceError, InputError
from engine.live import Live, Scheduler, renderer
from engine.live.job import Rendered
from engine.live.stream import SpeechStream
from tests.engine.files import Folders
from tests.engine.live.stage import Clock, voice
from tests.engine.live.test_renderers import NETWORKS, tiny  # noqa: F401 (a fixture)


@pytest.fixture
def avatar(tiny):  # noqa: F811
    return Avatar.load(tiny, **NETWORKS)


@pytest.fixture
def live(avatar):
    """No thread makes frames, and no time passes."""
    with Live(avatar, precision="fp32", now=Clock(), start=False) as live:
        yield live


def test_utterances_that_wait_are_bounded(live):
    """Each takes a frame at least, so samples alone are no bound."""
    one = np.full(1, 0.1, np.float32)
    with live.open(sample_rate=48000, clock="taken") as session:
        for _ in range(1000):
            session.push(one)
            session.flush()
        with pytest.raises(InputError, match="^1000 utterances wait to be shown"):
            session.push(one)
        live.scheduler.step()
        assert session.take(0).end
        session.push(one)
        session.push(one)  # to the one that was begun
        session.flush()
        with pytest.raises(InputError, match="1000 utterances wait"):
            for _ in range(60):  # some are in frames that are made already
                session.push(one)
                session.flush()


def test_an_utterance_that_has_ended_keeps_no_converter():
    """A resampler holds 150 kB, and a thousand utterances may wait."""
    made = []

    class Converter:
        def __init__(self):
            made.append(weakref.ref(self))

        def __call__(self, sound):
            return sound[0]

        def flush(self):
            return np.zeros(3, np.float32)

    stream = SpeechStream(Fraction(25), 16000, 1, prebuffer=0, converter=Converter)
    for _ in range(2):
        utterance = stream.utterance(5)
        sound = np.ones((1, 5), np.float32)
        utterance.append(sound, utterance.convert(sound))
        stream.flush()
    assert [ref() for ref in made] == [None, None] and stream.waiting_utterances == 2


def costs(live: Live, seconds: float) -> None:
    """Let a frame cost that many seconds."""
    batches = live.scheduler.costs.of(live._renderer)
    batches._seconds_per_frame = {1: seconds}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 7999}, "sample rate is 7999; expected 8000 to 192000"),
        ({"sample_rate": 24000.0}, "sample rate is 24000.0; expected an integer"),
        ({"ahead": 2.5}, "ahead is 2.5; expected an integer"),
        ({"sample_rate": 192001}, "sample rate is 192001; expected 8000 to 192000"),
        ({"channels": 3}, "channels is 3; expected 1 or 2"),
        ({"prebuffer": -0.1}, "prebuffer is -0.1; expected 0 to 10 seconds"),
        ({"clock": "sun"}, "clock is 'sun'; expected one of: wall, taken"),
        ({"ahead": 26}, "ahead is 26; expected 0 to 25 frames"),
        ({"loop": "once"}, "loop is 'once'; expected one of: pingpong, wrap"),
        ({"start_frame": 7}, "start frame is 7; expected 0 to 6"),
    ],
)
def test_options_out_of_range(live, options, message):
    with pytest.raises(InputError, match=message):
        live.open(**options)
    assert len(live.scheduler) == 0 and len(live._renderer.rings._free) == renderer.SLOTS - 1


def test_no_more_sessions_than_there_is_time_for(live):
    """A frame of 12 ms, 25 times a second: 3 sessions take 0.9 of the time."""
    costs(live, 0.012)
    assert live.capacity() == 3
    sessions = [live.open() for _ in range(3)]
    assert live.capacity() == 3
    message = "3 sessions of this avatar are open, and cpu has time for 3 at 25 frames a second"
    with pytest.raises(DeviceError, match=message):
        live.open()
    live.open(clock="taken")  # which nobody waits for
    sessions[0].close()
    live.open()
    costs(live, 0.1)  # a device that is too slow for one serves one
    for session in sessions:
        session.close()
    live.scheduler.close_sessions(live._renderer)
    assert live.capacity() == 1
    live.open(clock="taken")  # such as a render's: it waits for those in real time
    live.open()
    with pytest.raises(DeviceError, match="cpu has time for 1 at 25"):
        live.open()


def test_no_more_sessions_from_many_threads(live, monkeypatch):
    """Which are admitted one after another, even if that takes long."""
    costs(live, 0.012)
    add = live.scheduler.add

    def slowly(state):
        time.sleep(0.05)
        add(state)

    monkeypatch.setattr(live.scheduler, "add", slowly)
    sessions, refused = [], []

    def client():
        try:
            sessions.append(live.open())
        except DeviceError as error:
            refused.append(error)

    clients = [threading.Thread(target=client) for _ in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    assert (len(sessions), len(refused)) == (3, 3)


def test_the_garbage_collector_may_drop_a_session_anywhere(live):
    """In a thread that holds a lock, while another one holds the session's and waits for it."""
    session = live.open()
    state = session._state
    session.itself = session
    del session
    with live.scheduler._changed:
        holding = threading.Event()

        def waiting():
            with state.lock:
                holding.set()
                state.wake()

        thread = threading.Thread(target=waiting, daemon=True)
        thread.start()
        assert holding.wait(60)
        collecting = threading.Thread(target=gc.collect, daemon=True)
        collecting.start()
        collecting.join(10)
        assert not collecting.is_alive()
    thread.join(60)
    live.scheduler.step()
    assert state.closed and len(live.scheduler) == 0


def test_an_integer_of_numpy_is_one(live):
    """Positions of samples would overflow 32 bits, after an hour at the latest."""
    session = live.open(sample_rate=np.int32(24000), channels=np.int64(1))
    assert type(session.sample_rate) is type(session.channels) is int


def test_a_stall_does_not_close_the_door(live):
    """One batch that took 200 times as long, when another process had the machine."""
    costs(live, 0.01)
    live.scheduler.costs.of(live._renderer).add(1, 2.0)
    assert live.capacity() == 3  # of 4
    for _ in range(30):
        live.scheduler.costs.of(live._renderer).add(1, 0.01)
    assert live.capacity() == 3
    live.scheduler.costs.of(live._renderer).add(1, 0.0)
    assert live.capacity() == 4


def test_a_closed_session_keeps_no_speech(live):
    session = live.open()
    session.push(voice(1, 16_000 * 60))
    session.close()
    assert session._state.stream.waiting_samples == 0


def test_no_more_sessions_than_there_are_rings(live, monkeypatch):
    sessions = [live.open(clock="taken") for _ in range(renderer.SLOTS - 1)]
    with pytest.raises(DeviceError, match="511 sessions are open; expected fewer"):
        live.open(clock="taken")
    sessions[7].close()
    live.scheduler.step()
    live.open(clock="taken")


def test_closed(avatar):
    live = Live(avatar, precision="fp32")
    session = live.open(clock="taken")
    live.close()
    assert session.take() is None
    with pytest.raises(InputError, match="live sessions are closed"):
        live.open()
    assert not any(thread.name.startswith("viseme-") for thread in threading.enumerate())


def test_two_avatars_share_a_device(avatar, small, networks, tmp_path):
    """Each batch has frames of one; the time is divided; closing one leaves the other."""
    scheduler = Scheduler()
    scheduler.start()
    with closing(scheduler), Live(avatar, precision="fp32", scheduler=scheduler) as first:
        folders = Folders(tmp_path, small[0][:4, :90, :110], [[5, 5, 70, 70]] * 4, networks)
        second = Avatar.load(folders.native("second"), **NETWORKS)
        second = Live(second, precision="fp32", scheduler=scheduler)
        costs(first, 0.012)
        costs(second, 0.006)
        assert (first.capacity(), second.capacity()) == (3, 6)
        in_real_time = [first.open(), second.open()]
        assert (first.capacity(), second.capacity()) == (1 + 1, 1 + 3)
        for session in in_real_time:
            session.close()
        sessions = [live.open(clock="taken") for live in (first, second, first, second)]
        sounds = [voice(seed, 12_000) for seed in range(4)]
        for session, sound in zip(sessions, sounds, strict=True):
            session.push(sound)
            session.flush()
        sizes = [(1, 140, 200, 3), (1, 90, 110, 3)]
        for session, sound, size in zip(sessions, sounds, sizes, strict=False):
            pieces = [session.take(60) for _ in range(20)]
            assert all(piece.frames.shape == size for piece in pieces)
            played = np.concatenate([piece.sound[0] for piece in pieces])
            assert np.array_equal(played[:12_000], sound)
        kept = weakref.ref(second._renderer)
        second.close()
        assert sessions[3].take() is None and sessions[2].take(60) is not None
        with pytest.raises(InputError, match="live sessions are closed"):
            second.open()
        del second, session, sessions[3], sessions[1], in_real_time
        gc.collect()
        assert kept() is None
    assert not any(thread.name.startswith("viseme-") for thread in threading.enumerate())


@pytest.mark.parametrize("clock", ["wall", "taken"])
@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("later", [True, False])
def test_a_closed_avatar_is_forgotten(tiny, avatar, clock, start, later):  # noqa: F811
    """By a scheduler that nobody else calls, with sessions that are open, closed and lost, with
    frames that were made and are being made."""
    scheduler = Scheduler(now=time.monotonic if start else Clock())
    if start:
        scheduler.start()
    with closing(scheduler):
        stays = Live(avatar, precision="fp32", scheduler=scheduler)
        stays.open(clock="taken").close()
        live = Live(Avatar.load(tiny, **NETWORKS), precision="fp32", scheduler=scheduler)
        if later:  # frames come later, as a GPU's
            render = live._renderer.render
            live._renderer.render = lambda jobs: Rendered(
                render(jobs).frames, lambda: time.sleep(0.02)
            )
        costs(live, 0.001)  # there is room for three, however slow the machine is
        sessions = [live.open(clock=clock) for _ in range(3)]
        for session in sessions:
            session.push(voice(1, 20_000))
            session.flush()
        if start:
            assert sessions[0].take(60) is not None
        else:
            scheduler.now.time += 0.1
            scheduler.step()
        sessions[1].close()
        sessions.pop()
        kept = weakref.ref(live._renderer), weakref.ref(live.avatar)
        live.close()
        live.close()
        with pytest.raises(InputError, match="closed"):
            sessions[0].push(voice(1, 1000))
        assert list(scheduler.costs._costs) == [stays._renderer]
        assert not (scheduler._plan.real_time or scheduler._plan.asked or scheduler._sessions)
        render = session = live = None
        sessions.clear()
        gc.collect()
        assert [reference() for reference in kept] == [None, None]
        assert scheduler.failure is None and stays.open(clock="taken") is not None


def test_a_session_that_is_forgotten_stays_so(live):
    """Even if its client was pushing when it was closed."""
    session = live.open()
    state = session._state
    live.scheduler.wake(state, False)
    assert state in live.scheduler._stirred
    session.close()
    live.scheduler.step()
    state.wake(now=False)
    assert not live.scheduler._stirred


def test_a_scheduler_outlives_its_avatars(avatar):
    """Whoever made it ends it, and its sessions with it."""
    scheduler = Scheduler()
    scheduler.start()
    for _ in range(2):
        with Live(avatar, precision="fp32", scheduler=scheduler) as live:
            session = live.open(clock="taken")
            assert session.take(60) is not None
        assert session.take(60) is None
    live = Live(avatar, precision="fp32", scheduler=scheduler)
    session = live.open(clock="taken")
    scheduler.close()
    assert session.take(60) is None
    with pytest.raises(InputError, match="live sessions are closed"):
        live.open()
    kept = weakref.ref(live._renderer)
    live.close()
    del live, session
    gc.collect()
    assert kept() is None


def test_avatars_of_two_devices_do_not_share(tiny):  # noqa: F811
    other = Avatar.load(tiny, **NETWORKS)
    other.boxes = other.boxes.to("meta")  # where tensors say that they are, as on cuda:1
    scheduler = Scheduler()
    for name in ("cpu", torch.device("cpu")):
        Live(Avatar.load(tiny, **NETWORKS, device=name), precision="fp32", scheduler=scheduler)
    with pytest.raises(InputError, match="are on cpu and meta; expected one device"):
        Live(other, scheduler=scheduler)


def test_formats_of_a_gpu_on_a_cpu(avatar):
    with pytest.raises(InputError, match="format is 'nv12'; expected 'rgb' on a CPU"):
        Live(avatar, format="nv12")
