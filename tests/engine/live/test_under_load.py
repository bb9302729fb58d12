"""Sessions that are late, slow, idle or left, and what the others notice of it."""

import pytest

from engine.live.costs import BatchCosts
from tests.engine.live.stage import Stage, voice


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_session_as_fast_as_it_is_taken_leaves_the_others_in_time(batch_size, monkeypatch):
    """Its speech has no end and its client never rests; a microphone's session is not late."""
    stage = Stage(batch_size=batch_size, seconds=0.008)
    costs = stage.scheduler._costs_of(stage.renderer)
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
