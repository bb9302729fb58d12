"""The speech of a session as one endless stream, cut into video frames."""

from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, Protocol

import numpy as np

import kernels

from .rolling import Rolling
from .timing import frame_start, samples_needed

FADE = Fraction(1, 100)  # seconds in which sound fades out after an interruption
MOST_UTTERANCES = 1000  # that may wait: each takes a frame at least, however few its samples


class Converter(Protocol):
    """Converts the sound of one utterance, as it comes, to 16 kHz mono."""

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """Take (C, n) samples, return the (m,) samples that are ready."""
        ...

    def flush(self) -> np.ndarray:
        """Return the samples that were held back."""
        ...


class BoundFrame(NamedTuple):
    """What the stream holds for one frame, once nothing can change it any more.

    Attributes:
        number: counts from 0.
        sound: (C, n) float32, at the session's own rate.
        speaking: whether the frame plays samples of an utterance.
        end: whether it plays the last samples of an utterance.
        underrun: whether an utterance ran dry in it before its end.
        spoken: how many samples of `sound`, from its beginning, are an utterance's.
    """

    number: int
    sound: np.ndarray
    speaking: bool
    end: bool
    underrun: bool
    spoken: int


class _Queue:
    """Samples along the last axis that wait, in chunks."""

    def __init__(self) -> None:
        self._chunks: deque[np.ndarray] = deque()
        self.count = 0

    def append(self, chunk: np.ndarray) -> None:
        if chunk.shape[-1]:
            self._chunks.append(chunk)
            self.count += chunk.shape[-1]

    def take(self, most: int) -> list[np.ndarray]:
        taken: list[np.ndarray] = []
        while most > 0 and self._chunks:
            chunk = self._chunks.popleft()
            if chunk.shape[-1] > most:
                self._chunks.appendleft(chunk[..., most:])
                chunk = chunk[..., :most]
            taken.append(chunk)
            most -= chunk.shape[-1]
            self.count -= chunk.shape[-1]
        return taken


class Utterance:
    """Speech that was pushed, of which the stream does not hold everything yet.

    Attributes:
        sound, pcm: what waits, at the session's own rate and at 16 kHz.
        ended: whether nothing follows.
        sound_end, pcm_end: once placed, the stream's positions of what comes next.
    """

    def __init__(self, converter: Converter):
        self._converter: Converter | None = converter
        self.sound, self.pcm, self.ended = _Queue(), _Queue(), False
        self.sound_end = self.pcm_end = 0

    def convert(self, sound: np.ndarray) -> np.ndarray:
        """Return what (C, n) samples that come next make ready at 16 kHz, to be appended."""
        assert self._converter is not None
        return self._converter(sound)

    def append(self, sound: np.ndarray, pcm: np.ndarray) -> None:
        self.sound.append(sound)
        self.pcm.append(pcm)

    def end(self) -> None:
        assert self._converter is not None
        self.pcm.append(self._converter.flush())
        self.ended, self._converter = True, None  # a resampler holds 150 kB


