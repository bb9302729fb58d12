"""When frames are made, with a clock that the tests move."""

import asyncio
import gc
import threading
import weakref
from fractions import Fraction

import numpy as np
import pytest

from engine.errors import DeviceError, InputError
from engine.live.session import Session
from engine.live.timing import first_feature_of, first_row, rows_needed, samples_needed
from tests.engine.live.stage import FakeRenderer, Stage, until_end, voice


def test_a_frame_depends_on_this_much_speech():
    """By hand: mel rows to int(3.2 (i + 6)) + 15, samples to 200 times that row + 400."""
    fps = Fraction(25)
    assert samples_needed(0, fps) == 200 * (int(3.2 * 6) + 15) + 400 == 7200
    for frame in range(200):
        row = int(3.2 * (frame + 6)) + 15
        assert rows_needed(frame, fps) == row + 1
        assert samples_needed(frame, fps) == 200 * row + 400
        assert 0.442 <= samples_needed(frame, fps) / 16000 - frame / 25 <= 0.453
    for sample in range(0, 80_000, 77):
        feature = first_feature_of(sample, fps)
        assert 200 * (first_row(feature, fps) + 15) + 400 > sample
        assert feature == 0 or 200 * (first_row(feature - 1, fps) + 15) + 400 <= sample


def test_an_utterance_waits_for_its_prebuffer():
    stage = Stage()
    session = stage.open(clock="wall")
    stage.advance(1.0)
    stage.take(session, 100)
    session.push(voice(1, 7199))
    stage.advance(1.0)
    assert not any(piece.speaking for piece in stage.take(session, 100))
    session.push(voice(2, 1))
    stage.advance(0.5)
    pieces = stage.take(session, 100)
    assert pieces[0].speaking and pieces[0].sound[0, 0] == voice(1, 1)[0]


