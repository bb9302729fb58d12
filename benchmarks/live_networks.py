"""Measurements of live sessions with real networks: in real time, as taken, idle, in bfloat16."""

import asyncio
import statistics
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import kernels
from benchmarks import live_clients as clients
from benchmarks import measurements, timing
from benchmarks.runner import Budget
from engine import Avatar
from engine.live import Live
from engine.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class LiveBudget(Budget):
    """What is measured of live sessions, and for how long."""

    sessions: tuple[int, ...]  # with real networks
    scheduled: tuple[int, ...]  # whose frames cost nothing
    talk: float  # seconds of speech in a conversation
    rounds: int  # of the generator alone and of sessions as taken
    taken: float  # seconds of speech in a round
    many: float  # seconds for which the scheduler is measured
    hour: float  # seconds of the stream
    compared: int  # frames on which precisions are compared


class Lives:
    """Opens a `Live` when its first job begins, and closes all at the end.

    Args:
        avatar: of the sessions.
        options: arguments of `Live` by the name of a provider.
    """

    def __init__(self, avatar: Avatar, options: dict[str, dict[str, Any]]):
        self.avatar, self.names = avatar, list(options)
        self._options, self._opened = options, dict[str, Any]()
        self._exits = ExitStack()

    def get(self, name: str) -> Any:
        if name not in self._opened:
            live = Live(self.avatar, **self._options[name])
            self._opened[name] = self._exits.enter_context(live)
        return self._opened[name]

    def __enter__(self) -> "Lives":
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()


# --- sessions with real networks -----------------------------------------------------------------


def real_time(lives: Lives, name: str, sessions: int, encoded: bool, budget: LiveBudget) -> dict:
    """Measure a conversation in each of some sessions."""
    live = lives.get(name)
    alone = statistics.median(generator_rates(live.pipeline, budget))
    speeches = [clients.speech_for(number, budget.talk) for number in range(sessions)]
    with _pool(encoded) as pool:
        figures = clients.figures(asyncio.run(clients.converse(live, speeches, pool)))
    total = figures["frames a second"] * sessions
    return figures | {
        "batch": live.pipeline.batch_size,
        "runtime": live.pipeline.generator.description,
        "capacity": live.capacity(),
        "generator alone, frames a second": alone,
        "share of the generator's rate": total / alone,
    }


def as_taken(lives: Lives, name: str, sessions: int, encoded: bool, budget: LiveBudget) -> dict:
    """Measure sessions as fast as frames are taken, in turn with the generator alone."""
    live = lives.get(name)
    speeches = [clients.speech_for(number, budget.taken) for number in range(sessions)]
    rates, shares = [], []
    for _ in range(budget.rounds):
        (alone,) = generator_rates(live.pipeline, budget, rounds=1)
        with _pool(encoded) as pool:
            begin = time.perf_counter()
            frames = asyncio.run(clients.take_all(live, speeches, pool))
            rates.append(frames / (time.perf_counter() - begin))
        shares.append(rates[-1] / alone)
    return {
        "batch": live.pipeline.batch_size,
        "runtime": live.pipeline.generator.description,
        "frames a second": statistics.median(rates),
        "frames a second, all rounds": rates,
        "share of the generator's rate": statistics.median(shares),
    }


def generator_rates(
    pipeline: Pipeline, budget: LiveBudget, rounds: int | None = None
) -> list[float]:
    """Return the frames a second of the generator alone in the same batches, in some rounds."""
    batch, seconds = pipeline.batch_size, budget.sample
    generate = measurements.generator_alone(pipeline, batch)
    rates = []
    generate()
    for _ in range(rounds or budget.rounds):
        frames, begin = 0, time.perf_counter()
        while frames == 0 or time.perf_counter() - begin < seconds:
            frames += generate()
            if pipeline.device.type == "cuda":
                torch.cuda.synchronize()
        rates.append(frames / (time.perf_counter() - begin))
    return rates


