"""An avatar's pictures and sound, driven by LiveKit's own runner."""

import numpy as np
import pytest
from livekit import rtc
from livekit.agents.voice.avatar import AvatarRunner, QueueAudioOutput

from engine.live import Piece
from serve.livekit.generator import VisemeGenerator, i420
from tests.integrations.livekit.rooms import Published, Room, bright, until
from tests.integrations.livekit.speech import FRAME, RATE, flashes, frames_of, run


class Stage:
    """A runner in a room, and the agent's end of its sound."""

    def __init__(self, live, monkeypatch, rate: int = RATE):
        self.published = Published(monkeypatch)
        self.room = Room().join()
        self.output = QueueAudioOutput(sample_rate=rate, wait_playback_start=True)
        self.pieces = list[Piece]()
        self.generator = VisemeGenerator(live, sample_rate=rate, taken=self.pieces.append)
        self.runner = AvatarRunner(
            self.room,
            audio_recv=self.output,
            video_gen=self.generator,
            options=self.generator.options,
        )
        self.events = list[tuple]()
        self.output.on("playback_started", lambda event: self.events.append(("started",)))
        self.output.on(
            "playback_finished",
            lambda e: self.events.append(("finished", e.playback_position, e.interrupted)),
        )

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


def test_speech_comes_out_with_its_pictures(live, monkeypatch):
    """Two segments, pushed at once: the same samples, each picture with the sound that belongs to
    it, and the end of each exactly once, with its length."""
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
    # a picture comes when the sound before it was given, and its own was, but for the last 10 ms
    given, shown = 0, list[tuple[bytes, int]]()
    for _, item in stage.published.items:
        if isinstance(item, rtc.AudioFrame):
            given += item.samples_per_channel
        else:
            shown.append((bytes(item.data), given))
    spoken = [piece for piece in stage.pieces if piece.speaking]
    pictures = [bytes(i420(piece.frames[0].numpy()).data) for piece in spoken]
    assert len(set(pictures)) > 10
    for sound, before in zip(sounds, (0, len(sounds[0])), strict=True):
        expected, pictures = (
            pictures[: -(-len(sound) // FRAME)],
            pictures[-(-len(sound) // FRAME) :],
        )
        everything = [picture for picture, _ in shown]
        (begin,) = (n for n in range(len(shown)) if everything[n : n + len(expected)] == expected)
        for number in range(len(expected)):
            there = shown[begin + number][1] - before
            most = min((number + 2) * FRAME, len(sound))
            assert number * FRAME - RATE // 100 <= there <= most
    assert not pictures


def test_interruptions(live, monkeypatch):
    """Interrupted speech ends at once, at the position that was played, fades out, and is seen in
    two more pictures at most. What is said next is all there."""
    loud = flashes("x" * 100)

    async def main():
        async with Stage(live, monkeypatch) as stage:
            found = []
            for count in (3, 8, 15):
                begin = len(stage.published.samples)
                await stage.say(loud)
                await until(lambda n=count: sum(map(bright, stage.published.pictures[-40:])) >= n)
                stage.output.clear_buffer()
                seen, events = len(stage.published.pictures), len(stage.events)
                await until(lambda n=events: len(stage.events) > n)
                position, late = stage.ends[-1][1], len(stage.published.pictures) - seen
                await until(lambda n=seen: len(stage.published.pictures) >= n + 45)
                old = [bright(picture) for picture in stage.published.pictures[seen:]]
                found.append((position, late, old, stage.published.samples[begin:]))
            begin, next_one = len(stage.published.samples), flashes("xxoox")
            await stage.say(next_one)
            await until(lambda: not stage.events[-1][-1])
            return stage, found, stage.published.samples[begin:], next_one

    stage, found, heard, next_one = run(main())
    for position, late, old, sound in found:
        assert late <= 1
        assert sum(old) <= 2 and not any(old[2:])
        assert position == pytest.approx(len(sound) / RATE)
        fade = RATE // 100
        assert np.array_equal(sound[:-fade], loud[: len(sound) - fade])
        level = np.abs(sound[-fade:].astype(int))
        assert level[0] == 8000 and level[-1] == 0 and (np.diff(level) <= 0).all()
    assert np.array_equal(heard, next_one)
    kinds = [event[0] for event in stage.events]
    assert kinds == ["started", "finished"] * 4
    assert [event[2] for event in stage.ends] == [True] * 3 + [False]
    assert stage.ends[-1][1] == pytest.approx(len(next_one) / RATE)
