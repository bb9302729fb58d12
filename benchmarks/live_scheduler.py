"""What live sessions cost without networks: the scheduler, and an hour of one session."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import live_clients as clients
from benchmarks.providers import Scene
from engine.live import Live
from engine.live.job import Rendered

SIDE = 64  # pixels of a frame's width and height
BATCH = 64  # frames at once, as on a GPU
LEAD = 1.0  # seconds of a conversation that are not measured, at its beginning and at its end
FPS = 25
RATE = 24000  # Hz, of the hour's sound: it is resampled
MINUTE = 60 * FPS  # frames


class Call(NamedTuple):
    """A batch that the scheduler asked for: when, its thread's CPU seconds so far, and frames."""

    when: float
    cpu: float
    frames: int


class EmptyRings:
    """Rings of features for any number of sessions."""

    def open(self) -> int:
        return 1

    def close(self, slot: int) -> None:
        pass


class EmptyRenderer:
    """Makes frames that are always the same, and notes what it was asked for."""

    batch_size, rings = BATCH, EmptyRings()

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._frames = [torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8) for _ in range(BATCH)]

    def hear(self, windows: list[Any]) -> None:
        pass

    def render(self, jobs: list[Any]) -> Rendered:
        # only the scheduler's thread comes here
        self.calls.append(Call(time.monotonic(), time.thread_time(), len(jobs)))
        return Rendered(self._frames[: len(jobs)])


@contextmanager
def empty_live(scene: Scene) -> Iterator[tuple[Any, EmptyRenderer]]:
    """Open a `Live` whose frames cost nothing, with room for any number of sessions.

    Args:
        scene: an avatar, whose networks are only opened.
    """
    renderer = EmptyRenderer()
    live: Any = Live(scene.avatar(torch.device("cpu")), runtime="torch", start=False)
    live._renderer = renderer
    live.capacity = lambda: 1_000_000
    live.scheduler.start()
    try:
        yield live, renderer
    finally:
        live.close()


# --- many sessions -------------------------------------------------------------------------------


def measure_scheduler(scene: Scene, sessions: int, seconds: float) -> dict:
    """Measure the cost of frames of sessions that all speak: CPU, lateness, batch sizes.

    The speech is pushed at once, as a fast text-to-speech does; one asyncio loop takes the frames.
    """
    with empty_live(scene) as (live, renderer):
        return asyncio.run(_speak(live, renderer, sessions, seconds))


async def _speak(live: Any, renderer: EmptyRenderer, sessions: int, seconds: float) -> dict:
    feeder = clients.Feeder([], [])  # there is nothing to push in real time
    opened = []
    takers = []
    try:
        for _ in range(sessions):
            opened.append(clients.open_client(live))
            takers.append(asyncio.ensure_future(opened[-1].take(feeder)))
            await asyncio.sleep(1 / FPS / sessions)
        for number, client in enumerate(opened):
            client.session.push(clients.speech_for(number, seconds + 2 * LEAD))
            client.session.flush()
        await asyncio.sleep(LEAD)
        begin, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(seconds)
        end, cpu = time.monotonic(), time.process_time() - cpu
    finally:
        for client in opened:
            client.session.close()
        await asyncio.gather(*takers, return_exceptions=True)
    if live.scheduler.failure is not None:
        raise live.scheduler.failure
    calls = [call for call in renderer.calls if begin <= call.when <= end]
    frames = sum(call.frames for call in calls[1:])
    own, wall = calls[-1].cpu - calls[0].cpu, calls[-1].when - calls[0].when
    sizes = [call.frames for call in calls]
    measured = [
        late
        for client in opened
        for late, arrival in zip(client.lateness, client.shown, strict=True)
        if begin <= arrival.taken <= end
    ]
    return {
        "batch": renderer.batch_size,
        "seconds": wall,
        "frames": frames,
        "frames a second": frames / wall / sessions,
        "scheduler, CPU s a frame": own / frames,
        "scheduler, cores": own / wall,
        "cores": cpu / (end - begin),
        "lateness, s": clients.percentiles(measured),
        "batch size": {"mean": float(np.mean(sizes)), "max": max(sizes)},
        "late": sum(client.session.counts.late for client in opened),
        "skipped": sum(client.session.counts.skipped for client in opened),
    }