class SpeechStream:
    """Endless 16 kHz speech for the networks, and the sound that belongs to it.

    The stream is zero where nobody speaks. An utterance is placed at the next frame to be bound,
    or where the one before it ends, once `prebuffer` seconds of it are there or it has ended.
    Binding a frame fixes its samples; everything later may still change, which `changed` reports.
    Not thread-safe.

    Args:
        fps: frames a second.
        sample_rate: of the sound, Hz.
        channels: of the sound.
        prebuffer: seconds.
        converter: makes the converter of an utterance.
        most: seconds of sound that may wait.

    Attributes:
        frame: number of the next frame to be bound.
        pcm: the stream at 16 kHz.
        last_voiced: no sample of `pcm` after this one differs from 0; -1 if none does.
        underruns: how often an utterance ran dry before its end.
    """

    def __init__(
        self,
        fps: Fraction,
        sample_rate: int,
        channels: int,
        *,
        prebuffer: float,
        converter: Callable[[], Converter],
        most: float = 600.0,
    ):
        self._fps, self._rate, self._channels = fps, sample_rate, channels
        self._prebuffer, self._converter = round(prebuffer * kernels.SAMPLE_RATE), converter
        self._most = int(most * sample_rate)
        self._waiting: deque[Utterance] = deque()
        self._placed: deque[Utterance] = deque()  # all but the last one have ended
        self._sound = Rolling((channels,))
        self._fade_end = 0
        self._changed: int | None = None
        self.frame, self.pcm, self.last_voiced, self.underruns = 0, Rolling(), -1, 0

    @property
    def waiting(self) -> bool:
        """Whether speech was pushed that is not bound to frames yet."""
        return bool(self._placed or self._waiting)

    @property
    def waiting_samples(self) -> int:
        """Samples that were pushed and not bound yet, at the session's own rate."""
        return sum(utterance.sound.count for utterance in (*self._placed, *self._waiting))

    @property
    def waiting_utterances(self) -> int:
        return len(self._placed) + len(self._waiting)

    def utterance(self, count: int) -> Utterance | None:
        """Return the utterance that has not ended, or begin one, to append `count` samples to.

        What is appended to it after an interruption is not heard.

        Returns:
            None if there is no room for these samples, or for another utterance.
        """
        if self.waiting_samples + count > self._most:
            return None
        utterance = self._last()
        if utterance is None or utterance.ended:
            if self.waiting_utterances >= MOST_UTTERANCES:
                return None
            utterance = Utterance(self._converter())
            self._waiting.append(utterance)
        return utterance

    def flush(self) -> None:
        """End the utterance. Without one, do nothing."""
        utterance = self._last()
        if utterance is not None and not utterance.ended:
            utterance.end()

    def ready(self) -> bool:
        """Whether all speech that the next frame depends on is there, so that binding it now gives
        what binding it later would."""
        last = self._placed[-1] if self._placed else None
        if last is None:
            return not self._waiting or self._placeable(self._waiting[0])
        return last.ended or last.pcm_end + last.pcm.count >= samples_needed(self.frame, self._fps)

    def bind(self) -> BoundFrame:
        """Fix the next frame's samples; speech that is not there yet is assumed to be zero."""
        number = self.frame
        start = frame_start(number, self._rate, self._fps)
        stop = frame_start(number + 1, self._rate, self._fps)
        needed = samples_needed(number, self._fps)
        self._place_next(number, needed)
        end = underrun = False
        spoken = 0
        while self._placed and self._placed[0].sound_end < stop:
            utterance = self._placed[0]
            self._play(utterance, stop)
            spoken = max(utterance.sound_end - start, spoken)
            if utterance.sound_end == stop and (utterance.sound.count or not utterance.ended):
                break
            self._placed.popleft()
            if utterance.ended:
                end = True
            else:
                underrun = True
                self._waiting.appendleft(utterance)  # the rest waits for its prebuffer again
        self.underruns += underrun
        self.frame += 1
        sound = np.ascontiguousarray(self._sound.read(start, stop).T)
        return BoundFrame(number, sound, spoken > 0, end, underrun, spoken)

    def changed(self) -> int | None:
        """Return the first 16 kHz sample that changed since the last call, None if none did."""
        position, self._changed = self._changed, None
        return position

    def interrupt(self, frame: int) -> None:
        """Drop all speech from a frame on; its sound fades out.

        Args:
            frame: the first frame that nobody got; it and later ones are bound again.
        """
        start = frame_start(frame, self._rate, self._fps)
        stop = start + int(FADE * self._rate)
        if self._placed and self._placed[0].sound_end > start - 1:
            self._play(self._placed[0], stop)
        tail = self._sound.read(start, stop)
        self._sound.cut(start)
        if tail.any():
            self._sound.write(start, tail * np.linspace(1, 0, len(tail), dtype=np.float32)[:, None])
            self._fade_end = stop
        self._waiting.clear()
        self._placed.clear()
        self.frame = frame
        position = frame_start(frame, kernels.SAMPLE_RATE, self._fps)
        if position < self.pcm.end:
            self.pcm.cut(position)
            self.last_voiced = min(self.last_voiced, position - 1)
            self._note(position)

    def clear(self) -> None:
        """Drop all speech that waits."""
        self._waiting.clear()
        self._placed.clear()

    def forget(self, frame: int, samples: int) -> None:
        """Drop what frames from this one on, and the 16 kHz samples from there on, do not need."""
        self._sound.forget(frame_start(frame, self._rate, self._fps))
        self.pcm.forget(samples)

    def _last(self) -> Utterance | None:
        return (self._waiting or self._placed or [None])[-1]

    def _placeable(self, utterance: Utterance) -> bool:
        return utterance.ended or utterance.pcm.count >= max(self._prebuffer, 1)

    def _place_next(self, number: int, needed: int) -> None:
        """Write what a frame depends on into the stream, as far as it is there."""
        frame = number
        for utterance in self._placed:
            self._extend(utterance, needed)
            frame = self._frame_after(utterance, frame)
        while self._waiting and self._placeable(self._waiting[0]):
            if self._placed and not self._placed[-1].ended:
                return
            start = frame_start(frame, kernels.SAMPLE_RATE, self._fps)
            if start >= needed:
                return
            utterance = self._waiting.popleft()
            utterance.pcm_end = start
            utterance.sound_end = frame_start(frame, self._rate, self._fps)
            self._placed.append(utterance)
            self._extend(utterance, needed)
            frame = self._frame_after(utterance, frame)

    def _frame_after(self, utterance: Utterance, begin: int) -> int:
        """Return the first frame after what is there of an utterance, and after `begin`, so that
        each utterance ends in a frame of its own."""
        end = utterance.sound_end + utterance.sound.count
        frame = max(int(end * self._fps / self._rate), begin + 1)
        while frame_start(frame, self._rate, self._fps) < end:
            frame += 1
        return frame

    def _extend(self, utterance: Utterance, needed: int) -> None:
        chunks = utterance.pcm.take(needed - utterance.pcm_end)
        if chunks:
            self._note(utterance.pcm_end)
        for chunk in chunks:
            self.pcm.write(utterance.pcm_end, chunk)
            (voiced,) = np.nonzero(chunk)
            if len(voiced):
                self.last_voiced = utterance.pcm_end + int(voiced[-1])
            utterance.pcm_end += len(chunk)

    def _play(self, utterance: Utterance, stop: int) -> None:
        for chunk in utterance.sound.take(stop - utterance.sound_end):
            first, last = utterance.sound_end, utterance.sound_end + chunk.shape[1]
            rows = chunk.T
            if first < self._fade_end:  # speech right after an interruption is mixed with its fade
                rows = rows + self._sound.read(first, last)
            self._sound.write(first, rows)
            utterance.sound_end = last

    def _note(self, position: int) -> None:
        self._changed = position if self._changed is None else min(self._changed, position)
