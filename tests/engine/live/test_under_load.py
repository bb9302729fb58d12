"""Sessions that are late, slow, idle or left, and what the others notice of it."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from engine.live.costs import BatchCosts
from tests.engine.live.stage import Stage, voice


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_session_as_fast_as_it_is_taken_leaves_the_others_in_time(batch_size, monkeypatch):
    """Its speech has no end and its client never rests; a microphone's session is not late."""
    stage = Stage(batch_size=batch_size, seconds=0.008)
    costs = stage.scheduler.costs.of(stage.renderer)
    costs.add(1, 0.008)
    monkeypatch.setattr(BatchCosts, "add", lambda *_: None)  # it measures another clock
    in_real_time, fast = stage.open(clock="wall"), stage.open(clock="taken")
    fast.push(voice(1, 16_000 * 60))
    state, pieces = fast._state, []
    state.wanted += 1
    begin = stage.clock.time
    for number in range(100):
        in_real_time.push(voice(2 + number, 320))
        while stage.clock.time < begin + 0.02 * (number + 1):
            stage.scheduler.step()
            while state.take(stage.clock()) is not None:
                pass
            pieces += stage.take(in_real_time, 10)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert len(pieces) >= 47 and in_real_time.counts.underruns == 0
    assert in_real_time.counts.late == in_real_time.counts.skipped == 0
    assert fast.counts.frames > 150  # in the time that is left


def test_pieces_come_in_order_while_a_gpu_works():
    """A frame that is too late has no picture to wait for, but those before it have."""
    stage = Stage(batch_size=4)
    stage.renderer.wait = lambda: None
    made = stage.scheduler._hand_out._made
    session = stage.open(clock="wall", ahead=1)
    stage.advance(0.045)
    assert made.qsize() >= 1 and session.take(0) is None
    stage.clock.time += 0.5  # a pause of the machine
    stage.settle()
    assert session.take(0) is None
    session.interrupt()  # drops all of them
    stage.clock.time += 0.2
    stage.settle()
    pieces = stage.take(session, 100)
    while not made.empty():
        stage.scheduler._hand_out.next()
        pieces += stage.take(session, 100)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert {len(piece.frames) for piece in pieces} == {0, 1}
    stage.clock.time += 0.3  # once more, with two frames in flight
    stage.settle()
    stage.clock.time += 0.3
    stage.settle()
    while not made.empty():
        stage.scheduler._hand_out.next()
    first = len(pieces)
    pieces = stage.take(session, 100)
    assert [piece.number for piece in pieces] == list(range(first, first + len(pieces)))


def test_a_client_that_is_slow_keeps_no_memory_of_lost_pictures():
    stage = Stage()
    session, render = stage.open(clock="wall"), stage.renderer.render

    def large(jobs):
        frames = [torch.zeros(1, 20, 30, 3, dtype=torch.uint8) for _ in jobs]
        return render(jobs)._replace(frames=frames)

    stage.renderer.render = large
    stage.advance(3.0)
    pieces = stage.take(session, 100)
    kept = sum(piece.frames.untyped_storage().nbytes() for piece in pieces)
    assert len(pieces) >= 70 and kept == 8 * 20 * 30 * 3
    assert pieces[0].frames.shape == (0, 20, 30, 3)


def test_a_client_that_asks_for_nothing_is_not_taken_for_one_that_left():
    """Nothing waits for it in the pause, and what comes then has not waited long."""
    stage = Stage(abandoned=5.0)
    session = stage.open(clock="taken")
    stage.advance(6.0, step=0.2)
    for seed in range(2):  # the second one makes the scheduler look at what waits
        session.push(voice(seed, 16_000))
        stage.settle()
    assert stage.take(session, 30)
    stage.advance(6.5, step=0.2)
    assert session._state.closed  # four frames waited for 6.5 s


@pytest.mark.parametrize("step", [0.002, 0.0031])
def test_frames_that_are_not_made_early_have_their_pictures(step):
    """Begun so that they are there in time, and shown if they are not."""
    stage = Stage(seconds=0.001)
    session = stage.open(clock="wall", ahead=0)
    session.push(voice(1, 16_000))
    session.flush()
    for _ in range(50):
        stage.advance(0.04, step=step)
        assert all(len(piece.frames) for piece in stage.take(session, 100))
    assert session.counts.frames >= 49 and session.counts.skipped == 0
    late = session.counts.late
    assert late <= 1  # the first one is due when the session is opened
    stage.clock.time += 0.04
    stage.settle()
    assert session.counts.late == late + 1 and session.counts.skipped == 0


def test_cancelled_coroutines_are_forgotten():
    """A server that looks for frames of a session whose speech is not there yet."""
    session = Stage().open(clock="taken")
    session.push(voice(1, 100))

    async def impatient():
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(aiter(session)), 0.001)

    asyncio.run(impatient())
    assert session._state._waiters == [] and session._state.wanted == 0


def test_speech_that_is_long_to_convert_keeps_nobody_waiting():
    """Neither the scheduler, nor an interruption, after which the rest of it is not heard."""
    stage = Stage()
    session, other = stage.open(clock="wall"), stage.open(clock="wall")
    converting, go = threading.Event(), threading.Event()

    class Slow:
        def __call__(self, sound):
            converting.set()
            assert go.wait(60)
            return sound[0]

        def flush(self):
            return np.empty(0, np.float32)

    session._state.stream._converter = Slow
    pushing = threading.Thread(target=session.push, args=(voice(1, 40_000),), daemon=True)
    pushing.start()
    assert converting.wait(60)

    def goes_on():
        stage.advance(0.5)
        session.interrupt()

    going = threading.Thread(target=goes_on, daemon=True)
    going.start()
    going.join(30)
    waited = going.is_alive()
    go.set()
    pushing.join(60)
    going.join(60)
    assert not waited
    stage.advance(1.5)
    pieces = stage.take(session, 100)
    assert len(pieces) >= 50 and not any(piece.speaking for piece in pieces)
    assert len(stage.take(other, 100)) >= 50
    session.push(voice(2, 10_000))
    session.flush()
    stage.advance(1.0)
    assert any(piece.end for piece in stage.take(session, 100))


def test_no_samples_begin_no_utterance():
    """As a text-to-speech may send at its end; the session would wait for the rest of it."""
    stage = Stage()
    session = stage.open(clock="taken")
    session.push(voice(1, 8_000))
    session.flush()
    session.push(np.empty(0, np.float32))
    assert len(stage.take(session, 40)) == 40