# --- an hour -------------------------------------------------------------------------------------


def measure_hour(scene: Scene, seconds: float) -> dict:
    """Run one session for that many seconds of its stream, and account for every sample.

    It speaks, pauses and is interrupted. What is heard is compared with what was pushed.
    """
    with empty_live(scene) as (live, _), live.open(clock="taken", sample_rate=RATE) as session:
        stream = _Stream(session)
        first = None
        begin = time.monotonic()
        while stream.frames < seconds * FPS:
            stream.go_on()
            if first is None and stream.frames >= min(MINUTE, seconds * FPS / 4):
                first = resident_memory()
        took = time.monotonic() - begin
        interruptions = session.counts.interruptions
    samples = stream.frames * RATE // FPS
    return {
        "stream, s": stream.frames / FPS,
        "seconds": took,
        "drift, samples": stream.samples - samples,
        "samples pushed": stream.pushed,
        "samples heard": stream.heard,
        "samples dropped by interruptions": stream.dropped,
        "samples not accounted for": stream.pushed - stream.heard - stream.dropped,
        "wrong samples": stream.wrong,
        "interruptions": interruptions,
        "resident memory, bytes": {"after a minute": first, "at the end": resident_memory()},
    }


class _Stream:
    """Speech pushed into a session, and its sound compared with it.

    Attributes:
        frames, samples: that came out.
        pushed, heard, dropped: samples of speech.
        wrong: samples that were not what was pushed, or not silent where nobody spoke.
    """

    def __init__(self, session: Any):
        self._session, self._random = session, np.random.default_rng(0)
        self._voice = self._random.uniform(0.1, 0.5, 6 * RATE).astype(np.float32)
        self._voice *= self._random.choice([-1, 1], len(self._voice)).astype(np.float32)
        self.frames = self.samples = self.pushed = self.heard = self.dropped = self.wrong = 0

    def go_on(self) -> None:
        """Speak once, to the end or until an interruption, and pause."""
        length = int(self._random.integers(RATE // 3, len(self._voice)))
        speech = self._voice[:length]
        for part in np.array_split(speech, int(self._random.integers(1, 40))):
            self._session.push(part)
        self.pushed += length
        if length > RATE and self._random.random() < 0.3:
            # not the last half second, whose frames wait for the speech that follows
            sound = self._take(int(self._random.integers(1, length * FPS // RATE - FPS // 2)))
            self._session.interrupt()
            heard = self._hear(sound, speech)
            self._hear_fade(speech[heard:])
            self.dropped += length - heard
        else:
            self._session.flush()
            self._hear(self._take(None), speech)
        pause = self._take(int(self._random.integers(10, 3 * FPS)))
        self.wrong += int(np.count_nonzero(pause))

    def _hear_fade(self, rest: np.ndarray) -> None:
        """Take the frame after an interruption: what was spoken fades out over 10 ms."""
        sound = self._take(1)
        fade = RATE // 100
        spoken = rest[:fade]
        loud = np.abs(sound[: len(spoken)]) > np.abs(spoken) + 1e-6
        self.wrong += int(loud.sum() + np.count_nonzero(sound[fade:]))

    def _hear(self, sound: np.ndarray, speech: np.ndarray) -> int:
        """Compare sound with speech, after the silent frames that were made before it came.

        Returns:
            How many samples of the speech it holds.
        """
        begin = int(np.flatnonzero(sound)[0]) if sound.any() else len(sound)
        heard = sound[begin : begin + len(speech)]
        self.wrong += int(np.count_nonzero(heard != speech[: len(heard)]))
        self.wrong += int(np.count_nonzero(sound[begin + len(speech) :]))
        self.heard += len(heard)
        return len(heard)

    def _take(self, frames: int | None) -> np.ndarray:
        """Take so many frames, or those up to the end of an utterance; return their sound."""
        parts: list[np.ndarray] = []
        while frames is None or len(parts) < frames:
            piece = self._session.take()
            if piece is None:
                raise RuntimeError("the session is closed")
            parts.append(piece.sound[0])
            self.frames += 1
            if frames is None and piece.end:
                break
        sound = np.concatenate(parts)
        self.samples += len(sound)
        return sound


def resident_memory() -> int:
    """Return the memory that this process occupies, in bytes (Linux)."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )
    return int(line.split()[1]) * 1024