@pytest.mark.parametrize("count", [1, 100, 640, 5000, 5120])
def test_a_flush_places_what_is_there(count):
    stage = Stage()
    session = stage.open(clock="wall")
    session.push(voice(1, count))
    session.flush()
    stage.advance(1.5)
    pieces = stage.take(session, 100)
    assert [piece.speaking for piece in pieces[:9]] == [n * 640 < count for n in range(9)]
    assert [piece.number for piece in pieces if piece.end] == [(count - 1) // 640]
    assert session.counts.underruns == 0


def test_frames_come_in_real_time_and_little_before():
    stage = Stage()
    session = stage.open(clock="wall")
    begin, seen = stage.clock.time, []
    for _ in range(500):
        stage.advance(0.01, step=0.01)
        stage.settle()
        seen += [(piece, stage.clock.time - begin) for piece in stage.take(session, 100)]
    assert len(seen) == pytest.approx(125, abs=1)
    for piece, time in seen:  # due 3 frames after the session was opened, and made up to 3 earlier
        assert -1e-6 <= time - float(piece.time) <= 0.12
        assert session.due(piece.number) == pytest.approx(begin + float(piece.time) + 0.12)
    assert session.counts.late == 0


def test_speech_that_is_not_there_yet_is_waited_for_until_its_frame_is_due():
    """A microphone that delivers as it goes: nothing is assumed, since nothing is made early."""
    stage = Stage()
    session = stage.open(clock="wall")
    speech = voice(1, 32_000)
    for part in np.array_split(speech, 100):
        session.push(part)
        stage.advance(0.02)
    session.flush()
    stage.advance(1.0)
    pieces = stage.take(session, 200)
    first = next(piece.number for piece in pieces if piece.speaking)
    sound = np.concatenate([piece.sound[0] for piece in pieces[first:]])
    assert np.array_equal(sound[: len(speech)], speech)
    assert session.counts.underruns == 0 and session.counts.late == 0
    # 0.45 s behind, the frame that was begun, and what is made ahead
    assert first / 25 <= 0.45 + 0.04


def test_an_utterance_that_runs_dry():
    stage = Stage()
    session = stage.open(clock="wall")
    session.push(voice(1, 16_100))
    stage.advance(2.0)
    assert session.counts.underruns == 1
    session.push(voice(2, 16_000))
    session.flush()
    stage.advance(2.0)
    pieces = stage.take(session, 200)
    sound = np.concatenate([piece.sound[0] for piece in pieces])
    (loud,) = np.nonzero(sound)
    assert np.array_equal(sound[loud[0] : loud[0] + 16_100], voice(1, 16_100))
    assert [piece.end for piece in pieces].count(True) == 1
    assert session.counts.underruns == 1
    spoken = np.concatenate([piece.sound[0, : piece.spoken] for piece in pieces])
    assert np.array_equal(spoken, np.concatenate([voice(1, 16_100), voice(2, 16_000)]))
    assert [bool(piece.spoken) for piece in pieces] == [piece.speaking for piece in pieces]


@pytest.mark.parametrize("count", [16_000, 16_100])
def test_every_utterance_ends_in_a_frame_of_its_own(count):
    """Also one that ran dry and ends without more speech, right before a very short one: who
    counts ends knows when all speech was shown."""
    stage = Stage()
    session = stage.open(clock="wall")
    session.push(voice(1, count))
    stage.advance(2.0)
    session.flush()
    for _ in range(2):
        session.push(voice(2, 100))
        session.flush()
    stage.advance(2.0)
    assert [piece.end for piece in stage.take(session, 200)].count(True) == 3


def test_after_an_interruption_at_most_two_old_frames_come():
    stage = Stage()
    session = stage.open(clock="wall")
    session.push(voice(1, 80_000))
    stage.advance(1.0)
    before = stage.take(session, 10)
    assert before[-1].speaking
    session.interrupt()
    stage.advance(1.0)
    after = stage.take(session, 100)
    assert after[0].number == before[-1].number + 1
    assert not any(piece.speaking for piece in after)
    assert not after[1].sound.any() and after[0].sound[0, 1] != 0
    assert session.counts.interruptions == 1


def test_what_was_being_made_during_an_interruption_does_not_come():
    stage = Stage()
    session = stage.open(clock="wall")
    session.push(voice(1, 80_000))
    render = stage.renderer.render

    def interrupted(jobs):
        stage.renderer.render = render
        session.interrupt()
        return render(jobs)

    stage.advance(0.3)
    taken = stage.take(session, 3)
    stage.renderer.render = interrupted
    stage.advance(1.0)
    pieces = [*taken, *stage.take(session, 100)]
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert [piece.speaking for piece in pieces].count(True) == 3


@pytest.mark.parametrize("wait", [None, lambda: None])
def test_interruptions_are_counted_until_all_speech_was_taken(wait):
    """Also while a GPU is at work on its last frames."""
    stage = Stage()
    stage.renderer.wait = wait
    session = stage.open(clock="taken")
    for taken, count in ((0, 1), (1, 2), (2, 2)):
        session.push(voice(1, 1280))
        session.flush()
        stage.settle()
        stage.scheduler._hand_out.take_all()
        pieces = stage.take(session, taken)
        assert [piece.speaking for piece in pieces] == [True] * taken
        session.interrupt()
        session.interrupt()
        assert session.counts.interruptions == count
        stage.settle()
        stage.scheduler._hand_out.take_all()
    session.push(voice(1, 640))
    session.flush()
    stage.settle()  # handed out later
    session.interrupt()
    assert session.counts.interruptions == 3


def test_frames_of_before_an_interruption_make_room_when_they_are_there():
    """A GPU was at work on them. The session does not wait for a look at all sessions."""
    stage = Stage()
    stage.renderer.wait = lambda: None  # handed out later
    session = stage.open(clock="taken")
    session.push(voice(1, 32000))
    stage.settle()
    made = len(stage.renderer.jobs)
    session.interrupt()
    session.push(voice(2, 32000))
    stage.settle()
    assert len(stage.renderer.jobs) == made > 0
    stage.scheduler._hand_out.take_all()
    stage.settle()
    stage.scheduler._hand_out.take_all()
    first = stage.take(session, 1)[0]
    assert first.number == 0 and np.array_equal(
        first.sound[0, 160:], voice(2, 640)[160:]
    )  # the fade


def test_a_device_that_is_too_slow_skips_pictures_and_never_sound():
    stage = Stage(batch_size=1, seconds=0.1)
    session = stage.open(clock="wall")
    speech = voice(1, 48_000)
    session.push(speech)
    session.flush()
    pieces = []
    for _ in range(100):
        stage.advance(0.04)
        pieces += stage.take(session, 100)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    sound = np.concatenate([piece.sound[0] for piece in pieces])
    assert np.array_equal(sound[: len(speech)], speech)
    shown = [piece for piece in pieces if len(piece.frames)]
    assert 0.3 < len(shown) / len(pieces) < 0.5  # one in 0.1 s
    assert session.counts.skipped == len(pieces) - len(shown)
    assert session.counts.late >= len(shown) // 2


def test_a_client_that_is_slow_loses_pictures_and_never_sound():
    stage = Stage()
    slow, other = stage.open(clock="wall"), stage.open(clock="wall")
    speech = voice(1, 64_000)
    slow.push(speech)
    slow.flush()
    got = []
    for _ in range(50):
        stage.advance(0.1)
        got += stage.take(other, 100)
    assert all(len(piece.frames) for piece in got) and other.counts.skipped == 0
    pieces = stage.take(slow, 200)
    sound = np.concatenate([piece.sound[0] for piece in pieces])
    assert np.array_equal(sound[: len(speech)], speech)
    assert sum(len(piece.frames) for piece in pieces) <= 8
    assert slow.counts.skipped == sum(not len(piece.frames) for piece in pieces)


def test_who_never_takes_is_closed():
    stage = Stage(abandoned=5.0)
    left, other = stage.open(clock="wall"), stage.open(clock="wall")
    for _ in range(62):  # it is looked for once a second
        stage.advance(0.1, step=0.02)
        stage.take(other, 100)
    assert len(stage.scheduler) == 1
    for call in (left.take, lambda: left.push(voice(1, 10))):
        with pytest.raises(InputError, match="nobody took a piece for 5 s"):
            call()


def test_who_has_nothing_to_take_is_not_closed():
    """A pause of any length is none of the client's fault."""
    stage = Stage(abandoned=5.0)
    session = stage.open(clock="taken")
    stage.advance(20.0, step=0.1)
    assert len(stage.scheduler) == 1
    session.push(voice(1, 640))
    session.flush()
    stage.advance(20.0, step=0.1)  # now there are pieces
    assert len(stage.scheduler) == 0


def test_the_first_due_come_first():
    """With room for one frame at a time, no session waits behind another."""
    stage = Stage(batch_size=1, seconds=0.008)
    sessions = [stage.open(clock="wall") for _ in range(4)]  # 0.8 of the time
    for _ in range(100):
        stage.advance(0.04)
        for session in sessions:
            stage.take(session, 100)
    for session in sessions:
        assert session.counts.late == session.counts.skipped == 0
        assert session.counts.frames == pytest.approx(100, abs=4)


def test_frames_of_many_sessions_share_batches():
    """Due at 40 different times: they wait 10 ms for each other, and none is late."""
    stage = Stage(batch_size=16, seconds=0.0001)
    sessions = []
    for _ in range(40):
        sessions.append(stage.open(clock="wall"))
        stage.clock.time += 0.001
    stage.renderer.batches.clear()
    for _ in range(50):
        stage.advance(0.04, step=0.001)
        for session in sessions:
            stage.take(session, 100)
    sizes = stage.renderer.batches
    assert sum(sizes) >= 40 * 49 and 9 <= np.median(sizes) <= 16
    assert all(s.counts.late == s.counts.skipped == 0 for s in sessions)


def test_frames_of_two_avatars_that_are_due_together():
    """A batch is of one avatar: the other one's frames come right after it."""
    stage, sessions = Stage(batch_size=8), []
    renderers = [FakeRenderer(8, 0.0, stage.clock) for _ in range(2)]
    for number in range(6):
        stage.renderer = renderers[number % 2]
        sessions.append(stage.open(clock="wall"))
    for _ in range(50):
        stage.advance(0.04)
        for session in sessions:
            stage.take(session, 100)
    assert all(s.counts.late == s.counts.skipped == 0 for s in sessions)
    assert all(s.counts.frames >= 49 for s in sessions)
    assert all(np.median(renderer.batches) == 3 for renderer in renderers)


def test_frames_that_are_due_together_fill_batches():
    stage = Stage(batch_size=4)
    sessions = [stage.open(clock="wall") for _ in range(12)]
    stage.settle()
    assert stage.renderer.batches == []
    stage.clock.time += 0.01  # when the first may wait no longer, all are there
    stage.settle()
    assert stage.renderer.batches == [4, 4, 4]
    for session in sessions:
        assert [piece.number for piece in stage.take(session, 100)] == [0]


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((3, 10), np.float32), r"the shape \(3, 10\); expected \(2, S\)"),
        (bytes(80), r"sound is of the type bytes; expected an array .*numpy.frombuffer\(sound"),
        ([[0, 0, 0]], r"the shape \(1, 3\); expected \(2, S\)"),
        (np.zeros((2, 10), np.float64), "sound is float64; expected int16 or float32"),
        (np.full((2, 10), np.nan, np.float32), "not finite"),
        (np.full((2, 10), -20000, np.float32), "a sample of -20000; expected -1 to 1; scale"),
    ],
)
def test_sound_of_no_use(sound, message):
    session = Stage().open(channels=2)
    with pytest.raises(InputError, match=message):
        session.push(sound)
    session.push(np.zeros((2, 0), np.int16))


