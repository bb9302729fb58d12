"""Frames of a session are those of a render of its whole stream, however the speech came."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.live.timing import frame_start, samples_needed
from tests.engine.live.stage import Stage, expected_audio, voice

RATES = [Fraction(25), Fraction(30000, 1001), Fraction(24), Fraction(50)]


class Recorded:
    """A session with everything that it gave, and what of its stream changed when."""

    def __init__(self, stage: Stage, **options):
        self.stage, self.session = stage, stage.open(**options)
        self.stream, self.pieces, self.changes = self.session._state.stream, [], []
        note = self.stream._note

        def recording(position: int) -> None:
            self.changes.append((self.stream.frame, position))
            note(position)

        self.stream._note = recording

    def take(self, most: int) -> None:
        self.pieces += self.stage.take(self.session, most)

    def interrupt(self) -> None:
        self.session.interrupt()

    def pcm(self) -> np.ndarray:
        """The stream at 16 kHz, of a session whose sound is that."""
        return np.concatenate([piece.sound[0] for piece in self.pieces])

    def is_bound_too_early(self, number: int) -> bool:
        """Whether what a frame depends on changed after it was bound."""
        needed = samples_needed(number, self.session.fps)
        return any(frame > number and position < needed for frame, position in self.changes)


pieces_of_speech = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 20_000)),
        st.tuples(st.just("push"), st.integers(1, 700)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("take"), st.integers(1, 30)),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@example(
    streams=[[("push", 1)], [("push", 4161), ("take", 1), ("flush", 0), ("take", 1), ("push", 1)]],
    fps=Fraction(50),
    prebuffer=0.45,
    batch_size=1,
)
@given(
    streams=st.lists(pieces_of_speech, min_size=1, max_size=3),
    fps=st.sampled_from(RATES),
    prebuffer=st.sampled_from([0.45, 0.1, 1.0]),
    batch_size=st.integers(1, 9),
)
def test_any_cutting_of_the_speech(streams, fps, prebuffer, batch_size):
    """Several sessions in one batch, speech in pieces of any length, pauses, flushes."""
    stage = Stage(batch_size=batch_size)
    sessions = [Recorded(stage, fps=fps, prebuffer=prebuffer) for _ in streams]
    for step in range(max(map(len, streams))):
        for number, (recorded, stream) in enumerate(zip(sessions, streams, strict=True)):
            action, amount = stream[step] if step < len(stream) else ("take", 1)
            if action == "push":
                recorded.session.push(voice(step + 50 * number, amount))
            elif action == "flush":
                recorded.session.flush()
            else:
                recorded.take(amount)
    for recorded in sessions:
        recorded.session.flush()
        recorded.take(300)
        check(recorded, prebuffer >= 0.45)


def check(recorded: Recorded, whole: bool) -> None:
    stage, pieces, fps = recorded.stage, recorded.pieces, recorded.session.fps
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    expected = expected_audio(recorded.pcm(), len(pieces), fps)
    for piece in pieces[:-15]:  # what the last ones depend on was not taken
        audio = stage.audio(piece)
        if not recorded.is_bound_too_early(piece.number):
            assert np.array_equal(audio, expected[piece.number]), piece.number
        elif whole and piece.speaking:
            # Only the speech after a flush may come too late for a frame that speaks.
            last = int(samples_needed(piece.number, fps) * fps / 16000)  # that it depends on
            assert any(later.end for later in pieces[piece.number : last + 1])


def test_an_interruption_is_as_if_nothing_had_been_said():
    stage = Stage()
    recorded = Recorded(stage)
    recorded.session.push(voice(1, 40_000))
    recorded.take(20)
    position = recorded.session.interrupt()
    assert position == Fraction(20, 25)
    recorded.take(40)
    recorded.session.push(voice(2, 20_000))
    recorded.session.flush()
    recorded.take(60)
    pieces = recorded.pieces
    assert [piece.number for piece in pieces] == list(range(120))
    assert all(piece.speaking for piece in pieces[:20])
    assert not any(piece.speaking for piece in pieces[20:60])
    assert [piece.speaking for piece in pieces[60:]].index(False) == 32  # 31.25 frames
    # the sound fades out over 10 ms, in which the networks hear silence already
    fade = pieces[20].sound[0]
    before = voice(1, 40_000)[20 * 640 : 20 * 640 + 160]
    assert np.allclose(fade[:160], before * np.linspace(1, 0, 160, dtype=np.float32), atol=1e-6)
    assert not fade[160:].any()
    pcm = recorded.pcm()
    pcm[20 * 640 : 20 * 640 + 160] = 0
    expected = expected_audio(pcm, 120, Fraction(25))
    for piece in pieces[20:105]:
        if not recorded.is_bound_too_early(piece.number):
            assert np.array_equal(stage.audio(piece), expected[piece.number]), piece.number
    assert any(stage.job(piece).silent for piece in pieces[20:60])  # the mouth came to rest


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_interruptions_anywhere(data):
    stage = Stage(batch_size=data.draw(st.integers(1, 5)))
    recorded, other = Recorded(stage), Recorded(stage)
    speech = voice(9, 50_000)
    other.session.push(speech)
    other.session.flush()
    faded = []
    for step in range(data.draw(st.integers(1, 5))):
        recorded.session.push(voice(step, data.draw(st.integers(7_200, 30_000))))
        if data.draw(st.booleans()):
            recorded.session.flush()
        recorded.take(data.draw(st.integers(0, 25)))
        other.take(data.draw(st.integers(0, 25)))
        recorded.session.interrupt()
        faded.append(len(recorded.pieces))
        recorded.take(data.draw(st.integers(1, 30)))
    recorded.take(20)
    other.take(100)
    assert [piece.number for piece in recorded.pieces] == list(range(len(recorded.pieces)))
    pcm = recorded.pcm()
    for frame in faded:
        pcm[640 * frame : 640 * frame + 160] = 0
    count = len(recorded.pieces)
    expected = expected_audio(pcm, count, Fraction(25))
    for piece in recorded.pieces[: count - 15]:
        if not recorded.is_bound_too_early(piece.number):
            assert np.array_equal(stage.audio(piece), expected[piece.number]), piece.number
    # and the session beside it did not notice
    assert np.array_equal(other.pcm()[: len(speech)], speech)
    expected = expected_audio(other.pcm(), len(other.pieces), Fraction(25))
    for piece in other.pieces[:78]:
        assert np.array_equal(stage.audio(piece), expected[piece.number])


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("fps", RATES)
def test_the_sound_comes_out_as_it_went_in(rate, fps):
    """Sample by sample, at its own rate, and the next utterance begins on a frame's first sample."""
    stage = Stage()
    session = stage.open(sample_rate=rate, channels=2, fps=fps)
    speech = np.stack([voice(3, 3 * rate), voice(4, 3 * rate)])
    for part in np.array_split(speech, [1, 7, 400, 9000, 9001, 30_000], axis=1):
        session.push(part)
    session.flush()
    pieces = stage.take(session, int(5 * fps))
    sound = np.concatenate([piece.sound for piece in pieces], axis=1)
    assert np.array_equal(sound[:, : speech.shape[1]], speech)
    assert not sound[:, speech.shape[1] :].any()
    assert [piece.end for piece in pieces].count(True) == 1
    for piece in pieces:
        assert piece.time == piece.number / fps
        first = frame_start(piece.number, rate, fps)
        assert piece.sound.shape == (2, frame_start(piece.number + 1, rate, fps) - first)