def _pool(encoded: bool) -> Any:
    if not encoded:
        return nullcontext()
    from engine.media.encode import EncoderPool  # late, because GPU hosts may lack FFmpeg

    return EncoderPool()


def idle(lives: Lives, name: str, budget: LiveBudget) -> dict:
    """Measure the process's CPU seconds a frame of a session that is silent, and that speaks."""
    live = lives.get(name)
    count = max(round(budget.taken * float(live.avatar.fps)), 10)
    with live.open(clock="taken") as session:
        _take(session, 2 * len(live.avatar) + 20)  # forth and back: every mouth at rest is known
        silent = _take(session, count)
        session.push(clients.speech_for(0, budget.taken + 1))
        _take(session, clients.AHEAD + 1)  # those that were made before
        speaking = _take(session, count)
    return {
        "batch": live.pipeline.batch_size,
        "CPU s a frame": {"idle": silent, "speaking": speaking},
        "idle over speaking": silent / speaking,
    }


def _take(session: Any, count: int) -> float:
    """Take some frames; return the process's CPU seconds for each."""
    begin = time.process_time()
    for number in range(count):
        if session.take() is None:
            raise RuntimeError(f"the session ended after {number} of {count} frames")
    return (time.process_time() - begin) / count


# --- precisions of the generator on a CPU --------------------------------------------------------


@dataclass(frozen=True)
class Faces:
    """The generator's inputs for some frames of the avatar that speaks."""

    pictures: Tensor
    audio: Tensor


def faces(pipeline: Pipeline, count: int) -> Faces:
    """Make the inputs for the first frames of a render of the demo's speech."""
    pcm = torch.from_numpy(clients.speech_for(0, 2 + count / float(pipeline.avatar.fps)))
    windows = kernels.mel_windows(kernels.log_mel(pcm), fps=float(pipeline.avatar.fps))
    features = torch.empty(len(windows), kernels.FEATURE_DIM)
    pipeline.audio_encoder(windows, out=features)
    audio = kernels.feature_windows(features, start=20, count=count)
    numbers = [number % len(pipeline.avatar) for number in range(count)]
    pictures, _ = kernels.face_input(*pipeline.avatar.batch(numbers), dtype=torch.float32)
    return Faces(pictures, audio)


def precision(avatar: Avatar, name: str, batch: int, budget: LiveBudget) -> dict:
    """Measure the generator of a precision at a batch size, and compare its mouths with float32's.

    Levels are those of 8-bit pixels.
    """
    exact = Pipeline(avatar, precision="fp32")
    inputs = faces(exact, budget.compared)
    expected = _generate(exact, inputs, 1)
    pipeline = Pipeline(avatar, precision=name.split()[-1])
    single, found = _generate(pipeline, inputs, 1), _generate(pipeline, inputs, batch)
    calls = []
    for first in range(0, budget.compared - batch + 1, batch):
        some = slice(first, first + batch)
        out = torch.empty(batch, 3, kernels.ROI_SIZE, kernels.ROI_SIZE)
        arguments = inputs.pictures[some], inputs.audio[some]
        calls.append(partial(pipeline.generator, *arguments, out=out))
    took = timing.time_wall_clock(calls, budget.sample)
    difference = 255 * (found - expected).abs()
    error = difference.square().mean().item()
    return {
        "runtime": pipeline.generator.description,
        "frames a second": batch / took.median,
        "PSNR, dB": 10 * float(np.log10(255**2 / error)) if error else None,
        "max difference, levels": difference.max().item(),
        "same as one by one": torch.equal(single, found),
    }


def _generate(pipeline: Pipeline, inputs: Faces, batch: int) -> Tensor:
    out = torch.empty(len(inputs.audio), 3, kernels.ROI_SIZE, kernels.ROI_SIZE)
    for first in range(0, len(out), batch):
        some = slice(first, first + batch)
        pipeline.generator(inputs.pictures[some], inputs.audio[some], out=out[some])
    return out
