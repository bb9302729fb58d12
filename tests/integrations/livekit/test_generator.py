"""An avatar's pictures and sound, driven by LiveKit's own runner."""

import asyncio
import time
from itertools import islice, pairwise

import numpy as np
import pytest
from livekit import rtc
from livekit.agents.voice.avatar import AudioSegmentEnd, AvatarRunner, QueueAudioOutput

from engine.errors import InputError
from engine.live import Piece
from serve.livekit.generator import VisemeGenerator, i420
from tests.integrations.livekit.rooms import Published, Room, bright, until
from tests.integrations.livekit.speech import FRAME, RATE, flashes, frames_of, run


class Noting(VisemeGenerator):
    """Remembers what the runner has got, in order, and the numbers of the pictures' pieces."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.given, self.items = list[int](), list[object]()
        self.most = 0  # samples that waited at a time

    async def push_audio(self, frame):
        await super().push_audio(frame)
        self.most = max(self.most, self._waiting)

    async def __aiter__(self):
        numbers = {}
        picture = self._picture

        async def noted(piece):
            frame = await picture(piece)
            numbers.setdefault(id(frame), []).append(piece.number)
            return frame

        self._picture = noted
        async for item in super().__aiter__():
            self.items.append(item)
            if isinstance(item, rtc.VideoFrame):
                self.given.append(numbers[id(item)].pop(0))
            yield item


class Stage:
    """A runner in a room, and the agent's end of its sound."""

    def __init__(self, live, monkeypatch, rate: int = RATE, *, subscribed: bool = True):
        self.published = Published(monkeypatch)
        self.room = Room().join()
        if not subscribed:
            self.room.subscribed.clear()
        self.output = QueueAudioOutput(sample_rate=rate, wait_playback_start=True)
        self.pieces = list[Piece]()
        self.generator = Noting(live, sample_rate=rate, taken=self.pieces.append)
        self.runner = AvatarRunner(
            self.room,
            audio_recv=self.output,
            video_gen=self.generator,
            options=self.generator.options,
        )
        self.events = list[tuple]()
        self.output.on("playback_started", lambda event: self.events.append(("started",)))
        self.output.on("playback_finished", self._finished)
        self.shown = 0  # pictures before the last end

    def _finished(self, event) -> None:
        self.events.append(("finished", event.playback_position, event.interrupted))
        self.shown = len(self.published.pictures)

    async def __aenter__(self) -> "Stage":
        await self.runner.start()
        return self

    async def __aexit__(self, *_) -> None:
        await self.runner.aclose()
        self.generator.close()

    async def say(self, samples: np.ndarray) -> None:
        """Give the output a segment, as fast as it takes it."""
        for frame in frames_of(samples):
            await self.output.capture_frame(frame)
        self.output.flush()

    @property
    def ends(self) -> list[tuple]:
        return [event for event in self.events if event[0] == "finished"]


