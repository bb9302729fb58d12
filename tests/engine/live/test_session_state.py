"""A session as the scheduler sees it: the order of its pieces, who waits for them, and its end."""

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.live.piece import Piece
from engine.live.session import Session, SessionState, _as_float, finish

FPS = Fraction(25)


def piece(number: int, picture: bool = True) -> Piece:
    frames = torch.full((int(picture), 4, 4, 3), number, dtype=torch.uint8)
    return Piece(number, frames, np.full((1, 640), number, np.float32), FPS, False, False)


@pytest.fixture
def state() -> Iterator[SessionState]:
    """Two frames may be made ahead."""
    calls = []
    stream = SimpleNamespace(
        waiting=False, underruns=0, calls=calls, clear=lambda: calls.append("clear"),
        interrupt=lambda frame: calls.append(frame),
    )  # fmt: skip
    made = SessionState(
        None, stream, None, int, fps=FPS, clock="wall", begin=0.0, ahead=2, wake=lambda *_: None
    )
    with made.lock:  # as whoever calls it
        yield made


def numbers(state: SessionState) -> list[int]:
    return [piece.number for piece in state.queue]


def test_pieces_without_a_picture_wait_for_those_before_them(state):
    """Which are still being made. All of them, or the session would stand still."""
    for number in (1, 2, 3):
        state.deliver(piece(number, picture=False), 0.0)
    assert numbers(state) == []
    state.deliver(piece(0), 0.0)
    assert numbers(state) == [0, 1, 2, 3]
    state.deliver(piece(4), 0.0)
    assert numbers(state) == [0, 1, 2, 3, 4]


def test_who_takes_slowly_loses_pictures(state):
    """Beyond twice those that are made ahead and two; never sound, and their memory is free."""
    pieces = [piece(number) for number in range(10)]
    for one in pieces:
        state.deliver(one, 0.0)
    assert [len(one.frames) for one in state.queue] == [0] * 4 + [1] * 6
    assert state.counts.skipped == 4
    assert [one.frames.untyped_storage().size() for one in pieces[:4]] == [0] * 4
    assert [one.sound[0, 0] for one in state.queue] == list(range(10))


def test_an_interruption_drops_what_waits(state):
    """Also pieces whose turn has not come, which are made again."""
    state.deliver(piece(0), 0.0)
    state.take(0.0)
    for number in (1, 3, 4):
        state.deliver(piece(number, picture=number == 1), 0.0)
    state.interrupt()
    assert numbers(state) == [] and state.stream.calls == [1]
    new = [piece(number) for number in (1, 2, 3)]
    for one in new:
        state.deliver(one, 0.0)
    assert [queued is one for queued, one in zip(state.queue, new, strict=True)] == [True] * 3


def test_a_closed_session_holds_nothing(state):
    session = Session(state, sample_rate=16000, channels=1, now=lambda: 0.0)
    state.deliver(piece(0), 0.0)
    state.deliver(piece(2, picture=False), 0.0)
    session.close()
    session.close()
    assert state.stream.calls == ["clear"] and not state.queue and not state._early
    assert session.take() is None


def test_who_waits_is_counted(state):
    """A session that is not in real time makes frames for those that wait, and no more."""

    async def main():
        loop = asyncio.get_running_loop()
        served, left, gone = (state.waiter(loop) for _ in range(3))
        assert state.wanted == 3
        state.leave(left)
        assert state.wanted == 2
        gone.cancel()  # it has not left yet
        finish(state.deliver(piece(0), 0.0))
        await served
        assert state.wanted == 0
        for future in (served, gone):
            state.leave(future)
        assert state.wanted == 0
        state.take(0.0)
        assert not state.wait(0)
        assert state.wanted == 0

    failed = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, context: failed.append(context))
        runner.run(main())
    assert failed == []


def test_who_waited_in_a_loop_that_is_closed(state):
    """It is not waited for, and others are told."""
    loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    state.waiter(loop)
    future = state.waiter(other)
    loop.close()
    finish(state.deliver(piece(0), 0.0))
    other.run_until_complete(asyncio.wait_for(future, 30))
    other.close()


def test_sound_is_copied():
    """Whoever pushes it may write to its memory afterwards."""
    for kind in (np.asarray, torch.from_numpy):
        sound = np.full(8, 0.5, np.float32)
        taken = _as_float(kind(sound), 1)
        sound[:] = 0
        assert (taken == 0.5).all() and taken.shape == (1, 8)
    edges = _as_float(np.array([-32768, 32767], np.int16), 1)
    assert edges.tolist() == [[-1, 32767 / 32768]]