def test_no_more_than_ten_minutes_wait():
    session = Stage().open(sample_rate=8000)
    for _ in range(10):
        session.push(np.ones(8000 * 60, np.int16))
    with pytest.raises(InputError, match="600 s of speech wait"):
        session.push(np.ones(1, np.int16))


# --- threads and coroutines ----------------------------------------------------------------------


@pytest.fixture(params=["made at once", "made meanwhile"])
def running(request):
    """A scheduler at work in its threads; as-taken sessions need no real time."""
    stage = Stage()
    if request.param == "made meanwhile":
        stage.renderer.wait = lambda: None
    stage.scheduler.start()
    yield stage
    stage.scheduler.close()
    assert not any(thread.name.startswith("viseme-") for thread in threading.enumerate())


def talk(session: Session, seed: int) -> np.ndarray:
    session.push(voice(seed, 20_000))
    session.flush()
    return np.concatenate([piece.sound[0] for piece in until_end(session)])[:20_000]


def test_from_threads(running):
    results = {}

    def client(number):
        with running.open() as session:
            results[number] = talk(session, number)

    clients = [threading.Thread(target=client, args=(n,)) for n in range(20)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(60)
    assert all(np.array_equal(results[n], voice(n, 20_000)) for n in range(20))
    assert len(running.scheduler) == 0


def test_from_coroutines(running):
    async def client(number):
        session = running.open()
        session.push(voice(number, 20_000))
        session.flush()
        pieces = []
        async for piece in session:
            pieces.append(piece)
            if piece.end:
                break
        session.close()
        return np.concatenate([piece.sound[0] for piece in pieces])[:20_000]

    async def all_of_them():
        return await asyncio.gather(*(client(n) for n in range(20)))

    for number, sound in enumerate(asyncio.run(all_of_them())):
        assert np.array_equal(sound, voice(number, 20_000))


def test_a_cancelled_coroutine_and_a_forgotten_session(running):
    async def impatient():
        session = running.open()  # nothing is pushed into it, and its clock waits for takers
        session.push(voice(1, 100))  # too little to begin
        task = asyncio.ensure_future(anext(aiter(session)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        session.flush()
        async for piece in session:
            assert piece.number == 0
            break
        session.close()

    asyncio.run(impatient())


def test_fifty_sessions_come_and_go(running):
    """Closed, dropped, killed in the middle: nothing is left, and one that stays did not notice."""
    stays = running.open()
    states = []
    for number in range(50):
        session = running.open()
        states.append(weakref.ref(session._state))
        session.push(voice(number, 9_000))
        if number % 3 == 0:
            session.take(5)
            session.close()
        elif number % 3 == 1:
            session.flush()
            session._state.lock.acquire()
            session._state.close()  # as an abandoned one is closed
            session._state.lock.release()
        else:
            weakref.finalize(session, _close, session._state)
        del session
    assert np.array_equal(talk(stays, 99), voice(99, 20_000))
    stays.close()
    running.scheduler.close()
    running.scheduler.step()  # in this thread, as the other one has ended
    gc.collect()
    assert len(running.scheduler) == 0
    assert not any(state() for state in states)


def _close(state) -> None:
    with state.lock:
        state.close()


def test_closing_ends_the_waiting(running):
    """Of a thread and of a coroutine, for frames that would never come."""
    session, taken = running.open(), []
    session.push(voice(1, 100))
    thread = threading.Thread(target=lambda: taken.append(session.take()), daemon=True)
    thread.start()

    async def waiting():
        async for piece in session:
            taken.append(piece)

    async def both():
        task = asyncio.ensure_future(waiting())
        await asyncio.sleep(0.05)
        assert not session.closed
        session.close()
        assert session.closed
        await asyncio.wait_for(task, 30)

    asyncio.run(both())
    thread.join(30)
    assert taken == [None]


def test_frames_are_handed_out_in_order_once_they_are_there(running):
    """The scheduler goes on while a GPU works, and an interruption drops what it works on."""
    there = threading.Event()
    running.renderer.wait = there.wait
    session = running.open()
    session.push(voice(1, 40_000))
    assert session.take(0.2) is None  # asked for, and not there
    made = len(running.renderer.jobs)
    assert 1 <= made <= 4  # no more than an interruption may cost
    session.interrupt()
    session.push(voice(2, 20_000))
    session.flush()
    there.set()
    pieces = until_end(session)
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert np.array_equal(pieces[1].sound[0], voice(2, 20_000)[640:1280])
    assert all(int(piece.frames) >= made for piece in pieces)


def test_a_failure_while_a_gpu_works_ends_the_sessions(running, capfd):
    session = running.open()

    def broken():
        raise RuntimeError("a launch failed")

    running.renderer.wait = broken
    session.push(voice(1, 20_000))
    with pytest.raises(DeviceError, match="a launch failed"):
        session.take(30)
    assert "a launch failed" in capfd.readouterr().err


def test_a_bad_network_ends_the_sessions_of_its_avatar_only(running):
    """As one that returns NaN; another avatar's sessions go on, and so does the scheduler."""
    other = Stage()
    other.scheduler, other.clock = running.scheduler, running.clock
    ended, goes_on = running.open(), other.open()
    hear = running.renderer.hear

    def broken(windows):
        raise InputError("g.onnx: the generator returns NaN")

    running.renderer.hear = broken
    ended.push(voice(1, 20_000))
    with pytest.raises(InputError, match=r"g\.onnx: the generator returns NaN"):
        ended.take(30)
    assert running.scheduler.failure is None
    assert np.array_equal(talk(goes_on, 7), voice(7, 20_000))
    running.renderer.hear = hear
    assert np.array_equal(talk(running.open(), 8), voice(8, 20_000))


def test_a_failure_ends_the_sessions_and_says_so(running, capfd):
    session = running.open()

    def broken(jobs):
        raise RuntimeError("out of luck")

    running.renderer.render = broken
    session.push(voice(1, 20_000))
    with pytest.raises(DeviceError, match="live sessions failed: RuntimeError.*out of luck"):
        session.take(30)
    assert str(running.scheduler.failure) == "out of luck"
    assert "out of luck" in capfd.readouterr().err