def check_in_step(stage: Stage, sounds: list[np.ndarray]) -> None:
    """Check that all pictures of speech came, in order, each when the sound before it was given, and
    its own was, but for the last 10 ms and for the first one's; and no more."""
    given, shown = 0, list[tuple[bytes, int]]()
    for item in stage.generator.items:
        if isinstance(item, rtc.AudioFrame):
            given += item.samples_per_channel
        elif isinstance(item, rtc.VideoFrame):
            shown.append((bytes(item.data), given))
    published = [bytes(picture.data) for picture in stage.published.pictures]
    assert published == [picture for picture, _ in shown[: len(published)]]
    everything = [picture for picture, _ in shown]
    pictures, last = list[bytes](), b""
    for piece in stage.pieces:
        if len(piece.frames):  # else the one before is shown again
            last = bytes(i420(piece.frames[0].numpy()).data)
        pictures += [last] * piece.speaking
    before, rest = 0, iter(pictures)
    for sound in sounds:
        expected = list(islice(rest, -(-len(sound) // FRAME)))
        assert len(set(expected)) > 3
        (begin,) = (n for n in range(len(shown)) if everything[n : n + len(expected)] == expected)
        for number in range(len(expected)):
            there = shown[begin + number][1] - before
            most = min((number + 1) * FRAME, len(sound))
            least = min((number + bool(number)) * FRAME, len(sound)) - RATE // 100
            assert least <= there <= most
        before += len(sound)
    assert next(rest, None) is None


def test_speech_comes_out_with_its_pictures(live, monkeypatch):
    """Two segments, pushed at once: the same samples, each picture with the sound that belongs to
    it, and the end of each exactly once, with its length. Most of the sound waits with the runner."""
    monkeypatch.setattr("serve.livekit.generator.WAITING_SECONDS", 0.5)
    said = ["ooxxooxoxxxoooxxooxxo", "xooxxxo"]

    async def main():
        async with Stage(live, monkeypatch) as stage:
            await until(lambda: stage.published.pictures)
            sounds = [flashes(pattern)[: -FRAME // 3] for pattern in said]  # none ends with a frame
            for sound in sounds:
                await stage.say(sound)
            await until(lambda: len(stage.ends) == 2)
            shown = len(stage.published.pictures)
            await until(lambda: len(stage.published.pictures) > shown + 5)
            return stage, sounds

    stage, sounds = run(main())
    assert np.array_equal(stage.published.samples, np.concatenate(sounds))
    lengths = [len(sound) / RATE for sound in sounds]
    started, first, again, second = stage.events
    assert started == again == ("started",)
    assert [first, second] == [("finished", pytest.approx(n), False) for n in lengths]
    assert all(f.type == rtc.VideoBufferType.I420 for f in stage.published.pictures)
    assert stage.generator.most <= RATE / 2 + 1000  # with the last frame
    check_in_step(stage, sounds)


def test_interruptions(live, monkeypatch):
    """Interrupted speech ends at once, at the position that was played, fades out, and is seen in
    two more pictures at most, also after a stall. What is said next is all there."""
    loud = flashes("x" * 100)

    async def main():
        async with Stage(live, monkeypatch) as stage:
            found = []
            for count in (0, 3, 14):  # frames that were heard; or the first one is about to be
                begin, events = len(stage.published.samples), len(stage.events)
                pieces = len(stage.pieces)
                await stage.say(loud)
                await until(lambda n=pieces: any(p.speaking for p in stage.pieces[n:]), pause=0)
                await until(lambda n=begin + count * FRAME: len(stage.published.samples) >= n)
                if count == 14:
                    time.sleep(0.5)
                    # what waited is taken at once, unless this machine has not made it yet
                    shown = len(stage.published.pictures) + 3
                    await until(
                        lambda n=shown: stage.generator._late or len(stage.published.pictures) > n,
                        pause=0,
                    )
                stage.output.clear_buffer()
                given, taken = len(stage.generator.given), len(stage.pieces)
                seen, ends = len(stage.published.pictures), len(stage.ends)
                await until(lambda n=ends: len(stage.ends) > n)
                late = stage.shown - seen
                await until(lambda n=seen: len(stage.published.pictures) >= n + 15)
                old = [n for n in stage.generator.given[given:] if n < taken]
                bright_ones = [bright(picture) for picture in stage.published.pictures[seen + 4 :]]
                assert not any(bright_ones)
                found.append((stage.events[events:], late, old, stage.published.samples[begin:]))
            begin, events, ends = len(stage.published.samples), len(stage.events), len(stage.ends)
            next_one = flashes("xxoox")
            for _ in range(2):
                await stage.say(next_one)
            await until(lambda: len(stage.ends) == ends + 2)
            return found, stage.events[events:], stage.published.samples[begin:], next_one

    found, events, heard, next_one = run(main())
    for said, late, old, sound in found:
        assert late <= 2
        assert len(old) <= 1  # LiveKit may hold another one
        end = ("finished", pytest.approx(len(sound) / RATE), True)
        assert said == ([("started",), end] if len(sound) else [end])
        if len(sound):
            fade = RATE // 100
            assert np.array_equal(sound[:-fade], loud[: len(sound) - fade])
            level = np.abs(sound[-fade:].astype(int))
            assert level[0] == 8000 and level[-1] == 0 and (np.diff(level) <= 0).all()
    assert len(found[-1][-1]) > 14 * FRAME
    assert np.array_equal(heard, np.tile(next_one, 2))
    assert events == 2 * [("started",), ("finished", pytest.approx(len(next_one) / RATE), False)]


def test_an_interruption_right_after_an_end(live):
    """Before the runner asks for more: the next segment's end waits until the runner has got that."""

    async def main():
        generator = VisemeGenerator(live, sample_rate=RATE)
        items = aiter(generator)
        await anext(items)
        for number in range(2):
            for frame in frames_of(flashes("xo")):
                await generator.push_audio(frame)
            end = asyncio.create_task(generator.push_audio(AudioSegmentEnd()))
            while not isinstance(await anext(items), AudioSegmentEnd):
                assert not end.done()
            if number == 0:
                clearing = asyncio.create_task(generator.clear_buffer())
                await asyncio.sleep(0)
                await anext(items)
                await clearing
            else:
                await anext(items)
            await end
        await items.aclose()

    run(main())


def test_speech_that_runs_dry(live, monkeypatch):
    """Within a segment, at the end of a frame and within one, and then without an end for a while:
    all samples come, its end once."""
    sound = flashes("xxoxxoxxooxo" * 3)
    cuts = [0, 12 * FRAME, 24 * FRAME + 300, len(sound)]

    async def main():
        async with Stage(live, monkeypatch) as stage:
            for number, (begin, end) in enumerate(pairwise(cuts), 1):
                for frame in frames_of(sound[begin:end]):
                    await stage.output.capture_frame(frame)
                await until(lambda n=number: stage.generator.session.counts.underruns == n)
                await until(lambda n=end: len(stage.published.samples) == n)
            assert not stage.ends
            stage.output.flush()
            await until(lambda: stage.ends)
            return stage

    stage = run(main())
    assert np.array_equal(stage.published.samples, sound)
    assert stage.events == [("started",), ("finished", pytest.approx(len(sound) / RATE), False)]


def test_what_is_said_before_somebody_subscribes_waits(live, monkeypatch):
    """And can be interrupted. The session lives on, longer than one of which nobody takes a frame."""
    monkeypatch.setattr(live.scheduler, "_abandoned", 0.5)
    sound = flashes("xoox")

    async def main():
        async with Stage(live, monkeypatch, subscribed=False) as stage:
            await stage.say(flashes("x" * 40))
            await until(lambda: len(stage.pieces) > 10)
            stage.output.clear_buffer()
            await until(lambda: stage.ends)
            await stage.say(sound)
            await until(lambda: len(stage.pieces) > 30)
            assert not stage.published.items and not any(p.speaking for p in stage.pieces)
            stage.room.subscribed.set()
            await until(lambda: len(stage.ends) == 2)
            return stage

    stage = run(main())
    assert np.array_equal(stage.published.samples, sound)
    length = pytest.approx(len(sound) / RATE)
    assert stage.events == [("finished", 0.0, True), ("started",), ("finished", length, False)]


def test_segments_without_sound_end_too(live, monkeypatch):
    async def main():
        async with Stage(live, monkeypatch) as stage:
            for _ in range(2):
                await stage.output.capture_frame(rtc.AudioFrame(b"", RATE, 1, 0))
                stage.output.flush()
            await until(lambda: len(stage.ends) == 2)
            return stage

    assert len(run(main()).ends) == 2


@pytest.mark.parametrize("published", [True, False])
def test_the_avatar_is_unloaded(live, monkeypatch, published):
    """The runner ends and says why, and whoever speaks does not wait for ever."""

    async def main():
        stage = Stage(live, monkeypatch, subscribed=published)
        await stage.runner.start()
        await stage.say(flashes("x" * 50))
        await until(lambda: len(stage.pieces) > 5 and bool(stage.published.sounds) is published)
        stage.generator.session.close()
        stage.room.subscribed.set()
        waiting = stage.generator.push_audio(AudioSegmentEnd())
        with pytest.raises(InputError, match="its avatar was unloaded|the session is closed"):
            await stage.runner.wait_for_complete()
        await waiting
        await stage.runner.aclose()

    run(main())


def test_a_stall_is_made_up(live, monkeypatch):
    """An event loop that stands still for half a second: sound and pictures go on in step, and are on
    time again in the next silence."""
    sound = flashes("xxoxooxxxo" * 4)

    async def main():
        async with Stage(live, monkeypatch) as stage:
            await stage.say(sound)
            await until(lambda: len(stage.published.samples) > 6 * FRAME)
            time.sleep(0.5)
            await until(lambda: stage.ends)
            session = stage.generator.session
            given = stage.generator.given
            await until(lambda: session.due(given[-1]) > time.monotonic() - 0.1)
            shown = len(stage.published.pictures)
            await until(lambda: len(stage.published.pictures) > shown + 5)
            return stage

    stage = run(main())
    assert np.array_equal(stage.published.samples, sound)
    check_in_step(stage, [sound])
    spoken = [piece for piece in stage.pieces if piece.speaking]
    assert all(len(piece.frames) for piece in spoken[-10:])  # no pictures are lost afterwards