def test_a_long_session_does_not_drift_and_keeps_no_more_than_a_short_one():
    """Six minutes of speech, pauses and interruptions; `benchmarks.live` does an hour of it."""
    stage = Stage(batch_size=8)
    session = stage.open(sample_rate=24000)
    state, random = session._state, np.random.default_rng(0)
    sizes, samples, frames = [], 0, 0
    say = voice(5, 24000 * 4)
    while frames < 25 * 360:
        session.push(say[: random.integers(4000, len(say))])
        if random.random() < 0.7:
            session.flush()
        pieces = stage.take(session, int(random.integers(20, 400)))
        stage.renderer.jobs.clear()
        stage.renderer.audio.clear()
        for piece in pieces:
            assert piece.number == frames and piece.sound.shape == (1, 960)
            samples, frames = samples + piece.sound.shape[1], frames + 1
        if random.random() < 0.3:
            session.interrupt()
        kept = state.stream.pcm, state.stream._sound
        sizes.append(sum(rolling._data.nbytes for rolling in kept))
    assert samples == 960 * frames
    minute = len(sizes) // 6
    assert max(sizes[minute:]) <= max(sizes[:minute]) + 200_000


def test_long_speech():
    """The ring of features goes round four times."""
    stage = Stage()
    recorded = Recorded(stage)
    recorded.session.push(voice(1, 640 * 520))
    recorded.session.flush()
    recorded.take(535)
    check(recorded, True)


def test_speech_right_after_an_interruption_is_mixed_with_its_fade():
    stage = Stage()
    session = stage.open()
    old, new = voice(1, 20_000), voice(2, 20_000)
    session.push(old)
    stage.take(session, 5)
    session.interrupt()
    session.push(new)
    session.flush()
    sound = np.concatenate([piece.sound[0] for piece in stage.take(session, 40)])
    fade = old[5 * 640 : 5 * 640 + 160] * np.linspace(1, 0, 160, dtype=np.float32)
    assert np.allclose(sound[:160], new[:160] + fade, atol=1e-6)
    assert np.array_equal(sound[160 : len(new)], new[160:])
